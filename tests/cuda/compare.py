"""An operation by its CUDA kernels against the functional reference in float64."""

from functools import partial

import numpy as np
import standin

import minibrain.functional as F
from minibrain.arrays import precision_dtype
from minibrain.kernels import written
from minibrain.saved import ConvSaved, DropoutSaved, DuckArray, Pending

EPS = np.finfo(np.float32).eps
BFLOAT16 = precision_dtype("bf16")
ROUNDING = 2.0**-8  # relative error of a number that is rounded to bfloat16
# how many arguments, the first ones, are stored as the activations are
ACTIVATIONS = {"concat": 2, "attention_gate": 2}
PENDING = {"norm_relu"}  # whose result kernels leave to others to write
VIEWS = {"concat"}  # whose gradients are views of dy, for which nothing need be launched
COMPOSED = {"attention_gate"}  # of operations between which everything is rounded


def check_pair(emulator, name, arguments, options, length, rng, dtype=np.float32):
    """Forward and backward by the kernels, and every mixture with the reference, are right.

    length : how many rounded terms a result is the sum of, nearly; 0 for results without rounding
    dtype : of the activations; what is bfloat16 must have been rounded once
    """
    forward, backward = getattr(F, f"{name}_forward"), getattr(F, f"{name}_backward")
    arguments = stored(name, arguments, dtype)
    steps = 64 if name in COMPOSED and dtype == BFLOAT16 else 0
    close = partial(assert_close, length=length + steps * ROUNDING / EPS)
    y, saved = _taken(emulator, forward, *map(on_device, arguments), **options)
    true_y, true_saved = forward.reference(*map(wide, arguments), **options)
    is_loss = name.endswith(("loss", "entropy"))
    if is_loss:
        largest = np.abs(arguments[0]).max().astype(np.float64)
        close_y = partial(_assert_loss_close, length=length, largest=largest)
    else:
        close_y = close
    close_y(y, true_y)
    assert host(y).dtype == (dtype if y.ndim else np.float64)
    _assert_saved_close(saved, true_saved, close)

    reference_y, reference_saved = forward.reference(*map(on_device, arguments), **options)
    close_y(reference_y, true_y)
    dy = 1.5 if is_loss else random(rng, true_y.shape).astype(dtype)
    for each in (saved, reference_saved):
        own = dtype == BFLOAT16 or name in TERMS
        exact = wide(dy), wide(each) if own else true_saved
        want = backward.reference(*exact)
        if name in TERMS:
            close = partial(close, terms=TERMS[name](*exact))
        # where y of the reference is written, kernels do not take it back
        if name in VIEWS or (name in PENDING and each is reference_saved):
            close(backward(on_device(dy), each), want)
        else:
            close(_taken(emulator, backward, on_device(dy), each), want)
        close(backward.reference(on_device(dy), written(each)), want)


def _assert_loss_close(got, want, length, largest):
    """Of a class that is nearly certain, −log p is what is left of the logits' differences, so that
    some roundings of the largest of them remain however small the loss is."""
    bound = EPS * (length * abs(want) + 8 * (1 + largest))
    assert abs(float(got) - want) <= bound or (np.isnan(want) and np.isnan(float(got)))


def _softmax_terms(dy, saved):
    """Of dx = y (dy − Σ dy y) what is added up, without signs: where one y is nearly 1, dx is what
    little is left of that, and rounding is as large as before."""
    size = np.abs(dy)
    return saved.y * (size + (size * saved.y).sum(axis=-1, keepdims=True))


def _sigmoid_terms(dy, saved):
    """The result itself: nothing cancels but in y's own error, which 1 − y lays bare."""
    return np.abs(dy * saved.y * (1 - saved.y))


# of backwards whose result may be far smaller than an error of the forward's, so that what was
# saved is taken as it is
TERMS = {"softmax": _softmax_terms, "sigmoid": _sigmoid_terms}


def stored(name, arguments, dtype):
    """The activations among the arguments in a dtype. Parameters stay float32, but with bfloat16
    activations have its values: tensor cores take weights that are rounded so."""
    count = ACTIVATIONS.get(name, 1)
    parameters = [rounded(a) if dtype == BFLOAT16 else a for a in arguments[count:]]
    return [a.astype(dtype) for a in arguments[:count]] + parameters


def rounded(value):
    """float32 arrays with values of bfloat16."""
    is_float = isinstance(value, np.ndarray) and value.dtype == np.float32
    return value.astype(BFLOAT16).astype(np.float32) if is_float else value


def _taken(emulator, operation, *arguments, **options):
    before = len(emulator.launches)
    result = operation(*arguments, **options)
    first = result[0] if isinstance(result, tuple) else result
    left = len(emulator.launches) == before and not isinstance(first, DuckArray)
    assert not left, f"{operation.__name__} was left to the reference"
    return result


def assert_close(got, want, length, terms=None):
    """Both may be tuples. An error may be `length` roundings of the largest value, or where `terms`
    are given of those, one by one; and one more of the value itself where it is stored in
    bfloat16."""
    if isinstance(want, tuple):
        for one, other in zip(got, want, strict=True):
            assert_close(one, other, length)
        return
    got, want = np.asarray(host(got)), np.asarray(host(want))
    assert got.shape == want.shape
    with np.errstate(invalid="ignore"):
        differ = got != want  # equal infinities do not
        error = np.abs(got[differ] - want[differ])
    largest = np.abs(want[np.isfinite(want)]).max(initial=0)
    size = largest if terms is None else terms[differ]
    bound = length * (EPS * size + np.finfo(np.float32).tiny)
    if got.dtype == BFLOAT16 and length:
        bound = bound + ROUNDING * np.abs(want[differ])
    assert not error.size or (error <= bound).all(), (
        f"error {error.max():.2g}, largest {largest:.2g}"
    )


def _assert_saved_close(saved, want, close):
    """Field by field; what was handed in and not computed must come back itself."""
    assert type(saved) is type(want)
    if isinstance(want, ConvSaved):
        assert saved.geometry == want.geometry
        return
    for field, value in want._asdict().items():
        got = getattr(saved, field)
        if hasattr(value, "_asdict"):
            _assert_saved_close(got, value, close)
        elif isinstance(value, np.ndarray):
            close(got, value)
        else:
            assert got == value


def check_pending(emulator, name, arguments, options):
    """With what is pending among the arguments, forward and backward give the bits that they give
    with what is written in its place; returns the names of what was launched for the former."""
    forward, backward = getattr(F, f"{name}_forward"), getattr(F, f"{name}_backward")
    rng = np.random.default_rng(4)

    def run(arguments):
        emulator.launches.clear()
        y, saved = forward(*arguments, **options)
        dy = rng.standard_normal(y.shape).astype(y.dtype)
        gradients = backward(on_device(dy), saved)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        return list(map(host, (y, *gradients))), emulator.launches.copy()

    (want, _), rng = run(written(arguments)), np.random.default_rng(4)
    got, launches = run(arguments)
    for one, other in zip(got, want, strict=True):
        assert one.tobytes() == other.tobytes()
    return launches


def pending(shape, dtype, rate=0.3):
    """An activation that is not written yet, on the device; its padding would not be 0."""
    rng = np.random.default_rng(5)
    lines = random(rng, (shape[0], *(1,) * (len(shape) - 2), shape[-1], 3))
    raw = random(rng, shape).astype(dtype)
    return Pending(on_device(raw), on_device(lines), DropoutSaved(rate, (2**40, 7, 1), raw.shape))


def random(rng, shape):
    return rng.standard_normal(shape).astype(np.float32)


def wide(value):
    """Floats in float64 on the host, also within what was saved; what is pending is written."""
    if hasattr(value, "_asdict"):
        return type(value)(*map(wide, value))
    value = host(value)
    is_float = isinstance(value, np.ndarray) and value.dtype.kind in "fV"
    return value.astype(np.float64) if is_float else value


def on_device(value):
    return standin.asarray(value) if isinstance(value, np.ndarray) else value


def host(value):
    value = written(value) if isinstance(value, DuckArray) else value
    return value.get() if isinstance(value, standin.ndarray) else value
