"""Fast twins of the functional operations.

`minibrain.functional` says what an operation computes, in plain array code. A twin, a function of
the same name in `kernels/cpu` (for NumPy arrays) or `kernels/cuda` (for CuPy arrays), computes the
same from the same arguments, faster. It returns NotImplemented for a call that it leaves to the
reference. What one saves for backward the other can use: both know only `minibrain.saved`.

With MINIBRAIN_TRACE=1 in the environment every call says on stderr who computed it, how long that
took, and of a convolution how many GFLOP/s that were, counted as a direct one.
"""

import os
import sys
import time
from functools import cache, wraps
from importlib import import_module
from importlib.util import find_spec
from math import prod

from minibrain.arrays import array_module
from minibrain.saved import ConvSaved

DEVICES = {"numpy": "cpu", "cupy": "cuda"}
TRACE = os.environ.get("MINIBRAIN_TRACE") == "1"


def fast_twin(reference):
    """Let calls of a functional operation be taken by its twin on the device of its arrays.

    The decorated operation has `.reference`, the readable body, and `.fast`, the twin of whatever
    device it is called for.
    """
    module, name = reference.__module__.rpartition(".")[2], reference.__name__

    @wraps(reference)
    def fast(*arguments, **options):
        twin = _find_twin(array_module(_first_array(arguments)).__name__, module, name)
        return twin(*arguments, **options) if twin else NotImplemented

    @wraps(reference)
    def operation(*arguments, **options):
        begin = time.perf_counter()
        result, who = fast(*arguments, **options), "fast"
        if result is NotImplemented:
            result, who = reference(*arguments, **options), "reference"
        if TRACE:
            _report(name, who, arguments, result, time.perf_counter() - begin)
        return result

    operation.reference, operation.fast = reference, fast
    return operation


def _first_array(values):
    """The first array among arguments or in what was saved; a loss's gradient is a number."""
    for value in values:
        if isinstance(value, tuple | list):
            value = _first_array(value)
        if getattr(value, "ndim", 0):
            return value
    return None


@cache
def _find_twin(array_package: str, module: str, name: str):
    device = DEVICES.get(array_package)
    path = f"{__name__}.{device}.{module}"
    if device is None or find_spec(path) is None:
        return None
    return getattr(import_module(path), name, None)


def _report(name, who, arguments, result, seconds):
    array = _first_array(arguments)
    shape = "x".join(map(str, array.shape))
    line = f"minibrain: {name} {shape} {array.dtype} {who} {seconds * 1e3:.2f} ms"
    if flops := _flops(arguments, result):
        line += f" {flops / seconds / 1e9:.1f} GFLOP/s"
    print(line, file=sys.stderr)


def _flops(arguments, result):
    """Of a convolution, two for every product of forward and of each gradient; 0 of all else."""
    results = result if isinstance(result, tuple) else (result,)
    for values, times in ((results, 1), (arguments, sum(x is not None for x in results[:2]))):
        for saved in values:
            if isinstance(saved, ConvSaved):
                voxels = len(saved.x) * prod(saved.geometry.output_size)
                return 2 * times * voxels * prod(saved.weight.shape)
    return 0
