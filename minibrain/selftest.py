"""Is every operation right on this device? A training step, checked call by call.

Whole networks of different precision cannot be compared: one rounding that carries a value across
ReLU's kink changes all gradients below it, and in bfloat16 the encoder's gradients are then off by
half, from float64's as well as from bfloat16's own with the sums in another order. So each call of
an operation is held against what its readable body computes in float64 from the same arguments.
"""

from collections.abc import Callable
from copy import deepcopy

import numpy as np

from minibrain import functional
from minibrain.arrays import to_host, widened
from minibrain.kernels import Call, listening, written
from minibrain.models import UNet
from minibrain.optimizers import Adam
from minibrain.training import to_model, train_step

TOLERANCE = {"float32": 1e-5, "bfloat16": 4e-3}  # two roundings of bfloat16


def self_test(model: UNet) -> tuple[bool, str]:
    """Whether every operation of a training step is right, on a network's device and in its
    precision, and which is furthest off. The step is one of a copy, on a small batch."""
    model, rng = deepcopy(model), np.random.default_rng(0)
    size = (2**model.levels,) * model.rank  # norms of fewer voxels than 2^rank are ill-conditioned
    images = rng.standard_normal((1, *size, model.in_channels), np.float32)
    labels = rng.integers(0, model.classes, (1, *size), np.uint8)
    optimizer = Adam(model.named_parameters())
    errors = worst_errors(lambda: train_step(model, optimizer, images, labels, step=0))
    errors["skip"] = skip_error(lambda x: to_model(x, model))
    name = max(errors, key=lambda name: np.nan_to_num(errors[name], nan=np.inf))
    right = errors[name] < TOLERANCE["bfloat16" if model.dtype.name == "bfloat16" else "float32"]
    return right, f"{'right' if right else 'WRONG'}, {name} off by {errors[name]:.1e}"


def worst_errors(run: Callable[[], object]) -> dict[str, float]:
    """The largest error of every functional operation called while run() runs, see `call_error`.

    An operation made of others, such as an attention gate, rounds as often as they do: its error is
    shared out among them.
    """
    worst: dict[str, float] = {}
    begins: list[float] = []
    checking = False

    def check(call: Call):
        nonlocal checking
        if checking or not hasattr(functional, call.name):  # the readable bodies call others
            return
        checking = True
        parts = sum(begin >= call.begin for begin in begins)
        worst[call.name] = max(call_error(call) / (1 + parts), worst.get(call.name, 0.0))
        begins.append(call.begin)
        checking = False

    with listening(check):
        run()
    return worst


def call_error(call: Call) -> float:
    """How far the results of a call are from its readable body's in float64.

    Of each result, in the Euclidean norm and relative to what is right; NaN where there is one that
    should not be. A bias gradient before a norm is a sum that vanishes: the errors of sums over all
    voxels are relative to what was added up, if that is larger.
    """
    reference = getattr(functional, call.name).reference
    arguments = _in_float64(call.arguments)
    wanted = _results(call, reference(*arguments, **call.options))
    added = np.linalg.norm(arguments[0])
    errors = []
    for got, want in zip(_results(call, call.result), wanted, strict=True):
        scale = max(np.linalg.norm(want), added if np.ndim(want) == 1 else 1e-30)
        errors.append(np.linalg.norm(got - want) / scale)
    return float(np.max(errors))


def skip_error(place: Callable) -> float:
    """How far the sum of an array's two gradients, by way of a pool and of a skip, is from the same
    in float64. No operation adds them: where they meet, a network does.

    place : puts a float32 array on the device and in the precision that are in question
    """
    rng, shapes = np.random.default_rng(0), ((2, 8, 4, 6, 16), (2, 4, 2, 3, 16), (2, 8, 4, 6, 24))
    arrays = [place(rng.standard_normal(shape, np.float32)) for shape in shapes]

    def gradient(x, dpooled, djoined):
        _, pooled = functional.max_pool_forward(x, 2)
        _, joined = functional.concat_forward(x[..., :8], x)
        dx = functional.max_pool_backward(dpooled, pooled)
        dx += functional.concat_backward(djoined, joined)[1]
        return _in_float64(dx)

    want = gradient(*map(_in_float64, arrays))
    return float(np.linalg.norm(gradient(*arrays) - want) / np.linalg.norm(want))


def _in_float64(value):
    """Nested tuples of arrays, wherever they are, on the host and with their floats in float64.

    What is pending is written.
    """
    value = written(value)
    if isinstance(value, tuple):
        parts = map(_in_float64, value)
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if not hasattr(value, "dtype"):
        return value
    array = widened(to_host(value))
    return array.astype(np.float64) if array.dtype == np.float32 else array


def _results(call: Call, result) -> list:
    """What a call computes: of a forward y, not what it saves; of a backward every gradient."""
    return arrays_in(_in_float64(result[0] if call.name.endswith("_forward") else result))


def arrays_in(value) -> list:
    """The arrays and numbers in nested tuples, without the Nones."""
    if isinstance(value, tuple):
        return [array for item in value for array in arrays_in(item)]
    return [] if value is None else [value]
