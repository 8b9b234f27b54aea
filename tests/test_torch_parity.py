"""Step for step equal to PyTorch, in float64: each operation, and training both networks.

The peers are `benchmarks/torch_unet.py`; nothing of ours but the initial weights goes into them.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import minibrain.functional as F
from minibrain.models import AttentionUNet, brain_2d, brain_3d, brain_3d_attention
from minibrain.optimizers import Adam

torch = pytest.importorskip("torch")
torch_unet = import_module("benchmarks.torch_unet")  # after torch, which may be absent
nn = torch.nn
torch.set_num_threads(1)  # the other core is ours


# Layouts: ours are channels last, (N, *S, C) and (*K, C, O); those of torch channels first


def to_torch(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def weight_to_torch(value):
    """(*K, A, B) -> (B, A, *K) for either convolution; vectors stay as they are."""
    if value.ndim > 1:
        value = np.moveaxis(value, [-1, -2], [0, 1])
    return torch.from_numpy(np.ascontiguousarray(value))


# The operations


def assert_equal_to_torch(ours, theirs):
    """Up to the rounding of float64, relative to the largest value."""
    for actual, expected in zip(ours, theirs, strict=True):
        expected = expected.detach().numpy()
        scale = np.abs(expected).max()
        np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-11 * scale)


def leaf(tensor):
    return tensor.requires_grad_()


def random_case(seed, rank, channels):
    """An input of odd sizes, and the generator for everything else."""
    rng = np.random.default_rng([seed, rank])
    size = rng.integers(5, 9, rank)
    return rng.standard_normal((rng.integers(1, 4), *size, channels)), rng


def assert_pair(ours, saved, backward, theirs, leaves, rng):
    """Same value, and under one random upstream gradient the same gradient of every leaf."""
    assert_equal_to_torch([np.moveaxis(ours, -1, 1)], [theirs])
    dy = rng.standard_normal(ours.shape)
    gradients = backward(dy, saved)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    theirs.backward(to_torch(dy))
    assert_equal_to_torch(
        [
            np.moveaxis(g, -1, 1) if i == 0 else weight_to_torch(g).numpy()
            for i, g in enumerate(gradients)
        ],
        [tensor.grad for tensor in leaves],
    )


RANKS = pytest.mark.parametrize("rank", [1, 2, 3])
SEEDS = pytest.mark.parametrize("seed", range(4))


@RANKS
@SEEDS
def test_conv(seed, rank):
    x, rng = random_case(seed, rank, 3)
    weight = rng.standard_normal((*rng.integers(1, 4, rank), 3, 4))
    bias = rng.standard_normal(4)
    options = {name: tuple(map(int, rng.integers(1, 3, rank))) for name in ("stride", "dilation")}
    options["padding"] = tuple(map(int, rng.integers(0, 3, rank)))
    y, saved = F.conv_forward(x, weight, bias, **options)
    leaves = [leaf(to_torch(x)), leaf(weight_to_torch(weight)), leaf(torch.from_numpy(bias))]
    function = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[rank - 1]
    assert_pair(y, saved, F.conv_backward, function(*leaves, **options), leaves, rng)


@RANKS
@SEEDS
def test_conv_transpose(seed, rank):
    x, rng = random_case(seed, rank, 3)
    weight = rng.standard_normal((*rng.integers(2, 4, rank), 4, 3))
    bias = rng.standard_normal(4)
    stride = tuple(map(int, rng.integers(1, 4, rank)))
    options = {
        "stride": stride,
        "padding": tuple(map(int, rng.integers(0, 2, rank))),
        "dilation": tuple(map(int, rng.integers(1, 3, rank))),
        "output_padding": tuple(s - 1 for s in stride),
    }
    y, saved = F.conv_transpose_forward(x, weight, bias, **options)
    leaves = [leaf(to_torch(x)), leaf(weight_to_torch(weight)), leaf(torch.from_numpy(bias))]
    functions = nn.functional.conv_transpose1d, nn.functional.conv_transpose2d
    function = (*functions, nn.functional.conv_transpose3d)[rank - 1]
    assert_pair(y, saved, F.conv_transpose_backward, function(*leaves, **options), leaves, rng)


@RANKS
@SEEDS
def test_max_pool(seed, rank):
    x, rng = random_case(seed, rank, 3)
    options = {
        "stride": tuple(map(int, rng.integers(1, 4, rank))),
        "padding": int(rng.integers(0, 2)),
        "dilation": tuple(map(int, rng.integers(1, 3, rank))),
    }
    y, saved = F.max_pool_forward(x, 3, **options)
    leaves = [leaf(to_torch(x))]
    functions = nn.functional.max_pool1d, nn.functional.max_pool2d, nn.functional.max_pool3d
    theirs = functions[rank - 1](*leaves, 3, **options)
    assert_pair(y, saved, F.max_pool_backward, theirs, leaves, rng)


@RANKS
def test_upsample(rank):
    x, rng = random_case(0, rank, 3)
    factor = tuple(range(2, 2 + rank))
    y, saved = F.upsample_forward(x, factor)
    leaves = [leaf(to_torch(x))]
    theirs = nn.functional.interpolate(*leaves, scale_factor=factor, mode="nearest")
    assert_pair(y, saved, F.upsample_backward, theirs, leaves, rng)


@RANKS
@SEEDS
def test_instance_norm(seed, rank):
    x, rng = random_case(seed, rank, 3)
    gamma, beta = rng.standard_normal((2, 3))
    y, saved = F.instance_norm_forward(x, gamma, beta, eps=1e-3)
    leaves = [leaf(to_torch(x)), leaf(torch.from_numpy(gamma)), leaf(torch.from_numpy(beta))]
    theirs = nn.functional.instance_norm(
        leaves[0], weight=leaves[1], bias=leaves[2], use_input_stats=True, eps=1e-3
    )
    assert_pair(y, saved, F.instance_norm_backward, theirs, leaves, rng)


@RANKS
@SEEDS
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(seed, rank, training):
    x, rng = random_case(seed, rank, 3)
    gamma, beta, mean = rng.standard_normal((3, 3))
    variance = rng.uniform(0.5, 2, 3)
    y, saved = F.batch_norm_forward(x, gamma, beta, mean, variance, training=training)
    leaves = [leaf(to_torch(x)), leaf(torch.from_numpy(gamma)), leaf(torch.from_numpy(beta))]
    running = torch.from_numpy(mean.copy()), torch.from_numpy(variance.copy())
    theirs = nn.functional.batch_norm(
        leaves[0], *running, weight=leaves[1], bias=leaves[2], training=training, eps=1e-5
    )
    assert_pair(y, saved, F.batch_norm_backward, theirs, leaves, rng)


@RANKS
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("relu", torch.relu),
        ("sigmoid", torch.sigmoid),
        ("softmax", lambda x: torch.softmax(x, dim=1)),
    ],
)
def test_activations(name, function, rank):
    x, rng = random_case(0, rank, 4)
    x *= 20  # into the tails
    y, saved = getattr(F, f"{name}_forward")(x)
    leaves = [leaf(to_torch(x))]
    assert_pair(y, saved, getattr(F, f"{name}_backward"), function(*leaves), leaves, rng)


@RANKS
@SEEDS
@pytest.mark.parametrize(
    ("name", "function", "options"),
    [
        ("cross_entropy", nn.functional.cross_entropy, {}),
        ("dice_loss", torch_unet.dice_loss, {}),
        ("dice_loss", torch_unet.dice_loss, {"per_sample": True, "smooth": 1e-6}),
        ("cce_dice_loss", torch_unet.cce_dice_loss, {}),
    ],
)
def test_losses(name, function, options, seed, rank):
    logits, rng = random_case(seed, rank, 4)
    labels = rng.integers(0, 3, logits.shape[:-1])  # the last class is absent
    loss, saved = getattr(F, f"{name}_forward")(logits, labels, **options)
    twin = leaf(to_torch(logits))
    theirs = function(twin, torch.from_numpy(labels), **options)
    assert_equal_to_torch([np.asarray(loss)], [theirs])
    dloss = rng.standard_normal()
    dlogits = getattr(F, f"{name}_backward")(dloss, saved)
    theirs.backward(torch.tensor(dloss, dtype=torch.float64))
    assert_equal_to_torch([np.moveaxis(dlogits, -1, 1)], [twin.grad])


# The networks


def attention_2d(**options):
    return AttentionUNet(2, 2, 4, norm="none", up="nearest", initializer="glorot", **options)


def train_ours(network, images, labels, learning_rate, steps):
    optimizer = Adam(network.named_parameters(), learning_rate=learning_rate)
    losses = []
    for step in range(steps):
        logits, saved = network.forward(images, training=True, step=step)
        loss, loss_saved = F.cce_dice_loss_forward(logits, labels)
        optimizer.zero_grad()
        network.backward(F.cce_dice_loss_backward(1.0, loss_saved), saved)
        optimizer.step()
        losses.append(float(loss))
    return losses


def train_torch(peer, images, labels, learning_rate, steps):
    optimizer = torch.optim.Adam(peer.parameters(), lr=learning_rate)
    images, labels, losses = to_torch(images), torch.from_numpy(labels), []
    for _ in range(steps):
        loss = torch_unet.cce_dice_loss(peer(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("network", "peer", "shape", "learning_rate", "steps", "count"),
    [
        (brain_3d, torch_unet.peer_3d, (2, 32, 32, 32, 4), 1e-4, 20, 5_649_652),
        (brain_2d, torch_unet.peer_2d, (2, 64, 64, 2), 1e-3, 20, 1_962_532),
        (
            brain_3d_attention,
            partial(torch_unet.peer_3d, join=torch_unet.GatedJoin),
            (1, 32, 32, 16, 4),
            1e-4,
            5,
            5_671_656,
        ),
        (
            attention_2d,
            partial(torch_unet.peer_2d, join=torch_unet.GatedJoin),
            (2, 32, 32, 2),
            1e-3,
            5,
            1_995_416,
        ),
    ],
    ids=["brain_3d", "brain_2d", "brain_3d_attention", "2D attention"],
)
def test_steps_of_training_are_those_of_torch(network, peer, shape, learning_rate, steps, count):
    rng = np.random.default_rng(0)
    images = rng.standard_normal(shape)
    labels = rng.integers(0, 4, shape[:-1])
    ours, theirs = network(dropout=0.0, seed=1), peer().double()
    assert sum(p.numel() for p in theirs.parameters()) == count
    pairs = list(zip(ours.named_parameters().items(), theirs.parameters(), strict=True))
    for (_, parameter), twin in pairs:
        parameter.value = parameter.value.astype(np.float64)
        twin.data.copy_(weight_to_torch(parameter.value))
    task = images, labels, learning_rate, steps
    with threadpool_limits(1), ThreadPoolExecutor() as side_by_side:  # each on a core of its own
        losses = side_by_side.submit(train_ours, ours, *task)
        their_losses = side_by_side.submit(train_torch, theirs, *task)
    losses = losses.result()
    np.testing.assert_allclose(losses, their_losses.result(), rtol=1e-9)
    assert losses[-1] < losses[0]
    for (name, parameter), twin in pairs:
        expected = twin.detach()
        difference = (weight_to_torch(parameter.value) - expected).abs().max()
        assert difference <= 1e-9 * max(1, expected.abs().max()), name
