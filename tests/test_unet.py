"""The whole network: its gradient, its mirror, its names, its errors, its determinism."""

import weakref

import numpy as np
import pytest
from gradcheck import assert_gradient

from minibrain.errors import InputError
from minibrain.functional import (
    concat_forward,
    conv_forward,
    conv_transpose_forward,
    instance_norm_forward,
    max_pool_forward,
    relu_forward,
)
from minibrain.models import AttentionUNet, UNet
from minibrain.optimizers import Adam
from minibrain.training import train_step

NETWORKS = {
    "1D, two levels, batch norm, transposed": {
        "rank": 1,
        "channels": (3, 4),
        "norm": "batch",
        "up": "transposed",
    },
    "2D, three levels, instance norm, transposed": {
        "rank": 2,
        "channels": (2, 3, 4),
        "norm": "instance",
        "up": "transposed",
        "plain_end": True,
    },
    "2D, three levels, batch norm, nearest": {
        "rank": 2,
        "channels": (3, 2, 4),
        "norm": "batch",
        "up": "nearest",
        "initializer": "glorot",
    },
    "3D, two levels, no norm, nearest": {
        "rank": 3,
        "channels": (3, 4),
        "norm": "none",
        "up": "nearest",
        "initializer": "glorot",
    },
    "3D, three levels, instance norm, transposed": {
        "rank": 3,
        "channels": (2, 2, 3),
        "norm": "instance",
        "up": "transposed",
        "plain_end": True,
    },
}
NETWORKS |= {
    "2D, three levels, batch norm, nearest, attention": {
        **NETWORKS["2D, three levels, batch norm, nearest"],
        "network": AttentionUNet,
    },
    "3D, three levels, instance norm, transposed, attention": {
        **NETWORKS["3D, three levels, instance norm, transposed"],
        "network": AttentionUNet,
    },
}
every = pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)


def make(options, *, dropout=0.3, seed=0, dtype=np.float64):
    """A network with 2 channels in, 3 classes out, and biases that are not 0."""
    options = {"network": UNet, **options, "dropout": dropout, "seed": seed, "dtype": dtype}
    network = options.pop("network")(options.pop("rank"), 2, 3, **options)
    rng = np.random.default_rng(seed + 100)
    for name, parameter in network.named_parameters().items():
        if not name.endswith("weight"):
            parameter.value += rng.uniform(-0.3, 0.3, parameter.value.shape).astype(dtype)
    return network


def an_input(network, samples=2, seed=1, dtype=np.float64):
    """Just large enough for four voxels or more in the bottleneck."""
    size = (2 ** (network.levels - 1) * (4 if network.rank == 1 else 2),) * network.rank
    return np.random.default_rng(seed).standard_normal((samples, *size, 2)).astype(dtype)


def random_like(y, seed=2):
    return np.random.default_rng(seed).standard_normal(y.shape).astype(y.dtype)


def gradients(network):
    return {name: p.grad.copy() for name, p in network.named_parameters().items()}


def weight_bytes(network):
    everything = network.named_parameters() | network.named_buffers()
    return b"".join(p.value.tobytes() for p in everything.values())


# Forward


def test_a_network_of_two_levels_written_out():
    """Every operation in order: which layers a block has, what is concatenated, where it ends."""
    network = make(NETWORKS["2D, three levels, instance norm, transposed"] | {"channels": (2, 3)})
    p = {name: parameter.value for name, parameter in network.named_parameters().items()}

    def conv_norm_relu(x, block, i):
        x, _ = conv_forward(x, p[f"{block}.conv{i}.weight"], p[f"{block}.conv{i}.bias"], padding=1)
        x, _ = instance_norm_forward(x, p[f"{block}.norm{i}.gamma"], p[f"{block}.norm{i}.beta"])
        return relu_forward(x)[0]

    x = an_input(network)
    skip = conv_norm_relu(conv_norm_relu(x, "encoder0", 1), "encoder0", 2)
    y, _ = max_pool_forward(skip, 2)
    y = conv_norm_relu(conv_norm_relu(y, "bottleneck", 1), "bottleneck", 2)
    y, _ = conv_transpose_forward(y, p["up0.conv.weight"], p["up0.conv.bias"], stride=2)
    y, _ = relu_forward(instance_norm_forward(y, p["up0.norm.gamma"], p["up0.norm.beta"])[0])
    y, _ = concat_forward(y, skip)
    y = conv_norm_relu(y, "decoder0", 1)
    y, _ = conv_forward(y, p["decoder0.conv2.weight"], p["decoder0.conv2.bias"], padding=1)
    y, _ = conv_forward(y, p["head.weight"], p["head.bias"])
    np.testing.assert_allclose(network.forward(x)[0], y, rtol=1e-12, atol=1e-12)


@every
def test_logits_have_the_size_of_the_input(options):
    network = make(options, dtype=np.float32)
    x = an_input(network, dtype=np.float32)
    logits, _ = network.forward(x, training=True)
    assert logits.shape == (*x.shape[:-1], 3)
    assert logits.dtype == np.float32


@every
def test_inference_is_deterministic_and_keeps_nothing(options):
    network = make(options)
    x = an_input(network)
    before, weights = x.copy(), weight_bytes(network)
    logits, saved = network.forward(x)
    assert len(saved) == 0
    assert network.forward(x, step=7)[0].tobytes() == logits.tobytes()
    assert weight_bytes(network) == weights
    assert np.array_equal(x, before)
    np.testing.assert_allclose(logits, make(options, dropout=0).forward(x)[0], rtol=1e-12)


class Watched:
    """A layer around a layer that knows whether what it saved is still there."""

    def __init__(self, layer, alive):
        self.layer, self.alive = layer, alive

    def forward(self, *arguments):
        assert not any(saved() for saved in self.alive)
        y, _ = self.layer.forward(*arguments)
        saved = Saved()
        self.alive.append(weakref.ref(saved))
        return y, saved


class Saved:
    pass


def test_what_inference_does_not_need_is_gone_before_the_next_layer():
    network, alive = make(NETWORKS["2D, three levels, batch norm, nearest, attention"]), []
    network.joins = [Watched(join, alive) for join in network.joins]
    for chain in (network.bottleneck, *network.encoders, *network.decoders):
        chain.layers = {name: Watched(layer, alive) for name, layer in chain.layers.items()}
    network.forward(an_input(network))
    assert len(alive) > 10


@every
def test_samples_do_not_see_each_other_in_inference(options):
    network = make(options)
    x = an_input(network, samples=3)
    together = network.forward(x)[0]
    for n in range(3):
        alone = network.forward(x[n : n + 1])[0]
        np.testing.assert_allclose(together[n : n + 1], alone, rtol=1e-9, atol=1e-11)


@every
def test_dropout_masks_depend_on_the_step_and_on_nothing_else(options):
    network = make(options)
    x = an_input(network)
    first, second, again = (network.forward(x, training=True, step=s)[0] for s in (1, 2, 1))
    assert np.array_equal(first, again)
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize(("norm", "name"), [("none", "dropout1"), ("instance", "norm1")])
def test_the_layers_of_dropout_draw_different_masks_at_their_own_rates(norm, name):
    network = UNet(1, 1, 2, channels=(4, 4, 4), norm=norm, dropout=(0.1, 0.0, 0.3))
    blocks = [*network.encoders, network.bottleneck, *network.decoders]
    layers = [block.layers[name] for block in blocks if name in block.layers]
    layers = [layer for layer in layers if layer.rate]
    assert [layer.rate for layer in layers] == [0.1, 0.3, 0.1]  # down, bottleneck, up again
    assert len({layer.number for layer in layers}) == 3


# Backward


@every
def test_the_gradient_of_the_whole_network(options):
    """All parameters at once along one direction, then the input, with dropout active."""
    network = make(options)
    x, rng = an_input(network), np.random.default_rng(3)
    parameters = network.named_parameters().values()

    def forward(theta=None, x=x):
        if theta is not None:
            ends = np.cumsum([p.value.size for p in parameters])
            for p, part in zip(parameters, np.split(theta, ends[:-1]), strict=True):
                p.value = part.reshape(p.value.shape)
        return network.forward(x, training=True, step=5)[0]

    theta = np.concatenate([p.value.ravel() for p in parameters])
    logits, saved = network.forward(x, training=True, step=5)
    dlogits = random_like(logits)
    dx = network.backward(dlogits, saved)
    dtheta = np.concatenate([p.grad.ravel() for p in parameters])
    assert_gradient(forward, theta, dtheta, dlogits, rng)
    forward(theta)
    assert_gradient(lambda x: forward(x=x), x, dx, dlogits, rng)


@every
def test_the_gradient_of_every_parameter_alone(options):
    """One direction for all could hide a small parameter, such as a bias, behind the weights."""
    network = make(options)
    x, rng = an_input(network), np.random.default_rng(4)
    logits, saved = network.forward(x, training=True, step=5)
    dlogits = random_like(logits)
    network.backward(dlogits, saved)
    for parameter, gradient in zip(
        network.named_parameters().values(), gradients(network).values(), strict=True
    ):

        def forward(value, parameter=parameter):
            parameter.value = value
            return network.forward(x, training=True, step=5)[0]

        value = parameter.value
        # the norm after it takes a bias out again: its gradient is 0 up to rounding
        assert_gradient(forward, value, gradient, dlogits, rng, rtol=1e-5)
        parameter.value = value


@every
def test_a_skip_carries_a_gradient_of_its_own(options):
    """With everything below the first level cut off, the encoder is reached by its skip alone."""
    network = make(options, dropout=0)
    for name, parameter in network.named_parameters().items():
        if name.startswith("bottleneck"):
            parameter.value = np.zeros_like(parameter.value)
    logits, saved = network.forward(an_input(network), training=True)
    network.backward(random_like(logits), saved)
    last = network.levels - 2
    assert np.abs(network.named_parameters()[f"encoder{last}.conv1.weight"].grad).max() > 1e-6


@every
def test_backward_consumes_what_forward_saved(options):
    network = make(options)
    logits, saved = network.forward(an_input(network), training=True)
    parts = list(saved)
    assert parts
    network.backward(random_like(logits), saved)
    assert saved == []
    assert all(part == [] for part in parts if isinstance(part, list))
    with pytest.raises(ValueError, match="saved is empty"):
        network.backward(random_like(logits), saved)


@every
@pytest.mark.parametrize(
    "wrong", [lambda dx: dx[:1], lambda dx: dx[..., :1], lambda dx: dx > 0, lambda dx: dx.tolist()]
)
def test_after_a_wrong_gradient_backward_can_be_tried_again(options, wrong):
    results = []
    for attempts in ([], [wrong]):
        network = make(options)
        logits, saved = network.forward(an_input(network), training=True)
        dlogits = random_like(logits)
        for attempt in attempts:
            with pytest.raises(ValueError, match="dx must"):
                network.backward(attempt(dlogits), saved)
        results.append([network.backward(dlogits, saved), *gradients(network).values()])
    for wanted, found in zip(*results, strict=True):
        assert np.array_equal(wanted, found)


@every
def test_backward_needs_a_forward_in_training(options):
    network = make(options)
    logits, saved = network.forward(an_input(network))
    with pytest.raises(ValueError, match="training=True"):
        network.backward(logits, saved)


@every
def test_without_the_input_gradient_all_others_are_the_same_bits(options):
    network = make(options, dtype=np.float64)
    x = an_input(network, dtype=np.float64)
    results = []
    for input_gradient in (True, False):
        for parameter in network.named_parameters().values():
            parameter.grad.fill(0)
        logits, saved = network.forward(x, training=True)
        dx = network.backward(random_like(logits), saved, input_gradient=input_gradient)
        assert (dx is None) != input_gradient
        results.append(gradients(network))
    for name in results[0]:
        assert results[0][name].tobytes() == results[1][name].tobytes(), name


@every
def test_gradients_accumulate(options):
    network = make(options)
    x = an_input(network)
    logits, saved = network.forward(x, training=True)
    dlogits = random_like(logits)
    before = dlogits.copy()
    network.backward(dlogits, saved)
    once = gradients(network)
    assert np.array_equal(dlogits, before)
    network.backward(dlogits, network.forward(x, training=True)[1])
    for name, gradient in gradients(network).items():
        assert np.array_equal(gradient, 2 * once[name]), name


# Names


def test_names_run_from_input_to_output():
    network = UNet(2, 1, 2, channels=(2, 3, 4), norm="batch", plain_end=True)
    block = ["conv1.weight", "conv1.bias", "norm1.gamma", "norm1.beta"]
    block += ["conv2.weight", "conv2.bias", "norm2.gamma", "norm2.beta"]
    up = ["conv.weight", "conv.bias", "norm.gamma", "norm.beta"]
    expected = [
        f"{part}.{name}" for part in ("encoder0", "encoder1", "bottleneck") for name in block
    ]
    expected += [f"up1.{name}" for name in up] + [f"decoder1.{name}" for name in block]
    expected += [f"up0.{name}" for name in up] + [f"decoder0.{name}" for name in block[:6]]
    expected += ["head.weight", "head.bias"]
    assert list(network.named_parameters()) == expected
    norms = [name.removesuffix(".gamma") for name in expected if name.endswith("gamma")]
    statistics = [
        f"{norm}.{name}" for norm in norms for name in ("running_mean", "running_variance")
    ]
    assert list(network.named_buffers()) == statistics


def test_names_without_norm_and_with_nearest_upsampling():
    network = UNet(2, 1, 2, channels=(2, 3), norm="none", up="nearest")
    block = ["conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"]
    parts = ("encoder0", "bottleneck", "decoder0")
    expected = [f"{part}.{name}" for part in parts for name in block]
    assert list(network.named_parameters()) == [*expected, "head.weight", "head.bias"]
    assert network.named_buffers() == {}


# Training


def trained(options, *, seed=0, dropout=0.3, steps=4):
    """The bytes of all weights after a few steps of Adam in float32."""
    network = make(options, dropout=dropout, seed=seed, dtype=np.float32)
    optimizer = Adam(network.named_parameters(), learning_rate=1e-2)
    x = an_input(network, dtype=np.float32)
    labels = np.random.default_rng(7).integers(0, 3, x.shape[:-1])
    for step in range(steps):
        train_step(network, optimizer, x, labels, step)
    return weight_bytes(network)


@every
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(options):
    first = trained(options)
    assert trained(options) == first
    assert trained(options, seed=1) != first


def test_the_seed_reaches_the_dropout_masks_too():
    options = NETWORKS["2D, three levels, instance norm, transposed"]
    networks = [make(options, seed=seed) for seed in (0, 1)]
    for parameter, other in zip(
        *(network.named_parameters().values() for network in networks), strict=True
    ):
        other.value = parameter.value.copy()
    x = an_input(networks[0])
    assert np.array_equal(networks[0].forward(x)[0], networks[1].forward(x)[0])
    drawn = [network.forward(x, training=True)[0] for network in networks]
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3


@every
def test_gradient_and_moments_follow_a_value_of_another_dtype(options):
    network = make(options, dtype=np.float32)
    optimizer = Adam(network.named_parameters(), learning_rate=1e-2)
    x = an_input(network, dtype=np.float32)
    labels = np.zeros(x.shape[:-1], np.uint8)
    train_step(network, optimizer, x, labels, 0)
    assert optimizer.mean.dtype == optimizer.square.dtype == np.float32
    moment = optimizer.mean.copy()
    for parameter in network.named_parameters().values():
        parameter.value = parameter.value.astype(np.float64)
        assert parameter.grad.dtype == np.float64
        assert not parameter.grad.any()
    optimizer.learning_rate = 0.0
    optimizer.step()  # with gradients of 0 the moment decays by beta1
    np.testing.assert_allclose(optimizer.mean, 0.9 * moment, rtol=1e-6)
    assert optimizer.mean.dtype == optimizer.square.dtype == np.float64
    logits, saved = network.forward(x.astype(np.float64), training=True)
    dx = network.backward(random_like(logits), saved)
    assert {a.dtype for a in (logits, dx, *gradients(network).values())} == {np.dtype(np.float64)}


# Errors


@pytest.mark.parametrize(
    ("levels", "size", "factor", "fitting"),
    [
        (3, (7, 8), 4, (8, 8)),
        (3, (8, 9), 4, (8, 12)),
        (5, (155, 240), 16, (160, 240)),
        (3, (8, 2), 4, (8, 4)),
        (3, (0, 8), 4, (4, 8)),
    ],
)
def test_a_size_that_cannot_be_halved_so_often_names_one_that_fits(levels, size, factor, fitting):
    network = UNet(2, 1, 2, channels=(1,) * levels)
    with pytest.raises(ValueError, match="input size") as error:
        network.forward(np.zeros((1, *size, 1), np.float32))
    for word in (size, f"multiple of {factor}", fitting):
        assert str(word) in str(error.value)


@pytest.mark.parametrize(
    "shape", [(1, 8, 8, 3), (1, 8, 8, 1), (8, 8, 2), (1, 8, 8, 8, 2), (1, 8, 2), (8, 8)]
)
def test_an_input_of_another_rank_or_channel_count_is_an_error(shape):
    network = UNet(2, 2, 2, channels=(1, 1))
    with pytest.raises(ValueError, match=r"2 spatial axes, 2 channels") as error:
        network.forward(np.zeros(shape, np.float32))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"norm": "layer"}, ["norm", "none", "batch", "instance", "'layer'"]),
        ({"norm": None}, ["norm", "None"]),
        ({"up": "bilinear"}, ["up", "transposed", "nearest", "'bilinear'"]),
        ({"initializer": "zeros"}, ["initializer", "he", "glorot", "'zeros'"]),
        ({"channels": (2, 3), "dropout": (0.1, 0.2, 0.3)}, ["dropout", "3", "2"]),
        ({"channels": (2, 3), "dropout": (0.1,)}, ["dropout", "1", "2"]),
        ({"dropout": 1.5}, ["dropout", "[0, 1)", "1.5"]),
        ({"channels": (2, 3), "dropout": (0.1, -0.2)}, ["dropout", "[0, 1)", "-0.2"]),
        ({"channels": ()}, ["channels", "one level", "()"]),
        ({"channels": (2, 0)}, ["channels", "above 0", "(2, 0)"]),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (each word is checked below)
        UNet(2, 1, 2, **options)
    missing = [word for word in words if word not in str(error.value)]
    assert not missing, f"{missing} not in {error.value}"


@pytest.mark.parametrize("sizes", [(0, 1, 2), (2, 0, 2), (2, 1, 0)])
def test_sizes_of_nothing_are_refused(sizes):
    with pytest.raises(ValueError, match=r"rank, in_channels, classes .* must be above 0") as error:
        UNet(*sizes)
    assert ", ".join(map(str, sizes[:2])) in str(error.value)


def test_a_device_that_is_none_is_refused():
    with pytest.raises(InputError, match="device: got 'gpu', expected auto, cpu or cuda"):
        UNet(2, 1, 2, channels=(2, 3)).to("gpu")


def test_a_value_keeps_its_shape():
    parameter = UNet(2, 1, 2, channels=(2, 3)).named_parameters()["head.bias"]
    with pytest.raises(ValueError, match=r"\(2,\)") as error:
        parameter.value = np.zeros(3)
    assert "(3,)" in str(error.value)
    assert parameter.value.shape == parameter.grad.shape == (2,)
