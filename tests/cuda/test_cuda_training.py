"""Adam and whole training steps by CUDA kernels, run on the CPU, against NumPy."""

import time
import weakref

import numpy as np
import pytest
import standin
from compare import BFLOAT16, assert_close, on_device, random
from emulator import SCHEDULES, emulated

import minibrain.functional as F
from minibrain import kernels
from minibrain.errors import InputError
from minibrain.kernels.cuda import loader
from minibrain.memory import estimate_memory
from minibrain.models import UNet, brain_2d, brain_3d, brain_3d_attention
from minibrain.optimizers import Adam, adam_inplace, clear_inplace, gradient_norm, scale_inplace
from minibrain.selftest import self_test
from minibrain.study.trace import trace_step
from minibrain.training import train_step

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


def test_adam_reads_its_numbers_from_the_device_when_it_runs():
    step, rate, taken = (standin.asarray(n) for n in (np.uint32(0), np.float64(0), np.bool_(0)))
    arrays = [np.full(1500, number, np.float32) for number in (0.1, 0.2, 0.3, 0.4)]
    want, got = (list(map(copy, arrays)) for copy in (np.copy, on_device))
    for number, learning_rate, is_taken in ((3, 1e-2, True), (4, 2e-3, False), (5, 1e-3, True)):
        step[...], rate[...], taken[...] = number, learning_rate, is_taken
        numbers = CONSTANTS | {"learning_rate": rate, "taken": taken}
        with emulated():
            adam_inplace(*got[:2], got[2:3], got[3:], step, **numbers)
        numbers = CONSTANTS | {"learning_rate": learning_rate, "taken": is_taken}
        adam_inplace.reference(*want[:2], want[2:3], want[3:], number, **numbers)
        for array, expected in zip(got, want, strict=True):
            assert_close(array, expected, 8)


def test_gradients_are_cleared_in_one_launch():
    arrays = [on_device(np.full(shape, np.nan, np.float32)) for shape in [(3, 5), (1,), (1025,)]]
    with emulated() as emulator:
        clear_inplace(arrays)
    assert emulator.launches == ["optimizers.clear"]
    assert not any(array.get().any() for array in arrays)


def test_gradients_are_scaled_by_a_number_on_the_device():
    arrays = [random(np.random.default_rng(0), shape) for shape in [(3, 5), (1,), (1025,)]]
    factor = standin.asarray(np.float64(1 / 3))
    scaled = list(map(on_device, arrays))
    with emulated() as emulator:
        scale_inplace(scaled, factor)
    assert emulator.launches == ["optimizers.scale"]
    scale_inplace.reference(arrays, 1 / 3)
    for got, want in zip(scaled, arrays, strict=True):
        assert got.get().tobytes() == want.tobytes()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_norm_of_all_gradients(schedule):
    rng = np.random.default_rng(0)
    gradients = [random(rng, shape) for shape in [(3, 3, 2, 5), (1,), (1025,), (7, 400)]]
    with emulated(schedule) as emulator:
        got = gradient_norm(list(map(on_device, gradients)))
        large = gradient_norm([on_device(np.full(4, 1e25, np.float32))])
        none = gradient_norm([on_device(np.array([np.nan], np.float32))])
    assert emulator.launches == ["optimizers.sum_squares", "reduce.add_parts_to_double"] * 3
    assert float(large) == pytest.approx(2e25)
    assert np.isnan(float(none))
    assert float(got) == pytest.approx(gradient_norm.reference(gradients), rel=1e-13)


NETWORKS = {
    "3d": {"rank": 3, "norm": "instance", "up": "transposed", "dropout": 0.3, "plain_end": True},
    "2d": {"rank": 2, "norm": "batch", "up": "nearest", "dropout": (0.0, 0.1, 0.2)},
}


def network(name, device=False, dtype=np.float32):
    model = UNet(
        in_channels=3, classes=4, channels=(4, 6, 8), seed=5, dtype=dtype, **NETWORKS[name]
    )
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
def test_gradients_of_a_bfloat16_network_agree(name):
    """Nearly to the bit with NumPy's of the same precision, and in the main with float64's."""
    images, labels = batch(name)
    images = images.astype(BFLOAT16)
    exact, host = network(name, dtype=np.float64), network(name, dtype=BFLOAT16)
    device = network(name, device=True, dtype=BFLOAT16)
    exact_loss = forward_backward(exact, images.astype(np.float64), labels)
    loss = forward_backward(host, images, labels)
    with emulated() as emulator:
        device_loss = forward_backward(device, on_device(images), on_device(labels))
    assert len(set(emulator.launches)) > 20
    assert loss == pytest.approx(exact_loss, rel=1e-2)
    assert device_loss == pytest.approx(loss, rel=1e-3)
    gradients, exact_gradients, device_gradients = map(all_gradients, (host, exact, device))
    assert gradients.dtype == device_gradients.dtype == np.float32
    size = np.linalg.norm(exact_gradients)
    away = np.linalg.norm(gradients - exact_gradients)
    between = np.linalg.norm(device_gradients - gradients)
    assert away < 0.3 * size  # a ReLU that opens for one and not for the other weighs most
    assert between < 1e-3 * size


def all_gradients(model):
    return np.concatenate([to_numpy(p.grad).ravel() for p in model.named_parameters().values()])


def to_numpy(array):
    return array.get() if isinstance(array, standin.ndarray) else array


# How nearly losses agree. In bfloat16 one rounding that goes the other way grows from step to step,
# and with other data it may grow further than this, so the next test begins every step anew.
CURVES = {np.float32: 1e-5, BFLOAT16: 1e-3}


@pytest.mark.parametrize("dtype", CURVES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_loss_curves_agree_and_repeat(name, dtype):
    images, labels = batch(name)
    images = images.astype(dtype)
    want = train(network(name, dtype=dtype), images, labels)
    with emulated():
        model = network(name, device=True, dtype=dtype)
        got = train(model, on_device(images), on_device(labels))
    with emulated(schedule=3):
        model = network(name, device=True, dtype=dtype)
        again = train(model, on_device(images), on_device(labels))
    assert got == again
    assert want[-1] < want[0]
    assert got[-1] < got[0]
    np.testing.assert_allclose(got, want, rtol=CURVES[dtype])
    assert {p.value.dtype for p in model.named_parameters().values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_step_of_a_bfloat16_network_agrees_that_begins_where_the_hosts_does(name):
    """So nothing grows from step to step. Where a ReLU opens for one and not for the other, a
    third of a gradient may differ, but that is rare: not at every step, and not at most of them."""
    images, labels = batch(name)
    images = images.astype(BFLOAT16)
    host, device = network(name, dtype=BFLOAT16), network(name, device=True, dtype=BFLOAT16)
    from_host, to_device = (m.named_parameters() | m.named_buffers() for m in (host, device))
    optimizer, errors = Adam(host.named_parameters(), learning_rate=1e-2), []
    for step in range(5):
        for key, array in to_device.items():
            array.value = on_device(from_host[key].value)  # which clears the gradient
        optimizer.zero_grad()
        loss = forward_backward(host, images, labels, step)
        with emulated():
            device_loss = forward_backward(device, on_device(images), on_device(labels), step)
        assert device_loss == pytest.approx(loss, rel=1e-3)
        gradients = all_gradients(host)
        away = np.linalg.norm(all_gradients(device) - gradients)
        errors.append(away / np.linalg.norm(gradients))
        optimizer.step()
    assert min(errors) < 1e-3
    assert np.median(errors) < 2e-2


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16])
@pytest.mark.parametrize("network", [brain_3d, brain_2d, brain_3d_attention])
def test_the_self_test_before_training_finds_the_kernels_right(network, dtype):
    model = network(channels=(16, 32, 64), dropout=0.1, dtype=dtype)
    for parameter in model.named_parameters().values():
        parameter.value = on_device(parameter.value)
    with emulated() as emulator:
        right, findings = self_test(model)
    assert right, findings
    by_planes = any(name.startswith("conv_planes") for name in emulator.launches)
    assert by_planes == (dtype == BFLOAT16)


def test_nothing_of_a_training_step_is_left_to_the_reference(monkeypatch):
    """What the stand-in itself computes is the adding of gradients, nothing that is large. And
    nothing waits for the device before the loss is asked for."""
    for name in ("__matmul__", "__mul__", "get", "__int__", "__bool__", "item", "tolist"):
        monkeypatch.setattr(standin.ndarray, name, None, raising=False)
    images, labels = (on_device(array) for array in batch("3d"))
    model = network("3d", device=True)
    optimizer = Adam(model.named_parameters())
    floats = []
    monkeypatch.setattr(standin.ndarray, "__float__", lambda self: floats.append(self) or 0.0)
    with emulated():
        train_step(model, optimizer, images, labels, step=0)
    assert len(floats) == 1  # the loss, when all is computed


def test_a_step_is_traced_though_not_all_that_it_makes_is_written(monkeypatch):
    monkeypatch.setattr(kernels, "_time_when_done", lambda array: time.perf_counter())
    images, labels = batch("3d")
    host, device = network("3d"), network("3d", device=True)
    want = trace_step(host, Adam(host.named_parameters()), images, labels)
    with emulated():
        got = trace_step(device, Adam(device.named_parameters()), images, labels)
    assert got.loss == pytest.approx(want.loss, rel=1e-6)
    for node, other in zip(got.nodes, want.nodes, strict=True):
        assert (node.name, node.uses, node.forward.flops) == (
            other.name,
            other.uses,
            other.forward.flops,
        )
        assert node.result.std == pytest.approx(other.result.std, rel=1e-4)
    kept = {node.name: {saved.field: saved for saved in node.saved} for node in got.nodes}
    assert kept["encoder0.conv2"]["x.raw"].kept_by == "encoder0.norm1"
    assert got.bytes_held()[-1] == want.bytes_held()[-1]  # the batch, and what the loss keeps
    assert bytes_saved(got, "y.raw") == bytes_saved(got, "y") == 0  # a convolution keeps them
    assert 0 < bytes_saved(got, "y.lines") < 0.1 * bytes_saved(want, "y")


def bytes_saved(trace, field):
    return sum(s.bytes for node in trace.nodes for s in node.saved if s.field == field)


def test_the_3d_reference_network_is_trained_in_4_gigabytes():
    """In bfloat16, at 2x160x160x128: what the kernels keep is counted without running them."""
    model = brain_3d(dtype=BFLOAT16)
    for parameter in model.named_parameters().values():
        parameter.value = on_device(parameter.value)
    with emulated(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "launch", lambda *arguments, **options: None)
        assert estimate_memory(model, (2, 160, 160, 128, 4)) < 4e9


@pytest.mark.parametrize("allocations", [0, 1, 40, 90])
def test_too_little_memory_is_one_error_with_the_sizes(allocations):
    images, labels = batch("3d")
    model = network("3d", device=True)
    optimizer = Adam(model.named_parameters())
    with emulated(), pytest.MonkeyPatch.context() as patch:
        enough, left = standin.empty, [allocations]

        def empty(shape, dtype):
            left[0] -= 1
            if left[0] < 0:
                raise MemoryError("Out of memory allocating 1,024 bytes (allocated so far: 2 GB).")
            return enough(shape, dtype)

        patch.setattr(standin, "empty", empty)
        with pytest.raises(InputError, match=r"\(2, 8, 12, 4, 3\).*1,024 bytes.*smaller") as error:
            train_step(model, optimizer, images, labels, step=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=["float32", "bfloat16"])
def test_the_estimate_of_memory_is_what_a_step_holds_on_the_device(monkeypatch, dtype):
    """Rather too much than too little: there are gaps, and sums in parts."""
    alive, peak = weakref.WeakSet(), [0]
    begin = standin.ndarray.__init__
    monkeypatch.setattr(
        standin.ndarray, "__init__", lambda self, host: begin(self, host) or alive.add(self)
    )

    def measured(*arguments, **options):
        launch(*arguments, **options)
        owners = {id(owner): owner.nbytes for owner in map(owner_of, alive)}
        peak[0] = max(peak[0], sum(owners.values()))

    model = UNet(3, 3, 4, channels=(4, 4, 4), dtype=dtype, **WIDE_STEP)
    for parameter in model.named_parameters().values():
        parameter.value = standin.asarray(parameter.value)
    shape = (1, 24, 24, 16, 3)
    images, labels = np.zeros(shape, np.float32), np.zeros(shape[:-1], np.uint8)
    images[:] = np.random.default_rng(0).standard_normal(shape)
    with emulated() as emulator, pytest.MonkeyPatch.context() as patch:
        estimate = estimate_memory(model, shape)
        launch = emulator.launch
        patch.setattr(loader, "launch", measured)
        train_step(model, Adam(model.named_parameters()), images, labels, step=0)
    assert peak[0] < estimate < 1.6 * peak[0]


WIDE_STEP = {"norm": "instance", "up": "transposed", "dropout": 0.1}


def owner_of(array):
    host = array._host
    while isinstance(host.base, np.ndarray):
        host = host.base
    return host
