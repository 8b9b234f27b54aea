"""The training step, what it needs of memory, and networks on disk."""

import io
import pickle

import numpy as np
import pytest

from minibrain.errors import InputError
from minibrain.functional import cce_dice_loss_backward, cce_dice_loss_forward
from minibrain.models import UNet
from minibrain.optimizers import Adam, gradient_norm
from minibrain.runs import checkpoint
from minibrain.training import train_step


def a_batch(shape, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape, np.float32), rng.integers(0, classes, shape[:-1], np.uint8)


def tiny(**options):
    return UNet(2, 2, 3, **{"channels": (4, 6), "norm": "batch", "dropout": 0.1} | options)


def everything(network):
    return network.named_parameters() | network.named_buffers()


def weight_bytes(network):
    return {name: p.value.tobytes() for name, p in everything(network).items()}


# The step


@pytest.mark.parametrize(
    ("norm", "up"), [("instance", "transposed"), ("batch", "nearest"), ("none", "nearest")]
)
def test_the_loss_goes_down_on_what_can_be_learned(norm, up):
    """The class of a voxel is whether its left neighbour is bright: a 3 by 3 window sees it."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((4, 16, 16, 1)).astype(np.float32)
    labels = (np.roll(images[..., 0], 1, axis=1) > 0).astype(np.uint8)
    network = UNet(2, 1, 2, channels=(8, 8), norm=norm, up=up)
    optimizer = Adam(network.named_parameters(), learning_rate=0.02)
    losses = [train_step(network, optimizer, images, labels, step) for step in range(60)]
    assert all(type(loss) is float for loss in losses)
    assert losses[-1] < 0.25 * losses[0]
    predictions = network.forward(images)[0].argmax(axis=-1)
    assert (predictions == labels).mean() > 0.9


def test_a_step_written_out():
    """Old gradients are forgotten, dropout takes the step's number, Adam runs once."""
    images, labels = a_batch((2, 8, 8, 2), classes=3)
    network, twin = tiny(), tiny()
    optimizer, twin_optimizer = (Adam(n.named_parameters(), 0.01) for n in (network, twin))
    for parameter in network.named_parameters().values():
        parameter.grad.fill(9)
    loss = train_step(network, optimizer, images, labels, step=3)
    logits, saved = twin.forward(images, training=True, step=3)
    expected, loss_saved = cce_dice_loss_forward(logits, labels)
    twin.backward(cce_dice_loss_backward(1.0, loss_saved), saved, input_gradient=False)
    twin_optimizer.step()
    assert loss == expected
    assert weight_bytes(network) == weight_bytes(twin)
    other = tiny()
    train_step(other, Adam(other.named_parameters(), 0.01), images, labels, step=4)
    assert weight_bytes(other) != weight_bytes(network)


def test_images_are_brought_to_the_dtype_of_the_network():
    images, labels = a_batch((2, 8, 8, 2), classes=3)
    before = images.copy(), labels.copy()
    network = tiny(dtype=np.float64)
    train_step(network, Adam(network.named_parameters()), images, labels, 0)
    assert {p.grad.dtype for p in network.named_parameters().values()} == {np.dtype(np.float64)}
    assert np.array_equal(images, before[0])
    assert np.array_equal(labels, before[1])


def test_a_network_that_diverged_has_a_loss_that_is_nan_and_no_warning():
    network = tiny()
    for parameter in network.named_parameters().values():
        parameter.value += np.nan
    images, labels = a_batch((2, 8, 8, 2), classes=3)
    assert np.isnan(train_step(network, Adam(network.named_parameters()), images, labels, 0))


def test_a_step_that_is_not_finite_changes_nothing():
    """Neither parameters nor running statistics nor Adam."""
    images, labels = a_batch((2, 8, 8, 2), classes=3)
    network = tiny()
    optimizer = Adam(network.named_parameters(), 0.01)
    train_step(network, optimizer, images, labels, 0)
    before = weight_bytes(network), optimizer.mean.tobytes(), optimizer.square.tobytes()
    images[0, 0, 0, 0] = np.nan
    assert np.isnan(train_step(network, optimizer, images, labels, 1))
    assert before == (weight_bytes(network), optimizer.mean.tobytes(), optimizer.square.tobytes())
    assert optimizer.steps == 1
    assert not np.isnan(train_step(network, optimizer, *a_batch((2, 8, 8, 2), classes=3), 1))


def test_a_finite_loss_with_a_gradient_that_is_not_is_skipped(monkeypatch):
    images, labels = a_batch((2, 8, 8, 2), classes=3)
    network = tiny()
    before = weight_bytes(network)
    backward = network.backward

    def overflowing(dlogits, saved, input_gradient):
        backward(dlogits, saved, input_gradient)
        network.named_parameters()["head.bias"].grad[0] = np.inf

    monkeypatch.setattr(network, "backward", overflowing)
    optimizer = Adam(network.named_parameters(), 0.01)
    assert np.isnan(train_step(network, optimizer, images, labels, 0))
    assert weight_bytes(network) == before


@pytest.mark.parametrize("share", [0.25, 4.0])
def test_long_gradients_are_clipped_to_the_norm(share):
    images, labels = a_batch((2, 8, 8, 2), classes=3)
    free, clipped = tiny(), tiny()
    train_step(free, Adam(free.named_parameters()), images, labels, 0)
    gradients = [p.grad for p in free.named_parameters().values()]
    norm = gradient_norm(gradients)
    exact = np.linalg.norm(np.concatenate([g.ravel().astype(float) for g in gradients]))
    assert norm == pytest.approx(exact, rel=1e-12)
    optimizer = Adam(clipped.named_parameters())
    train_step(clipped, optimizer, images, labels, 0, clip_norm=share * norm)
    for free_gradient, parameter in zip(gradients, optimizer.parameters, strict=True):
        np.testing.assert_allclose(parameter.grad, min(share, 1) * free_gradient, rtol=1e-6)


@pytest.mark.parametrize("clip_norm", [0, -1.0, np.nan])
def test_a_norm_to_clip_to_is_above_0(clip_norm):
    """Below, the step would lead uphill; of NaN, nothing would be left of the weights."""
    network = tiny()
    before, optimizer = weight_bytes(network), Adam(network.named_parameters())
    with pytest.raises(ValueError, match=f"clip_norm must be above 0, got {clip_norm}"):
        train_step(network, optimizer, *a_batch((2, 8, 8, 2), classes=3), 0, clip_norm=clip_norm)
    assert weight_bytes(network) == before
    assert optimizer.steps == 0


def test_the_norm_of_large_gradients_does_not_overflow():
    assert gradient_norm([np.full(4, 1e25, np.float32)]) == pytest.approx(2e25)
    assert gradient_norm([np.array([np.inf], np.float32)]) == np.inf
    assert np.isnan(gradient_norm([np.array([np.nan], np.float32)]))


# On disk


@pytest.fixture
def trained(tmp_path):
    """A network after two steps, its optimizer, and the file they were saved in."""
    network = tiny()
    optimizer = Adam(network.named_parameters(), learning_rate=0.01)
    for step in range(2):
        train_step(network, optimizer, *a_batch((2, 8, 8, 2), classes=3), step)
    path = tmp_path / "last.npz"
    checkpoint.save(path, network, optimizer, {"epoch": 7, "name": "§", "rates": [0.1, None]})
    return network, optimizer, path


def test_a_network_comes_back_bit_for_bit(trained):
    network, _, path = trained
    other = tiny(seed=9)
    assert weight_bytes(other) != weight_bytes(network)
    about = checkpoint.load_network(path, other)
    assert about == {"epoch": 7, "name": "§", "rates": [0.1, None]}
    assert weight_bytes(other) == weight_bytes(network)
    x = a_batch((1, 8, 8, 2))[0]
    assert other.forward(x)[0].tobytes() == network.forward(x)[0].tobytes()
    assert not any(p.grad.any() for p in other.named_parameters().values())


def test_a_checkpoint_holds_adam_and_is_read_without_pickle(trained):
    network, optimizer, path = trained
    with np.load(path, allow_pickle=False) as stored:
        assert {k for k in stored if k.startswith("network/")} == {
            f"network/{name}" for name in everything(network)
        }
        assert np.array_equal(stored["adam/mean"], optimizer.mean)
        assert np.array_equal(stored["adam/square"], optimizer.square)
        assert stored["adam/steps"] == 2


def test_a_network_takes_its_own_dtype_from_the_file(trained):
    network, _, path = trained
    other = tiny(dtype=np.float64)
    checkpoint.load_network(path, other)
    for name, parameter in everything(other).items():
        assert parameter.value.dtype == np.float64
        assert np.array_equal(parameter.value, everything(network)[name].value), name


def test_arrays_that_were_loaded_can_be_trained(trained):
    """Not read-only, and not shared between parameters."""
    other = tiny()
    checkpoint.load_network(trained[2], other)
    before = weight_bytes(other)
    train_step(other, Adam(other.named_parameters()), *a_batch((2, 8, 8, 2), classes=3), 2)
    after = weight_bytes(other)
    assert all(before[name] != after[name] for name in before if name.endswith("weight"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": (4, 7)}, ["bottleneck.conv1.weight", "(3, 3, 4, 6)", "(3, 3, 4, 7)"]),
        ({"channels": (4, 6, 8)}, ["missing or not expected"]),
        ({"norm": "instance"}, ["running_", "missing or not expected"]),
        ({"norm": "none"}, ["norm", "missing or not expected"]),
        ({"up": "nearest"}, ["missing or not expected"]),
    ],
)
def test_the_checkpoint_of_another_network_is_refused(trained, options, words):
    other = tiny(**options)
    before = weight_bytes(other)
    with pytest.raises(InputError) as error:
        checkpoint.load_network(trained[2], other)
    assert weight_bytes(other) == before
    missing = [word for word in [str(trained[2]), *words] if word not in str(error.value)]
    assert not missing, f"{missing} not in {error.value}"
    assert "\n" not in str(error.value)


def an_npz(arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def an_npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def flipped_in_the_directory(data, offset, bits):
    """With bits changed in the zip directory's first entry."""
    position = data.index(b"PK\x01\x02") + offset
    return data[:position] + bytes([data[position] ^ bits]) + data[position + 1 :]


DAMAGES = {
    "empty": lambda data: b"",
    "text": lambda data: b"no checkpoint at all",
    "half": lambda data: data[: len(data) // 2],
    "one byte short": lambda data: data[:-1],
    "encrypted": lambda data: flipped_in_the_directory(data, 8, 1),
    "unknown compression": lambda data: flipped_in_the_directory(data, 10, 64),
    "a pickle": lambda data: pickle.dumps({"weight": 1}),
    "a pickle inside": lambda data: an_npz({"about": np.array([{}], object)}),
    "one array": lambda data: an_npy(np.zeros(3)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_or_pickled_file_is_an_input_error(trained, damage):
    _, _, path = trained
    path.write_bytes(damage(path.read_bytes()))
    other = tiny()
    before = weight_bytes(other)
    with pytest.raises(InputError, match="cannot be read as a checkpoint") as error:
        checkpoint.load_network(path, other)
    assert str(path) in str(error.value)
    assert weight_bytes(other) == before


def test_a_flipped_bit_in_an_array_is_noticed(trained):
    _, _, path = trained
    data = path.read_bytes()
    with np.load(path) as stored:
        array = stored["network/bottleneck.conv1.weight"].tobytes()
    start = data.index(array)
    for offset in np.random.default_rng(0).integers(start, start + len(array), 40):
        damaged = bytearray(data)
        damaged[offset] ^= 1 << (int(offset) % 8)
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="cannot be read as a checkpoint"):
            checkpoint.load_network(path, tiny())


def test_a_checkpoint_that_is_not_there_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"missing\.npz"):
        checkpoint.load_network(tmp_path / "missing.npz", tiny())


def test_a_write_that_fails_leaves_the_old_checkpoint(trained, monkeypatch):
    network, optimizer, path = trained
    before = path.read_bytes()

    def full_disk(file, **arrays):
        file.write(b"half of a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(InputError, match=r"last\.npz: cannot be written: No space left"):
        checkpoint.save(path, network, optimizer, {})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_saving_again_replaces_the_file_and_leaves_nothing_beside_it(trained):
    network, optimizer, path = trained
    checkpoint.save(path, network, optimizer, {"epoch": 8})
    assert checkpoint.load_network(path, tiny())["epoch"] == 8
    assert list(path.parent.iterdir()) == [path]
