"""Adam and whole training steps by CUDA kernels, run on the CPU, against NumPy."""

import numpy as np
import pytest
import standin
from compare import assert_close, on_device, random
from emulator import SCHEDULES, emulated

import minibrain.functional as F
from minibrain.models import UNet
from minibrain.optimizers import Adam, adam_inplace

CONSTANTS = {"learning_rate": 1e-2, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_adam_changes_many_parameters_at_once(schedule):
    rng = np.random.default_rng(0)
    shapes = [(3, 3, 2, 5), (1,), (1024,), (1025,), (7, 400)]
    host = [[random(rng, shape) for shape in shapes] for _ in range(2)]
    total = sum(value.size for value in host[0])
    moments = [random(rng, (total,)), random(rng, (total,)) ** 2]
    device = [list(map(on_device, arrays)) for arrays in host]
    device_moments = list(map(on_device, moments))
    with emulated(schedule) as emulator:
        for step in (1, 2):
            adam_inplace.reference(*moments, *host, step, **CONSTANTS)
            adam_inplace(*device_moments, *device, step, **CONSTANTS)
    assert emulator.launches == ["optimizers.adam"] * 2
    for got, want in zip([*device[0], *device_moments], [*host[0], *moments], strict=True):
        assert_close(got, want, 8)


NETWORKS = {
    "3d": {"rank": 3, "norm": "instance", "up": "transposed", "dropout": 0.3, "plain_end": True},
    "2d": {"rank": 2, "norm": "batch", "up": "nearest", "dropout": (0.0, 0.1, 0.2)},
}


def network(name, device=False):
    model = UNet(in_channels=3, classes=4, channels=(4, 6, 8), seed=5, **NETWORKS[name])
    for parameter in (model.named_parameters() | model.named_buffers()).values():
        parameter.value = parameter.value if not device else on_device(parameter.value)
    return model


def batch(name):
    rng = np.random.default_rng(2)
    size = (8, 12, 4)[: NETWORKS[name]["rank"]]
    return random(rng, (2, *size, 3)), rng.integers(0, 4, (2, *size)).astype(np.uint8)


def forward_backward(model, images, labels, step=0):
    logits, saved = model.forward(images, training=True, step=step)
    loss, loss_saved = F.cce_dice_loss_forward(logits, labels)
    model.backward(F.cce_dice_loss_backward(1.0, loss_saved), saved, input_gradient=False)
    assert not saved
    return float(loss)


def train(model, images, labels, steps=5):
    optimizer = Adam(model.named_parameters(), learning_rate=1e-2)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        losses.append(forward_backward(model, images, labels, step))
        optimizer.step()
    return losses


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_a_network_agree(name):
    host, device = network(name), network(name, device=True)
    for parameter in host.named_parameters().values():
        parameter.value = parameter.value.astype(np.float64)
    images, labels = batch(name)
    want = forward_backward(host, images.astype(np.float64), labels)
    with emulated() as emulator:
        got = forward_backward(device, on_device(images), on_device(labels))
    assert got == pytest.approx(want, rel=1e-6)
    assert len(set(emulator.launches)) > 20
    gradients = {name: parameter.grad for name, parameter in device.named_parameters().items()}
    largest = max(np.abs(p.grad).max() for p in host.named_parameters().values())
    for key, parameter in host.named_parameters().items():
        # a bias before a norm has no gradient but rounding: errors are those of the others
        np.testing.assert_allclose(
            gradients[key].get(), parameter.grad, rtol=1e-4, atol=1e-5 * largest, err_msg=key
        )


@pytest.mark.parametrize("name", NETWORKS)
def test_loss_curves_agree_and_repeat(name):
    images, labels = batch(name)
    want = train(network(name), images, labels)
    with emulated():
        got = train(network(name, device=True), on_device(images), on_device(labels))
    with emulated(schedule=3):
        again = train(network(name, device=True), on_device(images), on_device(labels))
    assert got == again
    assert want[-1] < want[0]
    np.testing.assert_allclose(got, want, rtol=1e-3)


def test_nothing_of_a_training_step_is_left_to_the_reference(monkeypatch):
    """What the stand-in itself computes is the adding of gradients, nothing that is large."""
    monkeypatch.setattr(standin.ndarray, "__matmul__", None)
    monkeypatch.setattr(standin.ndarray, "__mul__", None)
    images, labels = batch("3d")
    with emulated():
        train(network("3d", device=True), on_device(images), on_device(labels), steps=1)
