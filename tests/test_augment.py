"""Augmentation is a flip of both, plus noise on the image, and nothing else."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibrain.data.augment import NOISE_STD, augment

KEYS = {"seed": 3, "epoch": 5, "index": 7}


def sample(*space, channels=2, seed=0):
    random = np.random.default_rng(seed)
    image = random.standard_normal((*space, channels)).astype(np.float32)
    return image, random.integers(0, 4, space, dtype=np.uint8)


def flips(rank):
    """Every set of axes that a sample of this rank can be flipped along."""
    return [axes for n in range(rank + 1) for axes in itertools.combinations(range(rank), n)]


def flip_used(label, augmented):
    (axes,) = (a for a in flips(label.ndim) if np.array_equal(np.flip(label, a), augmented))
    return axes


@pytest.mark.parametrize("space", [(9, 14), (9, 7, 6)])
def test_image_and_label_are_flipped_alike_and_every_flip_occurs(space):
    image, label = sample(*space)
    seen = set()
    for index in range(100):
        augmented, moved = augment(image, label, seed=0, epoch=0, index=index)
        axes = flip_used(label, moved)
        noise = augmented - np.flip(image, axes)
        assert np.abs(noise).max() < 6 * NOISE_STD
        seen.add(axes)
    assert seen == set(flips(len(space)))


def test_each_axis_is_flipped_in_half_of_the_samples_whatever_the_others_are():
    label = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    image = np.zeros((2, 2, 2, 1), np.float32)
    counts = np.zeros(8, int)
    for index in range(4000):
        _, moved = augment(image, label, seed=0, epoch=0, index=index)
        counts[moved[0, 0, 0]] += 1  # its bits: which axes were flipped
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)


@pytest.mark.parametrize("background", [True, False])
def test_noise_is_gaussian_on_every_voxel_background_or_not(background):
    shape = (40, 40, 30)
    label = np.full(shape, 0 if background else 3, np.uint8)
    noise, _ = augment(np.zeros((*shape, 2), np.float32), label, **KEYS)
    count = noise.size
    assert np.all(noise != 0)
    assert abs(noise.mean()) < 5 * NOISE_STD / np.sqrt(count)
    assert abs(noise.std() / NOISE_STD - 1) < 5 / np.sqrt(2 * count)
    assert abs(np.mean(np.abs(noise) < NOISE_STD) - 0.6827) < 5 * 0.466 / np.sqrt(count)
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.03


def test_the_same_keys_give_the_same_bits_and_each_key_matters():
    image, label = sample(6, 5, 4)
    first = augment(image, label, **KEYS)
    again = augment(image, label, **KEYS)
    assert [a.tobytes() for a in first] == [a.tobytes() for a in again]
    for key in KEYS:
        other, _ = augment(image, label, **{**KEYS, key: KEYS[key] + 1})
        assert not np.array_equal(np.sort(other, axis=None), np.sort(first[0], axis=None))


@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=3),
    st.integers(1, 4),
    st.sampled_from(["f2", "f4", "f8", "i2"]),
    st.integers(0, 2**31),
)
def test_any_shape_and_dtype_comes_back_as_float32_with_the_label_only_moved(
    space, channels, dtype, index
):
    image, label = sample(*space, channels=channels)
    image = image.astype(dtype)
    augmented, moved = augment(image, label, seed=1, epoch=2, index=index)
    assert augmented.shape == image.shape
    assert augmented.dtype == np.float32
    assert moved.dtype == label.dtype
    assert any(np.array_equal(np.flip(label, axes), moved) for axes in flips(len(space)))


def test_mapped_read_only_inputs_are_left_untouched(tmp_path):
    image, label = sample(5, 4, 3)
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "label.npy", label)
    mapped = [np.load(tmp_path / f"{kind}.npy", mmap_mode="r") for kind in ("image", "label")]
    for index in range(8):
        augmented, moved = augment(*mapped, seed=0, epoch=0, index=index)
        augmented[...], moved[...] = -1, 9  # writable, and apart from the inputs
    np.testing.assert_array_equal(mapped[0], image)
    np.testing.assert_array_equal(mapped[1], label)
