"""The mathematics runs on arrays as strict as CuPy's, and gives the very same bits.

Nothing here needs a GPU: `standin` refuses what CuPy refuses and computes with NumPy.
"""

import inspect
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import standin

import minibrain.functional as F
from minibrain.arrays import array_module, find_device, find_precision
from minibrain.errors import InputError
from minibrain.models import UNet
from minibrain.optimizers import Adam

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 4, 6, 3))
WEIGHT = RNG.standard_normal((3, 3, 3, 3))
BIAS, GAMMA, BETA, MEAN = RNG.standard_normal((4, 3))
VARIANCE = RNG.uniform(0.5, 2, 3)
GATE = (
    *(RNG.standard_normal((1, 1, channels, 2)) for channels in (3, 2)),
    RNG.standard_normal(2),
    RNG.standard_normal((1, 1, 2, 1)),
    RNG.standard_normal(1),
)
LABELS = RNG.integers(0, 3, X.shape[:-1])
KEY = (7, 3, 1)

# name of the pair: every way to call its forward that takes another path through the code
CALLS = {
    "attention_gate": [((X, X[..., :2], *GATE), {})],
    "conv": [
        ((X, WEIGHT, BIAS), {"padding": "same"}),
        ((X, WEIGHT), {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "dilation": (1, 2)}),
        ((X[:, 0], WEIGHT[0], BIAS), {}),
        ((X[:, None], WEIGHT[None], BIAS), {}),
    ],
    "conv_transpose": [
        ((X, WEIGHT, BIAS), {"stride": 2, "padding": 1, "output_padding": 1}),
        ((X, WEIGHT), {"dilation": 2}),
    ],
    "max_pool": [((X,), {}), ((X, 3), {"stride": 1, "padding": 1, "dilation": (1, 2)})],
    "upsample": [((X,), {}), ((X, (1, 3)), {})],
    "concat": [((X, X[..., :2]), {})],
    "batch_norm": [
        ((X, GAMMA, BETA), {}),
        ((X, GAMMA, BETA, MEAN, VARIANCE), {"training": False}),
    ],
    "instance_norm": [((X, GAMMA, BETA), {})],
    "norm_relu": [((X, GAMMA, BETA), {}), ((X, GAMMA, BETA), {"rate": 0.5, "key": KEY})],
    "relu": [((X,), {})],
    "sigmoid": [((X,), {})],
    "softmax": [((X,), {})],
    "dropout": [((X, 0.5, KEY), {}), ((X, 0.0, KEY), {})],
    "cross_entropy": [((X, LABELS), {}), ((X, LABELS.astype(np.uint8)), {})],
    "dice_loss": [((X, LABELS), {}), ((X, LABELS), {"per_sample": True, "smooth": 1e-6})],
    "cce_dice_loss": [((X, LABELS), {})],
}
EVERY_CALL = [(name, *call) for name, calls in CALLS.items() for call in calls]


def on_device(value, dtype=None):
    """Arrays to the stand-in; floats among them in the dtype."""
    if not isinstance(value, np.ndarray):
        return value
    return standin.asarray(value, dtype if value.dtype.kind == "f" else None)


def on_host(value, dtype):
    is_float = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return value.astype(dtype) if is_float else value


def assert_same_bits(device, host):
    """An array of the stand-in holds exactly what NumPy computed, in the same dtype."""
    if host is None:
        assert device is None
        return
    assert isinstance(device, standin.ndarray)
    assert device.dtype == host.dtype
    assert np.array_equal(device.get(), host)


def test_every_pair_of_the_package_is_called_here():
    functions = dict(inspect.getmembers(F, inspect.isfunction))
    pairs = {name.removesuffix("_forward") for name in functions if name.endswith("_forward")}
    assert pairs == set(CALLS)
    assert functions.keys() == {f"{p}_{way}" for p in pairs for way in ("forward", "backward")}


@pytest.mark.usefixtures("without_twins")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "arguments", "options"), EVERY_CALL)
def test_every_pair_gives_the_same_bits_on_strict_arrays(name, arguments, options, dtype):
    forward, backward = getattr(F, f"{name}_forward"), getattr(F, f"{name}_backward")
    host, host_saved = forward(*(on_host(a, dtype) for a in arguments), **options)
    device, device_saved = forward(*(on_device(a, dtype) for a in arguments), **options)
    assert_same_bits(device, host)
    assert host.dtype == (np.float64 if host.ndim == 0 else dtype)  # a loss is a float64 scalar
    dhost = np.random.default_rng(1).standard_normal(host.shape).astype(host.dtype)
    gradients = backward(dhost, host_saved)
    device_gradients = backward(on_device(dhost), device_saved)
    if not isinstance(gradients, tuple):
        gradients, device_gradients = (gradients,), (device_gradients,)
    for device_gradient, gradient in zip(device_gradients, gradients, strict=True):
        assert_same_bits(device_gradient, gradient)
        assert gradient.dtype == dtype  # nothing widens float32 on the way


@pytest.mark.parametrize("name", ["cross_entropy", "dice_loss", "cce_dice_loss"])
def test_a_loss_takes_a_python_number_as_its_gradient(name):
    _, saved = getattr(F, f"{name}_forward")(on_device(X), on_device(LABELS))
    assert isinstance(getattr(F, f"{name}_backward")(1.0, saved), standin.ndarray)


def train(network, images, labels, steps=3):
    """A few steps in the open; the losses as Python numbers."""
    optimizer = Adam(network.named_parameters(), learning_rate=1e-2)
    losses = []
    for step in range(steps):
        logits, saved = network.forward(images, training=True, step=step)
        loss, loss_saved = F.cce_dice_loss_forward(logits, labels)
        network.backward(F.cce_dice_loss_backward(1.0, loss_saved), saved)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses


@pytest.mark.usefixtures("without_twins")
@pytest.mark.parametrize(
    "options",
    [
        {"norm": "instance", "up": "transposed", "dropout": 0.3, "plain_end": True},
        {"norm": "batch", "up": "nearest", "dropout": 0.2},
        {"norm": "none", "up": "nearest", "initializer": "glorot"},
    ],
)
def test_training_gives_the_same_bits_on_strict_arrays(options):
    host, device = (UNet(2, 3, 3, channels=(4, 6, 8), seed=5, **options) for _ in range(2))
    for parameter in (device.named_parameters() | device.named_buffers()).values():
        parameter.value = standin.asarray(parameter.value)
    images = np.random.default_rng(2).standard_normal((2, 8, 8, 3)).astype(np.float32)
    labels = np.random.default_rng(3).integers(0, 3, (2, 8, 8)).astype(np.uint8)
    losses = train(host, images, labels)
    assert train(device, standin.asarray(images), standin.asarray(labels)) == losses
    assert losses[-1] < losses[0]
    for kind in ("named_parameters", "named_buffers"):
        here, there = getattr(host, kind)(), getattr(device, kind)()
        assert here.keys() == there.keys()
        for name in here:
            assert_same_bits(there[name].value, here[name].value)
    assert_same_bits(
        device.forward(standin.asarray(images))[0], host.forward(images)[0]
    )  # inference, with running statistics


def test_precision_is_what_suits_the_device_unless_it_is_given():
    assert find_precision("auto", "cuda") == "bf16"
    assert find_precision("auto", "cpu") == "fp32"
    assert find_precision("fp64", "cuda") == "fp64"
    with pytest.raises(InputError, match="precision: got 'fp8', expected one of bf16"):
        find_precision("fp8", "cpu")


@pytest.mark.parametrize(
    ("count", "capability", "why"),
    [(1, "90", None), (1, "80", None), (1, "75", "sm_75, expected sm_80"), (0, "", "no CUDA dev")],
)
def test_a_gpu_is_taken_if_it_is_one_that_kernels_are_for(count, capability, why, monkeypatch):
    runtime = SimpleNamespace(getDeviceCount=lambda: count)
    device = SimpleNamespace(compute_capability=capability)
    cuda = SimpleNamespace(runtime=runtime, Device=lambda: device)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    assert find_device("auto") == ("cpu" if why else "cuda")
    if why:
        with pytest.raises(InputError, match=f"device cuda is not available: .*{why}"):
            find_device("cuda")


# The stand-in itself: it must refuse, or the tests above prove nothing


def test_the_module_is_found_by_the_type_of_an_array():
    assert array_module(standin.asarray([1.0])) is standin
    assert array_module(np.ones(1)) is np


@pytest.mark.parametrize(
    "mixture",
    [
        lambda device, host: np.asarray(device),
        lambda device, host: np.exp(device),
        lambda device, host: np.sum(device),
        lambda device, host: np.concatenate([device, device]),
        lambda device, host: device + host,
        lambda device, host: host + device,
        lambda device, host: host @ device,
        lambda device, host: standin.maximum(device, host),
        lambda device, host: standin.concatenate([device, host]),
        lambda device, host: standin.add(device, 1, out=host),
        lambda device, host: standin.sum(device, where=device > 0),
        lambda device, host: standin.max(device, initial=0),
        lambda device, host: device.__setitem__(0, host),
        lambda device, host: device.__iadd__(host),
        lambda device, host: host.__iadd__(device),
        lambda device, host: range(device.astype(int).sum()),
    ],
)
def test_the_stand_in_refuses_what_cupy_refuses(mixture):
    with pytest.raises(TypeError):
        mixture(standin.asarray(np.ones((2, 2))), np.ones((2, 2)))


@pytest.mark.parametrize("name", ["errstate", "block", "insert", "vecdot", "unstack", "random"])
def test_the_stand_in_lacks_what_cupy_lacks(name):
    with pytest.raises(AttributeError):
        getattr(standin, name)


def test_scattered_addition_in_no_fixed_order_is_missing():
    assert not hasattr(standin.add, "at")


def test_reductions_stay_on_the_device_and_python_numbers_may_be_mixed_in():
    total = (2 * standin.asarray([1.0, 2]) + np.float64(1)).sum()
    assert isinstance(total, standin.ndarray)
    assert total.shape == ()
    assert float(total) == 8
