"""Patches: where they lie, how often about tumour, always the same, and cheap to read."""

import subprocess
import sys
import tracemalloc
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibrain import experiment
from minibrain.data import patches, phantom_task
from minibrain.data.augment import NOISE_STD, add_noise_inplace, flip
from minibrain.data.loader import batches
from minibrain.data.patches import MOST_VOXELS, PatchSamples
from minibrain.errors import InputError
from minibrain.runs import fitting
from minibrain.runs.config import SMALL_3D

PATCH = (3, 2, 2)
SIZES = st.tuples(*[st.integers(1, 7)] * 3)


def case(size, tumour=(), name="CASE"):
    """Every voxel of the image holds its own number, from 1; tumour maps positions to classes."""
    image = np.arange(1, np.prod(size) + 1, dtype=np.float32).reshape(*size, 1)
    label = np.zeros(size, np.uint8)
    for position, number in dict(tumour).items():
        label[position] = number
    image.flags.writeable = label.flags.writeable = False  # as mapped arrays are
    return SimpleNamespace(name=name, image=image, label=label)


def start_of(image, size):
    """Where in its case a patch that lies within it begins."""
    return tuple(map(int, np.unravel_index(int(image.flat[0]) - 1, size)))


def starts(samples, size, epochs):
    return Counter(
        start_of(samples.read(index, epoch=epoch)[0], size)
        for epoch in range(epochs)
        for index in range(len(samples))
    )


def test_a_patch_is_a_block_of_its_case():
    size = (5, 4, 6)
    whole = case(size, {(2, 2, 2): 3, (4, 3, 5): 1})
    for index in range(10):
        image, label, name = PatchSamples([whole], PATCH).read(index)
        block = tuple(slice(a, a + n) for a, n in zip(start_of(image, size), PATCH, strict=True))
        np.testing.assert_array_equal(image, whole.image[block])
        np.testing.assert_array_equal(label, whole.label[block])
        assert (image.dtype, label.dtype, name) == (np.float32, np.uint8, "CASE")


def test_an_epoch_takes_as_many_patches_of_a_case_as_would_tile_it():
    cases = [case((6, 4, 4), name="A"), case((6, 4, 5), name="B"), case((1, 1, 1), name="C")]
    samples = PatchSamples(cases, PATCH)
    assert len(samples) == 8 + 10 + 1
    assert [samples.name(index) for index in range(19)] == ["A"] * 8 + ["B"] * 10 + ["C"]
    assert samples.read(8)[2] == "B"


def test_patches_from_anywhere_begin_everywhere_equally_often():
    size = (5, 4, 3)
    found = starts(PatchSamples([case(size)], PATCH), size, epochs=400)
    possible = [(x, y, z) for x in range(3) for y in range(3) for z in range(2)]
    assert set(found) == set(possible)
    expected = found.total() / len(possible)
    deviation = sum((count - expected) ** 2 / expected for count in found.values())
    assert deviation < 41  # chi-square with 17 degrees of freedom: one in a thousand is above


def test_one_patch_in_three_is_about_tumour():
    size, voxel = (20, 20, 20), (10, 10, 10)
    samples = PatchSamples([case(size, {voxel: 2})], PATCH)
    hits = [
        samples.read(index, epoch=epoch)[1].any()
        for epoch in range(5)
        for index in range(len(samples))
    ]
    by_chance = np.prod(PATCH) / (18 * 19 * 19)
    share = 1 / 3 + 2 / 3 * by_chance
    assert abs(np.mean(hits) - share) < 4 * np.sqrt(share * (1 - share) / len(hits))


def test_a_tumour_voxel_is_centred_and_every_class_is_drawn_alike(monkeypatch):
    """Class 1 has a thousand times the voxels of class 3."""
    monkeypatch.setattr(patches, "FOREGROUND", 1)
    size = (20, 20, 30)
    tumour = {(x, y, z): 1 for x in range(10) for y in range(10) for z in range(10)}
    whole = case(size, tumour | {(15, 15, 25): 3})
    samples = PatchSamples([whole], (5, 4, 3))
    labels = [samples.read(0, epoch=epoch)[1] for epoch in range(400)]
    rare = [label for label in labels if label[2, 2, 1] == 3]
    assert abs(len(rare) / 400 - 1 / 2) < 4 * np.sqrt(1 / 4 / 400)
    assert all(label.any() for label in labels)


def test_no_more_positions_are_kept_than_needed_and_they_lie_all_over_the_class():
    label = np.zeros((60, 50, 4), np.uint8)
    label[5:55] = 1
    whole = SimpleNamespace(name="A", image=np.zeros((*label.shape, 1), np.float32), label=label)
    samples = PatchSamples([whole], (4, 4, 4))
    samples.read(0)
    (voxels,) = samples._tumour["A"]
    assert MOST_VOXELS / 2 < len(voxels) <= MOST_VOXELS
    x, y, z = np.unravel_index(voxels, label.shape)
    assert label.reshape(-1)[voxels].all()
    assert (x.min(), x.max()) == (5, 54)
    assert len(set(x)) == 50
    assert len(set(zip(y, z, strict=True))) > 10


@given(SIZES, SIZES, st.data())
def test_every_patch_has_its_size_stays_within_and_holds_the_tumour(size, patch, data):
    """A case smaller than the patch along an axis lies in its middle, between zeros."""
    voxel = tuple(data.draw(st.integers(0, n - 1)) for n in size)
    whole = case(size, {voxel: 1})
    seed = data.draw(st.integers(0, 2**32))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(patches, "FOREGROUND", 1)
        image, label, _ = PatchSamples([whole], patch).read(0, seed=seed)
    assert image.shape == (*patch, 1)
    assert label.shape == patch
    assert label.sum() == 1
    before = [max(p - n, 0) // 2 for n, p in zip(size, patch, strict=True)]
    seen = [min(p, n) for n, p in zip(size, patch, strict=True)]
    inside = tuple(slice(b, b + n) for b, n in zip(before, seen, strict=True))
    assert (image[inside] > 0).all()
    assert np.count_nonzero(image) == np.prod(seen)
    assert image[label == 1].tolist() == [whole.image[voxel].tolist()]


def test_the_position_depends_on_seed_epoch_and_index_alone(monkeypatch):
    size = (30, 30, 30)
    cases = [case(size, {(3, 4, 5): 1, (20, 4, 6): 2}, name="A"), case(size, name="B")]
    keys = [(seed, epoch, index) for seed in (0, 7) for epoch in (0, 1, 2) for index in range(9)]

    def drawn(order, foreground):
        monkeypatch.setattr(patches, "FOREGROUND", foreground)
        samples = PatchSamples(cases, (10, 10, 10))
        read = {(s, e, i): samples.read(i, seed=s, epoch=e)[0].tobytes() for s, e, i in order}
        return [read[key] for key in keys]

    assert drawn(keys, 0.5) == drawn(keys[::-1], 0.5)
    assert len(set(drawn(keys, 0))) == len(keys)


def test_batches_are_augmented_patches_of_their_epoch():
    samples = PatchSamples([case((9, 9, 9), {(1, 1, 1): 1}), case((5, 6, 7))], (4, 4, 4))
    drawn = {}
    for epoch in (0, 3):
        expected = set()
        for index in range(len(samples)):
            image, label, _ = samples.read(index, seed=5, epoch=epoch)
            image, label = flip(image.copy(), label, seed=5, epoch=epoch, index=index)
            add_noise_inplace(image, NOISE_STD, seed=5, epoch=epoch, index=index)
            expected.add((image.tobytes(), label.tobytes()))
        epoch_batches = batches(samples, 3, seed=5, epoch=epoch, training=True)
        pairs = [pair for b in epoch_batches for pair in zip(b.images, b.labels, strict=True)]
        drawn[epoch] = {(image.tobytes(), label.tobytes()) for image, label in pairs}
        assert len(pairs) == len(samples)
        assert drawn[epoch] == expected
    assert not drawn[0] & drawn[3]


def test_a_run_that_goes_on_gets_the_patches_it_would_have_got(tmp_path, monkeypatch):
    """Interrupted in the middle of the second epoch; what is learned is the same, bit for bit."""
    monkeypatch.setattr(experiment, "judge", lambda *arguments, **options: None)
    task = phantom_task.write_task(tmp_path / "task", cases=4, size=(32, 32, 16))
    config = replace(
        SMALL_3D,
        patch_size=(16, 16, 12),
        epochs=2,
        batch_size=3,
        device="cpu",
        data=str(task),
    )

    def interrupt(*arguments, **options):
        if arguments[4] == 5:
            raise KeyboardInterrupt
        return train_step(*arguments, **options)

    runs = {name: tmp_path / name for name in ("straight", "interrupted")}
    experiment.run(replace(config, output=str(runs["straight"])))
    train_step = fitting.train_step
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "train_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(replace(config, output=str(runs["interrupted"])))
    experiment.resume(str(runs["interrupted"]))
    bits = []
    for folder in runs.values():
        with np.load(folder / "checkpoints" / "last.npz") as stored:
            assert stored["adam/steps"] == 8
            bits.append({name: stored[name].tobytes() for name in stored if "network" in name})
    assert bits[0] == bits[1]


@pytest.mark.parametrize("patch_size", [(4, 4), (4, 4, 4, 4), (4, 0, 4), (4, 4, -1)])
def test_impossible_patch_sizes_are_refused(patch_size):
    with pytest.raises(InputError, match="patch_size: got"):
        PatchSamples([case((5, 5, 5))], patch_size)


FULL_SIZE = """
import resource, sys
from types import SimpleNamespace
import numpy as np
from minibrain.data.patches import PatchSamples

class Case:
    name = "A"
    image = property(lambda self: np.load(sys.argv[1] + "/image.npy", mmap_mode="r"))
    label = property(lambda self: np.load(sys.argv[1] + "/label.npy", mmap_mode="r"))

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before = peak()
samples = PatchSamples([Case()], (64, 64, 64))
for index in range(3):
    samples.read(index)
print(peak() - before)
"""


def test_a_full_size_case_is_read_in_little_memory(tmp_path):
    """Its image is 143 MB and its label 9; a patch has 4 MB, in pages of 4 KiB around it more."""
    shape = (240, 240, 155)
    image = np.lib.format.open_memmap(
        tmp_path / "image.npy", "w+", dtype=np.float32, shape=(*shape, 4)
    )
    label = np.lib.format.open_memmap(tmp_path / "label.npy", "w+", dtype=np.uint8, shape=shape)
    label[100:150, 100:150, 60:90] = 2
    label.flush()
    del image
    command = [sys.executable, "-c", FULL_SIZE, str(tmp_path)]
    grown = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < 60, f"{grown} MB"


def test_finding_the_tumour_takes_little_beside_the_label():
    label = np.zeros((200, 200, 100), np.uint8)
    label[50:100, 50:100, 30:60] = 3
    whole = SimpleNamespace(name="A", image=np.zeros((*label.shape, 1), np.uint8), label=label)
    samples = PatchSamples([whole], (8, 8, 8))
    tracemalloc.start()
    samples.read(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < label.nbytes / 2
