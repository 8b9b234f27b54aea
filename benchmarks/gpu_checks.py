"""Sections of the GPU benchmark that check. Each returns "wrong", a list of what was wrong."""

import numpy as np

import minibrain.functional as F
from benchmarks.gpu_rivals import losses_of_torch
from benchmarks.gpu_setting import (
    NETWORK_TOLERANCE,
    TOLERANCE,
    Setting,
    new_batch,
    new_network,
    relative_error,
)
from minibrain.arrays import to_device, to_host
from minibrain.optimizers import Adam
from minibrain.training import train_step


def operations(setting: Setting) -> dict:
    """Every pair against its reference in float64: three runs of each, outputs poisoned first."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    odd, gamma, beta = normal(2, 13, 10, 17, 16), normal(16), normal(16)
    labels = rng.integers(0, 4, (2, 9, 12, 11))
    cases = [
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
    found, wrong = {}, []
    for name, arguments, options in cases:
        shape = "x".join(map(str, arguments[0].shape))
        errors, identical = _check_pair(setting, name, arguments, options, rng)
        found[f"{name} {shape}"] = {"errors": errors, "identical": identical}
        if not identical or not all(error < TOLERANCE["fp32"] for error in errors):
            wrong.append(f"{name} {shape}: errors {errors}, identical {identical}")
    return {"pairs": found, "wrong": wrong}


def _check_pair(setting: Setting, name: str, arguments, options, rng):
    """Relative errors of y and of every gradient, and whether three runs gave the same bits."""
    forward, backward = getattr(F, f"{name}_forward"), getattr(F, f"{name}_backward")
    exact = [_wide(argument) for argument in arguments]
    y, saved = forward.reference(*exact, **options)
    dy = 1.5 if np.ndim(y) == 0 else rng.standard_normal(y.shape).astype(np.float32)
    want = _flat((y, backward.reference(_wide(dy), saved)))
    runs = []
    for _ in range(3):
        _poison(setting)
        placed = [_placed(argument, setting.device) for argument in arguments]
        y, saved = forward(*placed, **options)
        gradients = backward(_placed(dy, setting.device), saved)
        runs.append([np.asarray(to_host(part)) for part in _flat((y, gradients))])
    identical = all(
        np.array_equal(first, other)
        for run in runs[1:]
        for first, other in zip(runs[0], run, strict=True)
    )
    errors = [relative_error(got, exact) for got, exact in zip(runs[0], want, strict=True)]
    return errors, identical


def _wide(value):
    is_float = isinstance(value, np.ndarray) and value.dtype == np.float32
    return value.astype(np.float64) if is_float else value


def _placed(value, device):
    return to_device(value, device) if isinstance(value, np.ndarray) else value


def _flat(values) -> list:
    """Arrays and numbers in nested tuples, without the Nones."""
    if isinstance(values, tuple):
        return [item for value in values for item in _flat(value)]
    return [] if values is None else [values]


def _poison(setting: Setting) -> None:
    """Leave NaN in the memory that the next arrays will get."""
    if setting.device == "cuda":
        import cupy

        arrays = [cupy.full(2**power, np.nan, np.float32) for power in range(6, 24)]
        del arrays


def network(setting: Setting) -> dict:
    """Loss and gradients of the 3D reference network in every precision, against float64."""
    exact_loss, exact = _loss_and_gradients(setting, "fp64", "cpu")
    found, wrong = {}, []
    for precision in setting.precisions:
        loss, gradients = _loss_and_gradients(setting, precision, setting.device)
        error = relative_error(gradients, exact)
        found[precision] = {"loss": loss, "gradient error": error}
        if not error < NETWORK_TOLERANCE[precision]:
            wrong.append(f"{precision}: gradients off by {error:.2g}")
    return {"float64 loss": exact_loss, "precisions": found, "wrong": wrong}


def _loss_and_gradients(setting, precision, device):
    model = new_network(precision, device)
    images, labels = new_batch(setting.small, device)
    logits, saved = model.forward(images.astype(model.dtype), training=True, step=5)
    loss, loss_saved = F.cce_dice_loss_forward(logits, labels)
    model.backward(F.cce_dice_loss_backward(1.0, loss_saved), saved, input_gradient=False)
    gradients = [to_host(p.grad).ravel() for p in model.named_parameters().values()]
    return float(loss), np.concatenate(gradients).astype(np.float64)


def _trained(setting: Setting, precision: str, **options):
    """Losses and final parameters of a few steps on one batch."""
    model = new_network(precision, setting.device, **options)
    optimizer = Adam(model.named_parameters(), learning_rate=1e-3)
    images, labels = new_batch(setting.small, setting.device)
    losses = [train_step(model, optimizer, images, labels, step) for step in range(setting.steps)]
    values = [to_host(p.value).ravel() for p in model.named_parameters().values()]
    return losses, np.concatenate(values)


def identical(setting: Setting) -> dict:
    """The same steps twice give the same bits."""
    wrong = []
    for precision in setting.precisions:
        (losses, values), (again, values_again) = (_trained(setting, precision) for _ in "ab")
        if losses != again or not np.array_equal(values, values_again):
            wrong.append(f"{precision}: two runs of {setting.steps} steps differ")
    return {"steps": setting.steps, "precisions": setting.precisions, "wrong": wrong}


def curve(setting: Setting) -> dict:
    """Losses of the same steps by PyTorch in float32, from the same weights, without dropout."""
    theirs = losses_of_torch(new_network("fp32", "cpu"), *new_batch(setting.small, "cpu"), setting)
    found, wrong = {"PyTorch fp32": theirs}, []
    for precision in setting.precisions:
        losses, _ = _trained(setting, precision, dropout=0.0)
        apart = float(np.max(np.abs(np.subtract(losses, theirs)) / np.abs(theirs)))
        found[precision] = losses
        if not apart < NETWORK_TOLERANCE[precision]:
            wrong.append(f"{precision}: losses up to {apart:.2g} from PyTorch's")
    return {"losses": found, "wrong": wrong}
