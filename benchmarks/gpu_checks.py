"""Sections of the GPU benchmark that check. Each returns "wrong", a list of what was wrong."""

import sys
from functools import partial

import numpy as np

import minibrain.functional as F
from benchmarks.gpu_setting import (
    GRADIENT_TOLERANCE,
    LOSS_TOLERANCE,
    Setting,
    new_batch,
    new_network,
)
from minibrain.arrays import precision_dtype, to_device, to_host
from minibrain.data.augment import add_noise_inplace
from minibrain.kernels import written
from minibrain.optimizers import Adam
from minibrain.selftest import TOLERANCE, arrays_in, skip_error, worst_errors
from minibrain.training import RepeatedStep, train_step


def operations(setting: Setting, precision: str) -> dict:
    """Every pair against its readable body in float64, three times with outputs poisoned first.
    What fails does not cost the others, as long as the device goes on."""
    found, wrong = {}, []

    def check(case, errors):
        print(case, file=sys.stderr, flush=True)  # the last one is known, if it never ends
        try:
            found[case], identical = errors()
        except Exception as error:
            wrong.append(f"{case}: {error!r}"[:500])
            return
        wrong.extend([] if identical else [f"{case}: three runs differ"])
        wrong.extend(_too_far(found[case], precision, case))

    for name, arguments, options in _cases(np.random.default_rng(0)):
        placed = _placed(name, arguments, precision, setting.device)
        shapes = ("x".join(map(str, a.shape)) for a in arguments if isinstance(a, np.ndarray))
        case = " ".join((name, *shapes))
        check(case, partial(_check_pair, setting, name, placed, options))
    place = partial(_place, precision, setting.device)
    check("skip", lambda: ({"sum of gradients": skip_error(place)}, True))
    check("noise", lambda: ({"image": _noise_error(setting.device)}, True))
    return {"errors": found, "wrong": wrong}


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


def _noise_error(device: str) -> float:
    """How far the noise that a device draws is from what NumPy draws."""
    drawn = [to_device(np.zeros((3, 33, 7), np.float32), each) for each in (device, "cpu")]
    for image in drawn:
        add_noise_inplace(image, 1.0, seed=1, epoch=2, index=3)
    ours, theirs = map(to_host, drawn)
    return float(np.abs(ours - theirs).max())


def _place(precision: str, device: str, x):
    return to_device(x.astype(precision_dtype(precision)), device)


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


def network(setting: Setting, precision: str) -> dict:
    """A step of the 3D reference network: each call of an operation against its readable body in
    float64; loss and all gradients against float64's. In bfloat16 the latter is told, not judged:
    see `minibrain.selftest`."""
    images, labels = new_batch(setting.small, "cpu")

    def step(precision, device):
        model = new_network(precision, device)
        optimizer = Adam(model.named_parameters())
        loss = train_step(model, optimizer, images, labels, step=5)
        parts = [to_host(parameter.grad).ravel() for parameter in optimizer.parameters]
        return loss, np.concatenate(parts).astype(np.float64)

    taken: list = []
    errors = worst_errors(lambda: taken.extend(step(precision, setting.device)))
    (loss, gradients), (true_loss, exact) = taken, step("fp64", "cpu")
    wrong = _too_far(errors, precision, precision)
    if not abs(loss / true_loss - 1) < LOSS_TOLERANCE[precision]:
        wrong.append(f"{precision}: loss {loss}, in float64 {true_loss}")
    apart = float(np.linalg.norm(gradients - exact) / np.linalg.norm(exact))
    if precision == "fp32" and not apart < GRADIENT_TOLERANCE:
        wrong.append(f"fp32: gradients off by {apart:.2g}")
    losses = {precision: loss, "fp64": true_loss}
    return {"losses": losses, "gradients apart": apart, "errors": errors, "wrong": wrong}


def _trained(setting: Setting, precision: str, take_step=train_step, **options):
    """Losses and final parameters of a few steps on one batch."""
    model = new_network(precision, setting.device, **options)
    optimizer = Adam(model.named_parameters(), learning_rate=1e-3)
    images, labels = new_batch(setting.small, setting.device)
    losses = [take_step(model, optimizer, images, labels, step) for step in range(setting.steps)]
    values = [to_host(p.value).ravel() for p in model.named_parameters().values()]
    return losses, np.concatenate(values)


def identical(setting: Setting, precision: str) -> dict:
    """The same steps again, and recorded as a graph, give the same bits."""
    wrong = []
    losses, values = _trained(setting, precision)
    for how, take_step in (("again", train_step), ("recorded", RepeatedStep())):
        others, other_values = _trained(setting, precision, take_step)
        if losses != others or not np.array_equal(values, other_values):
            wrong.append(f"{precision}: {setting.steps} steps {how} differ")
    return {"steps": setting.steps, "wrong": wrong}


def curve(setting: Setting, precision: str) -> dict:
    """Losses of the same steps by PyTorch in float32, from the same weights, without dropout."""
    from benchmarks.gpu_rivals import losses_of_torch

    losses, _ = _trained(setting, precision, dropout=0.0)
    theirs = losses_of_torch(new_network("fp32", "cpu"), *new_batch(setting.small, "cpu"), setting)
    apart = float(np.max(np.abs(np.subtract(losses, theirs)) / np.abs(theirs)))
    right = apart < LOSS_TOLERANCE[precision]
    wrong = [] if right else [f"{precision}: losses up to {apart:.2g} from PyTorch's"]
    return {"losses": {precision: losses, "PyTorch fp32": theirs}, "wrong": wrong}
