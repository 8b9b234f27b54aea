"""The reference networks, parameter for parameter."""

from math import prod, sqrt

import numpy as np
import pytest

from minibrain.models import (
    brain_2d,
    brain_2d_small,
    brain_3d,
    brain_3d_attention,
    brain_3d_attention_small,
    brain_3d_small,
)

# Convolutions of the 3D network: weight (*K, C_in, C_out), transposed ones (*K, C_out, C_in), and
# how many parameters each has with its bias and, all but the last two, its norm's gamma and beta.
BRAIN_3D = {
    "encoder0.conv1": ((3, 3, 3, 4, 16), 1_728 + 48),
    "encoder0.conv2": ((3, 3, 3, 16, 16), 6_912 + 48),
    "encoder1.conv1": ((3, 3, 3, 16, 32), 13_824 + 96),
    "encoder1.conv2": ((3, 3, 3, 32, 32), 27_648 + 96),
    "encoder2.conv1": ((3, 3, 3, 32, 64), 55_296 + 192),
    "encoder2.conv2": ((3, 3, 3, 64, 64), 110_592 + 192),
    "encoder3.conv1": ((3, 3, 3, 64, 128), 221_184 + 384),
    "encoder3.conv2": ((3, 3, 3, 128, 128), 442_368 + 384),
    "bottleneck.conv1": ((3, 3, 3, 128, 256), 884_736 + 768),
    "bottleneck.conv2": ((3, 3, 3, 256, 256), 1_769_472 + 768),
    "up3.conv": ((2, 2, 2, 128, 256), 262_144 + 384),
    "decoder3.conv1": ((3, 3, 3, 256, 128), 884_736 + 384),
    "decoder3.conv2": ((3, 3, 3, 128, 128), 442_368 + 384),
    "up2.conv": ((2, 2, 2, 64, 128), 65_536 + 192),
    "decoder2.conv1": ((3, 3, 3, 128, 64), 221_184 + 192),
    "decoder2.conv2": ((3, 3, 3, 64, 64), 110_592 + 192),
    "up1.conv": ((2, 2, 2, 32, 64), 16_384 + 96),
    "decoder1.conv1": ((3, 3, 3, 64, 32), 55_296 + 96),
    "decoder1.conv2": ((3, 3, 3, 32, 32), 27_648 + 96),
    "up0.conv": ((2, 2, 2, 16, 32), 4_096 + 48),
    "decoder0.conv1": ((3, 3, 3, 32, 16), 13_824 + 48),
    "decoder0.conv2": ((3, 3, 3, 16, 16), 6_912 + 16),
    "head": ((1, 1, 1, 16, 4), 64 + 4),
}

# The 2D network: weight and bias only; upsampling has no parameters, so decoders see 256 + 128, ...
BRAIN_2D = {
    "encoder0.conv1": ((3, 3, 2, 16), 288 + 16),
    "encoder0.conv2": ((3, 3, 16, 16), 2_304 + 16),
    "encoder1.conv1": ((3, 3, 16, 32), 4_608 + 32),
    "encoder1.conv2": ((3, 3, 32, 32), 9_216 + 32),
    "encoder2.conv1": ((3, 3, 32, 64), 18_432 + 64),
    "encoder2.conv2": ((3, 3, 64, 64), 36_864 + 64),
    "encoder3.conv1": ((3, 3, 64, 128), 73_728 + 128),
    "encoder3.conv2": ((3, 3, 128, 128), 147_456 + 128),
    "bottleneck.conv1": ((3, 3, 128, 256), 294_912 + 256),
    "bottleneck.conv2": ((3, 3, 256, 256), 589_824 + 256),
    "decoder3.conv1": ((3, 3, 384, 128), 442_368 + 128),
    "decoder3.conv2": ((3, 3, 128, 128), 147_456 + 128),
    "decoder2.conv1": ((3, 3, 192, 64), 110_592 + 64),
    "decoder2.conv2": ((3, 3, 64, 64), 36_864 + 64),
    "decoder1.conv1": ((3, 3, 96, 32), 27_648 + 32),
    "decoder1.conv2": ((3, 3, 32, 32), 9_216 + 32),
    "decoder0.conv1": ((3, 3, 48, 16), 6_912 + 16),
    "decoder0.conv2": ((3, 3, 16, 16), 2_304 + 16),
    "head": ((1, 1, 16, 4), 64 + 4),
}

NETWORKS = {"3D": (brain_3d, BRAIN_3D, 5_649_652), "2D": (brain_2d, BRAIN_2D, 1_962_532)}
both = pytest.mark.parametrize(("preset", "table", "total"), NETWORKS.values(), ids=NETWORKS)


def count(parameters):
    return sum(parameter.value.size for parameter in parameters.values())


@both
def test_every_layer_has_the_parameters_of_the_reference(preset, table, total):
    parameters = preset().named_parameters()
    weights = {name: p for name, p in parameters.items() if name.endswith(".weight")}
    assert [name.removesuffix(".weight") for name in weights] == list(table)
    for name, (shape, size) in table.items():
        assert parameters[f"{name}.weight"].value.shape == shape, name
        # a convolution's own, and those of the norm that comes after it
        norm = name.replace("conv", "norm")
        assert (
            count({k: p for k, p in parameters.items() if k.rpartition(".")[0] in (name, norm)})
            == size
        ), name
    assert count(parameters) == sum(size for _, size in table.values()) == total


def test_batch_norm_adds_running_statistics_only():
    network = brain_3d(norm="batch")
    assert count(network.named_parameters()) == 5_649_652
    assert count(network.named_parameters()) + count(network.named_buffers()) == 5_653_044


GATES = {  # of C skip and C signal channels: 2·C·C/2 weights, C/2 biases, C/2 + 1 for the score
    "join3": 16_384 + 64 + 65,
    "join2": 4_096 + 32 + 33,
    "join1": 1_024 + 16 + 17,
    "join0": 256 + 8 + 9,
}


@pytest.mark.parametrize(
    ("preset", "plain", "levels", "total"),
    [
        (brain_3d_attention, brain_3d, 4, 5_671_656),
        (brain_3d_attention_small, brain_3d_small, 2, 342_630),
    ],
)
def test_attention_adds_its_gates_and_nothing_else(preset, plain, levels, total):
    parameters, without = preset().named_parameters(), plain().named_parameters()
    gates = dict(list(GATES.items())[-levels:])
    for gate, size in gates.items():
        assert count({k: p for k, p in parameters.items() if k.startswith(gate)}) == size
    assert count(parameters) == total == count(without) + sum(gates.values())
    assert [name for name in parameters if not name.startswith("join")] == list(without)
    for name, parameter in without.items():
        assert np.array_equal(parameters[name].value, parameter.value), name


def test_only_the_last_convolution_of_the_3d_decoder_is_plain():
    parts = brain_3d(dropout=0).encoders + brain_3d(dropout=0).decoders
    layers = [list(part.layers) for part in parts]
    full = ["conv1", "norm1", "conv2", "norm2"]
    assert layers == [full] * 7 + [full[:3]]


def test_the_2d_network_has_neither_norm_nor_dropout_and_ends_in_relu():
    network = brain_2d()
    for part in (*network.encoders, network.bottleneck, *network.decoders):
        assert list(part.layers) == ["conv1", "relu1", "conv2", "relu2"]


def test_dropout_goes_down_and_up_as_in_the_reference():
    network = brain_3d()
    blocks = [*network.encoders, network.bottleneck, *network.decoders]
    rates = [block.layers["norm1"].rate for block in blocks]
    assert rates == [0.1, 0.1, 0.2, 0.2, 0.3, 0.2, 0.2, 0.1, 0.1]
    order = ["conv1", "norm1", "conv2", "norm2"]
    assert list(blocks[0].layers) == order


@both
def test_weights_start_uniform_within_their_limits(preset, table, total):
    """He: √(6 / fan_in); Glorot: √(6 / (fan_in + fan_out)). The variance is limit²/3."""
    del total
    parameters = preset().named_parameters()
    for name, (shape, _) in table.items():
        weight = parameters[f"{name}.weight"].value
        taps = prod(shape[:-2])
        he = preset is brain_3d and shape[0] == 3
        limit = sqrt(6 / (taps * (shape[-2] if he else shape[-2] + shape[-1])))
        n = weight.size
        assert weight.dtype == np.float32
        assert np.abs(weight).max() <= np.float32(limit)
        assert np.abs(weight).max() > limit * (1 - 12 / n), name
        assert abs(weight.mean(dtype=np.float64)) < 5 * limit / sqrt(3 * n), name
        variance, error = limit**2 / 3, limit**2 * sqrt(4 / 45 / n)
        assert abs(weight.var(dtype=np.float64) - variance) < 5 * error, name


@both
def test_biases_and_betas_start_at_0_and_gammas_at_1(preset, table, total):
    del table, total
    for name, parameter in preset().named_parameters().items():
        start = {"bias": 0, "beta": 0, "gamma": 1}.get(name.rpartition(".")[2])
        assert start is None or (parameter.value == start).all(), name
        assert not parameter.grad.any()


@pytest.mark.parametrize("preset", [brain_2d_small, brain_3d_small])
def test_no_two_weights_start_alike_and_the_seed_decides(preset):
    def weights(**options):
        return [p.value for k, p in preset(**options).named_parameters().items() if "weight" in k]

    first = weights()
    assert len({w.ravel()[0] for w in first}) == len(first)
    assert all(map(np.array_equal, first, weights(seed=0)))
    assert not any(map(np.array_equal, first, weights(seed=1)))
    # a mask more or less, or another dtype, draws the same weights
    assert all(map(np.array_equal, first, weights(dropout=0.5)))
    assert all(
        np.array_equal(a, b.astype(np.float32))
        for a, b in zip(first, weights(dtype=np.float64), strict=True)
    )


@pytest.mark.parametrize(
    "preset", [brain_2d, brain_3d, brain_2d_small, brain_3d_small, brain_3d_attention_small]
)
def test_keywords_override_the_preset(preset):
    network = preset(channels=(2, 3), dropout=0, norm="batch", up="nearest", dtype=np.float64)
    assert network.levels == 2
    assert network.named_buffers()
    assert not any("dropout1" in block.layers for block in (*network.encoders, *network.decoders))
    parameters = network.named_parameters()
    assert not any(name.startswith("up") for name in parameters)
    assert {p.value.dtype for p in parameters.values()} == {np.dtype(np.float64)}
    with pytest.raises(TypeError, match="depth"):
        preset(depth=3)


@pytest.mark.parametrize(
    ("preset", "shape"), [(brain_2d_small, (1, 8, 12, 2)), (brain_3d_small, (1, 8, 4, 8, 4))]
)
def test_the_small_networks_are_the_reference_with_three_levels(preset, shape):
    network = preset()
    assert network.levels == 3
    assert network.forward(np.zeros(shape, np.float32))[0].shape == (*shape[:-1], 4)


@pytest.mark.parametrize("preset", [brain_3d, brain_2d, brain_3d_small, brain_2d_small])
@pytest.mark.parametrize("channels", [(4, 8), (2, 2, 2, 2, 2)])
def test_a_preset_for_another_task(preset, channels):
    network = preset(in_channels=3, classes=5, channels=channels)
    x = np.zeros((1, *(32,) * network.rank, 3), np.float32)
    assert network.forward(x)[0].shape == (*x.shape[:-1], 5)


def test_dropout_follows_the_levels():
    network = brain_3d(channels=(2, 2, 2, 2, 2, 2))
    blocks = [*network.encoders, network.bottleneck, *network.decoders]
    rates = [block.layers["norm1"].rate for block in blocks]
    assert rates == [0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1]
