"""Augmentation is a flip of both, plus noise on the image, and nothing else."""

import itertools
import math

import numpy as np
import pytest

from minibrain.data import augment
from minibrain.data.augment import NOISE_STD, add_noise_inplace, flip

KEYS = {"seed": 3, "epoch": 5, "index": 7}


def sample(*space, channels=2, seed=0):
    random = np.random.default_rng(seed)
    image = random.standard_normal((*space, channels)).astype(np.float32)
    return image, random.integers(0, 4, space, dtype=np.uint8)


def flips(rank):
    """Every set of axes that a sample of this rank can be flipped along."""
    return [axes for n in range(rank + 1) for axes in itertools.combinations(range(rank), n)]


def noise(*shape, std=1.0, **changed):
    """What is added to an image of zeros."""
    image = np.zeros(shape, np.float32)
    add_noise_inplace(image, std, **KEYS | changed)
    return image


@pytest.mark.parametrize("space", [(9, 14), (9, 7, 6)])
def test_image_and_label_are_flipped_alike_and_every_flip_occurs(space):
    image, label = sample(*space)
    seen = set()
    for index in range(100):
        moved_image, moved = flip(image, label, seed=0, epoch=0, index=index)
        (axes,) = (a for a in flips(label.ndim) if np.array_equal(np.flip(label, a), moved))
        np.testing.assert_array_equal(moved_image, np.flip(image, axes))
        seen.add(axes)
    assert seen == set(flips(len(space)))


def test_each_axis_is_flipped_in_half_of_the_samples_whatever_the_others_are():
    label = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    image = np.zeros((2, 2, 2, 1), np.float32)
    counts = np.zeros(8, int)
    for index in range(4000):
        _, moved = flip(image, label, seed=0, epoch=0, index=index)
        counts[moved[0, 0, 0]] += 1  # its bits: which axes were flipped
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)


def test_noise_is_gaussian():
    drawn = noise(40, 40, 30, 2, std=NOISE_STD) / NOISE_STD
    ordered, count = np.sort(drawn, axis=None), drawn.size
    normal = [(1 + math.erf(x / math.sqrt(2))) / 2 for x in ordered]
    steps = np.arange(count + 1) / count  # Kolmogorov and Smirnov's test, with p = 1e-5
    apart = max(np.abs(normal - steps[1:]).max(), np.abs(normal - steps[:-1]).max())
    assert apart < 2.47 / np.sqrt(count)
    for axis in range(4):  # the two of a pair, too, know nothing of each other
        low, high = np.split(drawn, 2, axis)
        assert abs(np.corrcoef(low.ravel(), high.ravel())[0, 1]) < 5 / np.sqrt(count / 2)
    pairs = drawn.reshape(-1, 2)
    assert abs(np.corrcoef(*pairs.T)[0, 1]) < 5 / np.sqrt(count / 2)
    assert abs(np.corrcoef(*(pairs**2).T)[0, 1]) < 5 / np.sqrt(count / 2)


def philox(counter, key):
    """Random123's ten rounds, in integers of Python."""
    c, k, mask = list(counter), list(key), 2**64 - 1
    for _ in range(10):
        a, b = c[0] * 0xD2E7470EE14C6C93, c[2] * 0xCA5A826395121157
        c = [b >> 64 ^ c[1] ^ k[0], b & mask, a >> 64 ^ c[3] ^ k[1], a & mask]
        k = [k[0] + 0x9E3779B97F4A7C15 & mask, k[1] + 0xBB67AE8584CAA73B & mask]
    return c


@pytest.mark.parametrize("at_once", [2, 6, 2**15])
@pytest.mark.parametrize("shape", [(5, 3, 3), (7, 2, 3, 4), (3, 1), (1, 9, 1)])
def test_numbers_are_those_of_the_formula_however_many_are_made_at_once(
    shape, at_once, monkeypatch
):
    monkeypatch.setattr(augment, "AT_ONCE", at_once)
    key = {"seed": 2**64 - 1, "epoch": 2**63, "index": 2**40}
    words = [
        word
        for block in range(1, 2 + math.prod(shape) // 8)
        for word in philox((block, 0, 0, key["epoch"]), (key["seed"], key["index"]))
    ]
    expected = []
    for word in words:
        u, v = (word % 2**32 >> 8) / 2**24, (word >> 40) / 2**24
        expected.append(math.sqrt(-2 * math.log(1 - u)) * np.exp(2j * math.pi * v))
    expected = np.array(expected).view(float)[: math.prod(shape)].reshape(shape)
    np.testing.assert_allclose(noise(*shape, **key), expected, atol=3e-6)


def test_the_same_keys_give_the_same_bits_and_each_key_matters():
    first = noise(6, 5, 4)
    assert noise(6, 5, 4).tobytes() == first.tobytes()
    for key in KEYS:
        assert not np.isin(noise(6, 5, 4, **{key: KEYS[key] + 1}), first).any()


def test_noise_is_added_to_what_is_there_and_nothing_else():
    image = np.random.default_rng(0).standard_normal((6, 7, 8, 3)).astype(np.float32)
    changed = image.copy()
    inside = changed[1:5, :6, 2:, :]
    add_noise_inplace(inside, NOISE_STD, **KEYS)
    expected = image.copy()
    expected[1:5, :6, 2:] += noise(4, 6, 6, 3, std=NOISE_STD)
    np.testing.assert_array_equal(changed, expected)
