"""Sections of the GPU benchmark that check. Each returns "wrong", a list of what was wrong."""

from functools import partial

import numpy as np

import minibrain.functional as F
from benchmarks.gpu_rivals import losses_of_torch
from benchmarks.gpu_setting import (
    GRADIENT_TOLERANCE,
    LOSS_TOLERANCE,
    PRECISIONS,
    Setting,
    new_batch,
    new_network,
)
from minibrain.arrays import precision_dtype, to_device, to_host
from minibrain.kernels import written
from minibrain.optimizers import Adam
from minibrain.selftest import TOLERANCE, arrays_in, worst_errors
from minibrain.training import RepeatedStep, train_step


def operations(setting: Setting) -> dict:
    """Every pair against its readable body in float64, three times with outputs poisoned first."""
    found, wrong = {}, []
    for precision in PRECISIONS:
        for name, arguments, options in _cases(np.random.default_rng(0)):
            shape = "x".join(map(str, arguments[0].shape))
            case = f"{precision} {name} {shape}"
            placed = _placed(name, arguments, precision, setting.device)
            found[case], identical = _check_pair(setting, name, placed, options)
            if not identical:
                wrong.append(f"{case}: three runs differ")
            wrong += _too_far(found[case], precision, case)
        case = f"{precision} skip"
        found[case] = {"sum of gradients": _skip_error(setting, precision)}
        wrong += _too_far(found[case], precision, case)
    return {"errors": found, "wrong": wrong}


def _skip_error(setting: Setting, precision: str) -> float:
    """Of an array that is pooled, and joined with another: how far the sum of its two gradients is
    from the same in float64. No single operation adds them."""
    rng, dtype = np.random.default_rng(2), precision_dtype(precision)
    shapes = (2, 12, 10, 16, 16), (2, 6, 5, 8, 16), (2, 12, 10, 16, 24)
    arrays = [rng.standard_normal(shape).astype(np.float32).astype(dtype) for shape in shapes]

    def gradient(x, dpooled, djoined):
        _, pooled = F.max_pool_forward(x, 2)
        _, joined = F.concat_forward(x[..., :8], x)
        return F.max_pool_backward(dpooled, pooled) + F.concat_backward(djoined, joined)[1]

    placed = [to_device(array, setting.device) for array in arrays]
    got = to_host(written(gradient(*placed))).astype(np.float64)
    want = gradient(*(array.astype(np.float64) for array in arrays))
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def _cases(rng):
    """(operation, arguments, options) in odd shapes; activations come first."""

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    odd, gamma, beta = normal(2, 13, 10, 17, 16), normal(16), normal(16)
    labels = rng.integers(0, 4, (2, 9, 12, 11))
    return [
        ("conv", (normal(2, 11, 9, 18, 4), normal(3, 3, 3, 4, 16), normal(16)), {"padding": 1}),
        ("conv", (odd, normal(3, 3, 3, 16, 16), normal(16)), {"padding": 1}),
        ("conv", (normal(1, 8, 9, 7, 64), normal(3, 3, 3, 64, 64), normal(64)), {"padding": 1}),
        ("conv", (odd, normal(1, 1, 1, 16, 4), normal(4)), {}),
        ("conv", (odd, normal(2, 3, 1, 16, 5), normal(5)), {"stride": 2, "dilation": 2}),
        ("conv", (normal(2, 33, 70, 16), normal(3, 3, 16, 16), normal(16)), {"padding": 1}),
        ("conv_transpose", (odd, normal(2, 2, 2, 8, 16), normal(8)), {"stride": 2}),
        ("conv_transpose", (odd, normal(3, 2, 3, 5, 16), normal(5)), {"stride": (1, 2, 3)}),
        ("max_pool", (normal(2, 12, 10, 16, 16), 2), {}),
        ("upsample", (odd, 2), {}),
        ("concat", (odd, normal(2, 13, 10, 17, 32)), {}),
        ("instance_norm", (odd, gamma, beta), {}),
        ("batch_norm", (odd, gamma, beta), {}),
        ("norm_relu", (odd, gamma, beta), {"rate": 0.3, "key": (1, 2, 3)}),
        ("relu", (odd,), {}),
        ("dropout", (odd, 0.2, (1, 2, 3)), {}),
        ("cce_dice_loss", (normal(2, 9, 12, 11, 4), labels), {}),
    ]


def _placed(name: str, arguments: tuple, precision: str, device: str) -> tuple:
    """On the device, activations in a precision and parameters in float32 with values it has."""
    dtype, activations = precision_dtype(precision), 2 if name == "concat" else 1

    def place(i, argument):
        if not isinstance(argument, np.ndarray):
            return argument
        if argument.dtype == np.float32:
            rounded = argument.astype(dtype)
            argument = rounded if i < activations else rounded.astype(np.float32)
        return to_device(argument, device)

    return tuple(place(i, argument) for i, argument in enumerate(arguments))


def _check_pair(setting: Setting, name: str, arguments: tuple, options: dict):
    """Errors of forward and backward, and whether three runs gave the same bits."""
    forward, backward = getattr(F, f"{name}_forward"), getattr(F, f"{name}_backward")
    rng, runs = np.random.default_rng(1), []
    shape, dtype = np.shape(written(forward(*arguments, **options)[0])), arguments[0].dtype
    dy = to_device(rng.standard_normal(shape).astype(dtype), setting.device) if shape else 1.5

    def run():
        _poison(setting)
        y, saved = forward(*arguments, **options)
        runs.append([to_host(array) for array in arrays_in(written((y, backward(dy, saved))))])

    errors = worst_errors(run)
    for _ in range(2):
        run()
    same = (np.array_equal(a, b) for other in runs[1:] for a, b in zip(runs[0], other, strict=True))
    return errors, all(same)


def _too_far(errors: dict[str, float], precision: str, where: str) -> list[str]:
    limit = TOLERANCE[precision_dtype(precision).name]
    return [f"{where}: {name} off by {e:.2g}" for name, e in errors.items() if not e < limit]


def _poison(setting: Setting) -> None:
    """Leave NaN in the memory that the next arrays will get."""
    if setting.device == "cuda":
        import cupy

        arrays = [cupy.full(2**power, np.nan, np.float32) for power in range(6, 24)]
        del arrays


def network(setting: Setting) -> dict:
    """A step of the 3D reference network in every precision: each call of an operation against its
    readable body in float64; loss and all gradients against float64's. In bfloat16 the latter is
    told, not judged: see `minibrain.selftest`."""
    images, labels = new_batch(setting.small, "cpu")
    losses, gradients, errors, wrong = {}, {}, {}, []

    def step(precision, device):
        model = new_network(precision, device)
        optimizer = Adam(model.named_parameters())
        losses[precision] = train_step(model, optimizer, images, labels, step=5)
        parts = [to_host(parameter.grad).ravel() for parameter in optimizer.parameters]
        gradients[precision] = np.concatenate(parts).astype(np.float64)

    step("fp64", "cpu")
    exact, apart = gradients["fp64"], {}
    for precision in PRECISIONS:
        errors[precision] = worst_errors(partial(step, precision, setting.device))
        wrong += _too_far(errors[precision], precision, precision)
        if not abs(losses[precision] / losses["fp64"] - 1) < LOSS_TOLERANCE[precision]:
            wrong.append(f"{precision}: losses {losses}")
        distance = np.linalg.norm(gradients[precision] - exact)
        apart[precision] = float(distance / np.linalg.norm(exact))
    if not apart["fp32"] < GRADIENT_TOLERANCE:
        wrong.append(f"fp32: gradients off by {apart['fp32']:.2g}")
    return {"losses": losses, "gradients apart": apart, "errors": errors, "wrong": wrong}


def _trained(setting: Setting, precision: str, take_step=train_step, **options):
    """Losses and final parameters of a few steps on one batch."""
    model = new_network(precision, setting.device, **options)
    optimizer = Adam(model.named_parameters(), learning_rate=1e-3)
    images, labels = new_batch(setting.small, setting.device)
    losses = [take_step(model, optimizer, images, labels, step) for step in range(setting.steps)]
    values = [to_host(p.value).ravel() for p in model.named_parameters().values()]
    return losses, np.concatenate(values)


def identical(setting: Setting) -> dict:
    """The same steps again, and recorded as a graph, give the same bits."""
    wrong = []
    for precision in PRECISIONS:
        losses, values = _trained(setting, precision)
        for how, take_step in (("again", train_step), ("recorded", RepeatedStep())):
            others, other_values = _trained(setting, precision, take_step)
            if losses != others or not np.array_equal(values, other_values):
                wrong.append(f"{precision}: {setting.steps} steps {how} differ")
    return {"steps": setting.steps, "precisions": PRECISIONS, "wrong": wrong}


def curve(setting: Setting) -> dict:
    """Losses of the same steps by PyTorch in float32, from the same weights, without dropout."""
    theirs = losses_of_torch(new_network("fp32", "cpu"), *new_batch(setting.small, "cpu"), setting)
    found, wrong = {"PyTorch fp32": theirs}, []
    for precision in PRECISIONS:
        losses, _ = _trained(setting, precision, dropout=0.0)
        apart = float(np.max(np.abs(np.subtract(losses, theirs)) / np.abs(theirs)))
        found[precision] = losses
        if not apart < LOSS_TOLERANCE[precision]:
            wrong.append(f"{precision}: losses up to {apart:.2g} from PyTorch's")
    return {"losses": found, "wrong": wrong}
