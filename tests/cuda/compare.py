"""An operation by its CUDA kernels against the functional reference in float64."""

import numpy as np
import standin

import minibrain.functional as F
from minibrain.saved import ConvSaved

EPS = np.finfo(np.float32).eps


def check_pair(emulator, name, arguments, options, length, rng):
    """Forward and backward by the kernels, and every mixture with the reference, are right.

    length : how many rounded terms a result is the sum of, nearly; 0 for results without rounding
    """
    forward, backward = getattr(F, f"{name}_forward"), getattr(F, f"{name}_backward")
    y, saved = _taken(emulator, forward, *map(on_device, arguments), **options)
    true_y, true_saved = forward.reference(*map(wide, arguments), **options)
    assert_close(y, true_y, length)
    _assert_saved_close(saved, true_saved, length)

    dy = 1.5 if name.endswith(("loss", "entropy")) else random(rng, true_y.shape)
    want = backward.reference(wide(dy), true_saved)
    got = _taken(emulator, backward, on_device(dy), saved)
    assert_close(got, want, length)
    _, reference_saved = forward.reference(*map(on_device, arguments), **options)
    assert_close(_taken(emulator, backward, on_device(dy), reference_saved), want, length)
    assert_close(backward.reference(on_device(dy), saved), want, length)


def _taken(emulator, operation, *arguments, **options):
    before = len(emulator.launches)
    result = operation(*arguments, **options)
    assert len(emulator.launches) > before, f"{operation.__name__} was left to the reference"
    return result


def assert_close(got, want, length):
    """Both may be tuples. An error may be `length` roundings of the largest value."""
    if isinstance(want, tuple):
        for one, other in zip(got, want, strict=True):
            assert_close(one, other, length)
        return
    got, want = np.asarray(host(got)), np.asarray(host(want))
    assert got.shape == want.shape
    differ = got != want  # equal infinities do not
    error = np.abs(got[differ] - want[differ]).max(initial=0)
    largest = np.abs(want[np.isfinite(want)]).max(initial=0)
    bound = length * (EPS * largest + np.finfo(np.float32).tiny)
    assert error <= bound, f"error {error:.2g} where the largest is {largest:.2g}"


def _assert_saved_close(saved, want, length):
    """Field by field; what was handed in and not computed must come back itself."""
    assert type(saved) is type(want)
    if isinstance(want, ConvSaved):
        assert saved.geometry == want.geometry
        return
    for field, value in want._asdict().items():
        got = getattr(saved, field)
        if hasattr(value, "_asdict"):
            _assert_saved_close(got, value, length)
        elif isinstance(value, np.ndarray):
            assert_close(got, value, length)
        else:
            assert got == value


def random(rng, shape):
    return rng.standard_normal(shape).astype(np.float32)


def wide(value):
    """float32 arrays in float64."""
    is_float = isinstance(value, np.ndarray) and value.dtype == np.float32
    return value.astype(np.float64) if is_float else value


def on_device(value):
    return standin.asarray(value) if isinstance(value, np.ndarray) else value


def host(value):
    return value.get() if isinstance(value, standin.ndarray) else value
