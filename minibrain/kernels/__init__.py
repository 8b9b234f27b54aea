"""Fast twins of the functional operations.

`minibrain.functional` says what an operation computes, in plain array code. A twin, a function of
the same name in `kernels/cpu` (for NumPy arrays) or `kernels/cuda` (for CuPy arrays), computes the
same from the same arguments, faster. It returns NotImplemented for a call that it leaves to the
reference. What one saves for backward the other can use: both know only `minibrain.saved`. Where a
twin has put a DuckArray (`minibrain.duck_arrays`) in place of an array, a reference gets the array,
and so does a twin that does not say that it `takes` such.

Whoever wants to know of every call is `listening`. With MINIBRAIN_TRACE=1 in the environment one
listener is there from the start: it says on stderr who computed it, how long that took,
and of a convolution how many GFLOP/s that were, counted as a direct one.
"""

import os
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache, wraps
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from minibrain.arrays import array_module
from minibrain.duck_arrays import DuckArray
from minibrain.flops import flops

DEVICES = {"numpy": "cpu", "cupy": "cuda"}


class Call(NamedTuple):
    """One call of an operation, as `listeners` hear of it when it is over."""

    name: str
    who: str  # "fast" or "reference"
    arguments: tuple
    options: dict
    result: Any
    begin: float  # of time.perf_counter()
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.begin


def fast_twin(reference):
    """Let calls of a functional operation be taken by its twin on the device of its arrays.

    The decorated operation has `.reference`, the readable body, and `.fast`, the twin of whatever
    device it is called for.
    """
    module, name = reference.__module__.rpartition(".")[2], reference.__name__
    parameters = reference.__code__.co_varnames[: reference.__code__.co_argcount]

    @wraps(reference)
    def fast(*arguments, **options):
        if options:
            arguments = _in_position(parameters, arguments, options)
        twin = _find_twin(_array_package(arguments), module, name)
        if twin is None:
            return NotImplemented
        return twin(*written(arguments, getattr(twin, "takes", ())), **options)

    @wraps(reference)
    def operation(*arguments, **options):
        if options:
            arguments = _in_position(parameters, arguments, options)
        _check_saved(reference, arguments)
        begin = time.perf_counter()
        try:
            result, who = fast(*arguments, **options), "fast"
            if result is NotImplemented:
                result, who = reference(*written(arguments), **options), "reference"
        except AttributeError as error:
            _check_arrays(parameters, arguments, error)
            raise
        if listeners:
            end = _time_when_done(_array_package(arguments))
            for listen in tuple(listeners):
                listen(Call(name, who, arguments, options, result, begin, end))
        return result

    operation.reference, operation.fast = reference, fast
    return operation


def _in_position(parameters, arguments, options):
    """The arguments, with what the options give of those that follow moved to its position: only
    there are arrays looked for, and `duck_arrays.DuckArray`s written."""
    for name in parameters[len(arguments) :]:
        if name not in options:
            break
        arguments += (options.pop(name),)
    return arguments


def _check_saved(backward, arguments):
    """Require what the forward of the same operation has saved: a network that pops it in the
    wrong order should hear of that, and not of a tuple that cannot be unpacked."""
    kind = backward.__annotations__.get("saved")
    if kind and len(arguments) > 1 and not isinstance(arguments[1], kind):
        found = type(arguments[1]).__name__
        raise TypeError(f"{backward.__name__}: saved must be a {kind.__name__}, got {found}")


def _check_arrays(parameters, arguments, error):
    """Say which argument is no array, if that is what an attribute was missing of. Whoever calls
    with arrays does not wait for a check."""
    for parameter, value in zip(parameters, arguments, strict=False):
        if value is error.obj and not hasattr(value, "dtype"):
            kind = type(value).__name__
            raise ValueError(f"{parameter} must be an array, got a {kind}") from error


def takes(*kinds):
    """Mark a twin that takes these kinds of DuckArray in place of arrays."""

    def mark(twin):
        twin.takes = kinds
        return twin

    return mark


def written(value, but=()):
    """The value with arrays in place of every DuckArray in it, but those of some kinds."""
    if isinstance(value, DuckArray) and not isinstance(value, but):
        write = _find_twin(_array_package([value]), "duck_arrays", "write")
        return write(value) if write else value.write()
    if isinstance(value, tuple):
        items = [written(item, but) for item in value]
        if any(new is not old for new, old in zip(items, value, strict=True)):
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


@contextmanager
def listening(listen: Callable[[Call], None]):
    """Let a function hear of every call of an operation, when it is over."""
    listeners.append(listen)
    try:
        yield
    finally:
        listeners.remove(listen)


def _first_array(values):
    """The first array among arguments or in what was saved; a loss's gradient is a number."""
    for value in values:
        if isinstance(value, DuckArray):
            value = list(vars(value).values())
        if isinstance(value, tuple | list):
            value = _first_array(value)
        if getattr(value, "ndim", 0):
            return value
    return None


def _array_package(values) -> str:
    """ "numpy" or "cupy", by the first array among them; "" if there is none."""
    array = _first_array(values)
    return "" if array is None else array_module(array).__name__


@cache
def _find_twin(array_package: str, module: str, name: str):
    device = DEVICES.get(array_package)
    path = f"{__name__}.{device}.{module}"
    if device is None or find_spec(path) is None:
        return None
    return getattr(import_module(path), name, None)


def _time_when_done(array_package: str) -> float:
    """Now, after a GPU has done what it was given."""
    if DEVICES.get(array_package) == "cuda":
        sys.modules[array_package].cuda.get_current_stream().synchronize()
    return time.perf_counter()


def _report(call: Call) -> None:
    array = _first_array(call.arguments)
    shape, ms = "x".join(map(str, array.shape)), call.seconds * 1e3
    line = f"minibrain: {call.name} {shape} {array.dtype} {call.who} {ms:.2f} ms"
    if call.name.startswith("conv"):
        count = flops(call.name, call.arguments, call.options, call.result)
        line += f" {count / call.seconds / 1e9:.1f} GFLOP/s"
    print(line, file=sys.stderr)


listeners = [_report] if os.environ.get("MINIBRAIN_TRACE") == "1" else []
