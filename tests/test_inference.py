"""Inference: windows that leave no seams, the same through every door."""

import itertools

import numpy as np
import pytest
import standin
from hypothesis import given
from hypothesis import strategies as st

from minibrain.errors import InputError
from minibrain.functional import softmax_forward
from minibrain.inference import most_likely, predict, predict_logits, softmax_inplace, windows
from minibrain.models import UNet

RNG = np.random.default_rng(0)


def network(rank=3, levels=2, channels=2, **options):
    """A small U-Net with batch norm: what it says of a voxel depends on no other window's."""
    options = {"channels": (2, 3, 4)[:levels], "norm": "batch", "seed": 3} | options
    return UNet(rank, channels, 3, **options)


def pointwise(rank=3):
    """Only the middle tap of every kernel is left: a voxel's logits depend on that voxel alone."""
    model = network(rank, levels=1)
    for name, parameter in model.named_parameters().items():
        if "conv" in name and name.endswith("weight"):
            middle = (1,) * rank
            kept = parameter.value[middle].copy()
            parameter.value = np.zeros_like(parameter.value)
            parameter.value[middle] = 3 * kept
    return model


def an_image(*size, channels=2):
    return np.random.default_rng(len(size)).standard_normal((*size, channels)).astype(np.float32)


# Windows


@given(
    st.tuples(*[st.integers(1, 30)] * 3),
    st.tuples(*[st.integers(1, 12)] * 3),
    st.tuples(*[st.sampled_from([0, 0.25, 0.5, 0.75, 0.9])] * 3),
)
def test_windows_cover_the_volume_with_weights_that_add_up_to_1(volume, size, overlap):
    margin = 12  # a window may reach out of the volume so far
    total = np.zeros([n + 2 * margin for n in volume])
    for box, weight in windows(volume, size, overlap):
        assert weight.shape == (*size, 1)
        assert weight.dtype == np.float32
        assert (weight > 0).all()
        total[tuple(slice(a + margin, b + margin) for a, b in box)] += weight[..., 0]
        for (start, stop), n, w in zip(box, volume, size, strict=True):
            assert stop - start == w
            before, after = max(0, -start), max(0, stop - n)
            assert (before, after) == ((w - n) // 2, w - n - (w - n) // 2) if w > n else (0, 0)
    inside = tuple(slice(margin, margin + n) for n in volume)
    np.testing.assert_allclose(total[inside], 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("volume", "size", "overlap", "starts"),
    [
        (240, 96, 0.5, [0, 48, 96, 144]),
        (155, 96, 0.5, [0, 30, 59]),  # 29.5 is rounded to even
        (155, 96, 0, [0, 59]),
        (192, 96, 0, [0, 96]),
        (192, 96, 0.75, [0, 24, 48, 72, 96]),
        (96, 96, 0.5, [0]),
        (1, 16, 0.5, [-7]),
        (5, 1, 0.5, [0, 1, 2, 3, 4]),
    ],
)
def test_windows_are_spread_evenly_as_few_as_the_overlap_allows(volume, size, overlap, starts):
    grid = windows((volume, 7, 7), (size, 7, 7), (overlap, 0, 0))
    assert [box[0][0] for box, _ in grid] == starts


def test_where_windows_overlap_their_weights_are_gaussians_of_an_eighth_of_the_window():
    (_, first), (_, second) = windows((24, 1, 1), (16, 1, 1), (0.5, 0, 0))
    ratio = first[8:, 0, 0, 0] / second[:8, 0, 0, 0]
    x = np.arange(8, 16)
    gaussian = [np.exp(-((x - middle) ** 2) / (2 * (16 / 8) ** 2)) for middle in (7.5, 15.5)]
    np.testing.assert_allclose(ratio, gaussian[0] / gaussian[1], rtol=1e-5)
    assert (first[:8] == 1).all()


# Logits


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("overlap", [0, 0.5, 0.75])
@pytest.mark.parametrize(
    ("rank", "volume", "patch_size"),
    [
        (3, (20, 11, 9), (8, 8, 4)),
        (3, (5, 4, 3), (8, 8, 8)),  # a window larger than the volume
        (3, (6, 20, 1), (4, 16, 4)),  # a volume of one slice
        (2, (20, 11, 18), (8, 8)),
        (2, (3, 17, 1), (8, 4)),
    ],
)
def test_windows_leave_no_seams(rank, volume, patch_size, overlap, mirror):
    """Windowed and in one go, a pointwise network says the same everywhere."""
    model, image = pointwise(rank), an_image(*volume)
    whole = predict_logits(model, image)
    flat = image.reshape(1, *(-1, 1, 1)[:rank], 2)
    expected = model.forward(flat)[0].reshape(*volume, 3)
    assert np.ptp(expected) > 0.3
    np.testing.assert_allclose(whole, expected, atol=1e-5, rtol=0)
    options = {"patch_size": patch_size, "overlap": overlap, "mirror": mirror}
    windowed = predict_logits(model, image, **options)
    np.testing.assert_allclose(windowed, whole, atol=1e-5, rtol=0)


def test_one_window_is_the_network_itself():
    model, image = network(levels=3), an_image(8, 12, 4)
    logits = model.forward(image[None])[0][0]
    assert np.array_equal(predict_logits(model, image), logits)
    assert np.array_equal(predict_logits(model, image, patch_size=(8, 12, 4)), logits)


def test_a_volume_that_cannot_be_halved_is_padded_evenly_and_cut_again():
    model, image = network(levels=3), an_image(5, 8, 9)
    padded = np.pad(image, [(1, 2), (0, 0), (1, 2), (0, 0)])
    expected = model.forward(padded[None])[0][0, 1:6, :, 1:10]
    assert np.array_equal(predict_logits(model, image), expected)


def test_windows_written_out():
    """Sums of weighted logits over the sum of weights, as slowly as possible."""
    model, image, size = network(), an_image(7, 6, 4), (4, 4, 2)
    line = [np.exp(-(((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) / 2) for n in size]
    gaussian = np.einsum("i,j,k->ijk", *line)[..., None]
    total, weights = np.zeros((7, 6, 4, 3)), np.zeros((7, 6, 4, 1))
    for x, y, z in itertools.product((0, 2, 3), (0, 2), (0, 1, 2)):
        window = np.s_[x : x + 4, y : y + 4, z : z + 2]
        total[window] += gaussian * model.forward(image[window][None])[0][0]
        weights[window] += gaussian
    logits = predict_logits(model, image, patch_size=size)
    np.testing.assert_allclose(logits, total / weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 15, 16, 17, 40])
def test_a_2d_network_goes_slice_by_slice(depth):
    model, image = network(2, channels=1, dtype=np.float64), an_image(6, 5, depth)
    padded = np.pad(image[..., 1:], [(0, 0), (0, 1), (0, 0), (0, 0)])
    expected = [model.forward(padded[None, :, :, z])[0][0, :, :5] for z in range(depth)]
    logits = predict_logits(model, image, [1])
    np.testing.assert_allclose(logits, np.stack(expected, axis=2), rtol=1e-5, atol=1e-6)


def test_stacks_of_slices_hardly_overlap(monkeypatch):
    model, slices = network(2), []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda x: slices.append(len(x)) or forward(x))
    predict_logits(model, an_image(6, 4, 40), patch_size=(6, 4), overlap=0.75)
    assert slices == [16, 16, 16]


@pytest.mark.parametrize("rank", [2, 3])
def test_mirroring_averages_over_every_reflection(rank):
    model, image = network(rank), an_image(4, 6, 8)
    axes = range(rank)
    flips = [c for k in range(rank + 1) for c in itertools.combinations(axes, k)]
    assert len(flips) == 2**rank
    flipped = [np.flip(predict_logits(model, np.flip(image, f).copy()), f) for f in flips]
    mirrored = predict_logits(model, image, mirror=True)
    np.testing.assert_allclose(mirrored, np.mean(flipped, axis=0), rtol=1e-4, atol=1e-6)
    assert np.abs(mirrored - flipped[0]).max() > 1e-2
    again = predict_logits(model, np.flip(image, 1).copy(), mirror=True)
    np.testing.assert_allclose(np.flip(again, 1), mirrored, rtol=1e-4, atol=1e-6)


def test_channels_are_chosen_in_the_order_given():
    model, image = network(), an_image(4, 4, 4, channels=4)
    expected = predict_logits(model, image[..., [3, 1]].copy())
    assert np.array_equal(predict_logits(model, image, (3, 1)), expected)


def test_classes_and_probabilities_are_those_of_the_logits():
    model, image = network(), an_image(4, 6, 8)
    logits = predict_logits(model, image, mirror=True)
    classes = predict(model, image, mirror=True)
    assert classes.dtype == np.uint8
    assert np.array_equal(classes, logits.argmax(axis=-1))
    assert np.array_equal(most_likely(logits), classes)
    assert len(np.unique(classes)) > 1
    expected, _ = softmax_forward(logits)
    softmax_inplace(logits)
    assert np.array_equal(logits, expected)


@pytest.mark.usefixtures("without_twins")
@pytest.mark.parametrize(("rank", "patch_size"), [(3, None), (3, (8, 4, 6)), (2, (4, 8))])
def test_all_of_it_is_done_on_the_device_of_the_network(rank, patch_size):
    """There an array comes back; the classes are few bytes and come to the host."""
    host, device, image = network(rank), network(rank), an_image(7, 6, 5)
    for parameter in (device.named_parameters() | device.named_buffers()).values():
        parameter.value = standin.asarray(parameter.value)
    options = {"patch_size": patch_size, "mirror": True}
    logits, expected = (predict_logits(model, image, **options) for model in (device, host))
    assert isinstance(logits, standin.ndarray)
    assert np.array_equal(logits.get(), expected)
    assert np.array_equal(predict(device, image, **options), predict(host, image, **options))
    for values in (logits, expected):
        softmax_inplace(values)
    assert np.array_equal(logits.get(), expected)


def test_a_network_in_float64_gives_logits_in_float32():
    model, image = network(dtype=np.float64), an_image(4, 4, 4)
    logits = predict_logits(model, image)
    assert logits.dtype == np.float32
    expected = model.forward(image[None].astype(np.float64))[0][0]
    np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"overlap": 1}, r"overlap: got 1, expected 0 to 0\.9"),
        ({"overlap": 0.999999}, "overlap"),  # so many windows would take days
        ({"overlap": -0.1}, "overlap"),
        ({"overlap": float("nan")}, "overlap"),
        ({"patch_size": (8, 8)}, r"patch_size: got \(8, 8\), expected 3 multiples of 2 above 0"),
        ({"patch_size": (8, 7, 8)}, "multiples of 2"),
        ({"patch_size": (8, 0, 8)}, "multiples of 2"),
    ],
)
def test_impossible_windows_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        predict_logits(network(), an_image(8, 8, 8), **options)


@pytest.mark.parametrize("channels", [[2], [0, -1]])
def test_channels_that_an_image_does_not_have_are_refused(channels):
    with pytest.raises(InputError, match=r"channels: got \(.*\), expected some of an image's 2"):
        predict_logits(network(), an_image(8, 8, 8), channels)


def test_an_image_of_another_rank_is_refused():
    image = an_image(8, 8, 8)
    for wrong in (image[0], image[None]):
        with pytest.raises(InputError, match=r"image: got shape .*, expected \(X, Y, Z, C\)"):
            predict_logits(network(), wrong)
