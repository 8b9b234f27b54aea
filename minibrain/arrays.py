"""NumPy or CuPy: where an array lives, and how it gets there.

The mathematics in `minibrain.functional` is written once. It begins with
`xp = array_module(x)` and then uses only what NumPy and CuPy share.
"""

import sys
from contextlib import contextmanager
from functools import cache
from types import ModuleType

import numpy as np

from minibrain.errors import InputError

PRECISIONS = {"bf16": "bfloat16", "fp32": "float32", "fp64": "float64"}  # of activations
FLOATS = ("bfloat16", "float16", "float32", "float64")
LEAST_CAPABILITY = 80  # of a GPU; the first whose tensor cores know bfloat16


def array_module(x) -> ModuleType:
    """The module whose functions take x: numpy, or cupy for an array on a GPU.

    It is read off the array's own type, so cupy is never imported for an array that is not its.

    Raises
    ------
    AttributeError : x is a list, say; `minibrain.functional` says which argument it was
    """
    if isinstance(x, np.ndarray | np.generic):
        return np
    if not hasattr(x, "dtype"):
        found = type(x).__name__
        raise AttributeError(f"expected a NumPy or CuPy array, got {found}", name="dtype", obj=x)
    return sys.modules[type(x).__module__.partition(".")[0]]


def precision_dtype(precision: str) -> np.dtype:
    """What activations are stored in. NumPy learns of bfloat16 from the package ml_dtypes.

    Raises
    ------
    InputError : there is no such precision, or ml_dtypes is missing
    """
    if precision not in PRECISIONS:
        expected = ", ".join(PRECISIONS)
        raise InputError(f"precision: got {precision!r}, expected one of {expected}")
    if precision == "bf16":
        try:
            import ml_dtypes  # noqa: F401
        except ImportError as error:
            raise InputError("precision bf16 needs ml_dtypes: pip install ml_dtypes") from error
    return np.dtype(PRECISIONS[precision])


def find_precision(precision: str, device: str) -> str:
    """Turn "auto" into what suits a device: "bf16" on a GPU, "fp32" on a CPU.

    Raises
    ------
    InputError : as `precision_dtype`
    """
    if precision != "auto":
        precision_dtype(precision)
        return precision
    return "bf16" if device == "cuda" else "fp32"


def find_device(device: str = "auto") -> str:
    """Turn "auto", "cpu" or "cuda" into "cpu" or "cuda"; "auto" takes a GPU that works.

    Raises
    ------
    InputError : "cuda" is asked for and cannot be had, or the name is another.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device: got {device!r}, expected auto, cpu or cuda")
    if device == "cpu":
        return "cpu"
    obstacle = _cuda_obstacle()
    if obstacle and device == "cuda":
        raise InputError(f"device cuda is not available: {obstacle}")
    return "cpu" if obstacle else "cuda"


def _cuda_obstacle() -> str | None:
    """Why no array can be put on a GPU here, or None if one can."""
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported ({error}); pip install 'minibrain[cuda13]' or [cuda12]"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"no working CUDA driver ({error})"
    if not count:
        return "no CUDA device was found"
    capability = int(cupy.cuda.Device().compute_capability)
    if capability < LEAST_CAPABILITY:
        return f"the GPU is of sm_{capability}, expected sm_{LEAST_CAPABILITY} or later"
    return None


def to_device(x, device: str):
    """x as a NumPy array ("cpu") or a CuPy array ("cuda"); no copy if it is there already."""
    if device == "cpu":
        return to_host(x)
    import cupy

    return cupy.asarray(x)


@contextmanager
def aside(device: str):
    """Work for a GPU that is given to it within this is done beside what else it is doing: neither
    waits for the other. It is done when this ends."""
    if device == "cpu":
        yield
        return
    with _stream_aside() as stream:
        yield
        stream.synchronize()


@cache
def _stream_aside():
    import cupy

    return cupy.cuda.Stream(non_blocking=True)


def to_host(x) -> np.ndarray:
    """x as a NumPy array."""
    return np.asarray(x) if isinstance(x, np.ndarray | np.generic) else x.get()


def like(x, other):
    """x in the dtype and on the device of other."""
    if array_module(other) is np:
        x = to_host(x)
    return array_module(other).asarray(x).astype(other.dtype, copy=False)


def widened(x):
    """bfloat16 as float32: it is only stored, and a result is rounded to it once."""
    return x.astype(np.float32) if x.dtype.name == "bfloat16" else x


def require_float(name: str, x, shape: tuple[int, ...] | None = None) -> None:
    """Require an array of floats, in this shape if one is given.

    Without that, what is computed of integers would be cut to integers, and a gradient of another
    shape would be broadcast: wrong results, and no error.

    Raises
    ------
    ValueError : naming the argument, what it is and what was expected
    """
    kind = x.dtype.name if hasattr(x, "dtype") else f"a {type(x).__name__}"
    if kind not in FLOATS:
        raise ValueError(f"{name} must be an array of floats, got {kind}")
    if shape is not None and x.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {x.shape}")


def is_number(x) -> bool:
    """One number, which may be an array of no dimension."""
    return isinstance(x, int | float) or getattr(x, "ndim", None) == 0


def require_number(name: str, x) -> None:
    """Require one number: an array would be broadcast, over classes say.

    Raises
    ------
    ValueError : naming the argument, and what it is
    """
    if not is_number(x):
        kind = f"an array of shape {x.shape}" if hasattr(x, "shape") else f"a {type(x).__name__}"
        raise ValueError(f"{name} must be one number, got {kind}")


def channel_sum(x):
    """(..., C) -> (C,): sum over everything but the channels, accumulated in float64."""
    x = widened(x)
    return x.sum(axis=tuple(range(x.ndim - 1)), dtype=np.float64).astype(x.dtype)
