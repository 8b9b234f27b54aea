"""Preparing cases: crops that come back in place, normalisation, and a cache to be trusted."""

import itertools
import json
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, ornt_transform

from minibrain import files
from minibrain.data import decathlon, prepare, prepared
from minibrain.data.nifti import NiftiError
from minibrain.data.prepare import crop, prepare_image, restore
from minibrain.errors import InputError

RECIPES = ("reference", "zscore")
AXIS_CODES = [
    tuple(pair[sign] for pair, sign in zip(axes, signs, strict=True))
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for signs in itertools.product((0, 1), repeat=3)
]


def affine_of(codes, spacing=(1.0, 1.5, 2.0)):
    """An affine whose voxel axes point as the codes say."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    affine[:3, 3] = (-70, 33, 8)
    for axis, code in enumerate(codes):
        world = next(w for w, pair in enumerate(("LR", "PA", "IS")) if code in pair)
        affine[world, axis] = spacing[axis] * (1 if code in "RAS" else -1)
    return affine


def block_image(shape, start, stop, channels=2, seed=0):
    """Zeros, with positive random intensities in the block [start, stop)."""
    image = np.zeros((*shape, channels), np.float32)
    block = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    size = image[block].shape
    image[block] = np.random.default_rng(seed).uniform(1, 900, size).astype(np.float32)
    return image


def canonical_by_nibabel(array, affine):
    image = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
    return np.asarray(image.dataobj)


@st.composite
def blocks(draw):
    """A volume of odd and even sizes, a block of intensities in it, and an orientation."""
    shape = tuple(draw(st.integers(1, 37)) for _ in range(3))
    start = tuple(draw(st.integers(0, size - 1)) for size in shape)
    stop = tuple(draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True))
    codes = draw(st.sampled_from(AXIS_CODES))
    return block_image(shape, start, stop), affine_of(codes)


def make_task(folder, cases):
    """Write (image, label) pairs as a Decathlon task with nibabel, and open it."""
    channels = cases[0][0].shape[-1]
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    training = []
    for number, (image, label) in enumerate(cases):
        names = {sub: f"./{sub}/CASE_{number}.nii.gz" for sub in ("imagesTr", "labelsTr")}
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / names["imagesTr"])
        nib.save(nib.Nifti1Image(label, np.eye(4)), folder / names["labelsTr"])
        training.append({"image": names["imagesTr"], "label": names["labelsTr"]})
    description = {
        "name": "Tiny",
        "tensorImageSize": "4D",
        "modality": {str(c): f"channel {c}" for c in range(channels)},
        "labels": {"0": "background", "1": "edema", "2": "core"},
        "numTraining": len(training),
        "numTest": 0,
        "training": training,
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return decathlon.open_task(folder)


def tiny_cases(count, tumour=64):
    """Cases of 17x16x9 voxels whose box is 16x16x16 = 4096, with so many tumour voxels."""
    cases = []
    for seed in range(count):
        label = np.zeros((17, 16, 9), np.uint8)
        label[3:13, 3:13, 2:8].flat[:tumour] = 2
        cases.append((block_image((17, 16, 9), (1, 1, 1), (16, 15, 8), seed=seed), label))
    return cases


def refuse_reading(monkeypatch):
    def read_case(task, case):
        raise AssertionError(f"{case.name} was read again")

    monkeypatch.setattr(prepare, "read_case", read_case)


# --- crop and restore ------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*constant")
@given(blocks(), st.sampled_from(RECIPES))
def test_the_box_is_the_nonzero_bounding_box_grown_evenly_to_multiples_of_16(volume, recipe):
    image, affine = volume
    _, geometry = prepare_image(image, affine, recipe=recipe)
    occupied = np.argwhere(canonical_by_nibabel(image, affine).any(axis=3))
    for axis, (start, stop) in enumerate(geometry.box):
        first, last = occupied[:, axis].min(), occupied[:, axis].max() + 1
        before, after = first - start, stop - last
        assert (stop - start) % 16 == 0
        assert stop - start < last - first + 16
        assert before >= 0
        assert 0 <= after - before <= 1


@pytest.mark.filterwarnings("ignore:.*constant")
@given(blocks(), st.sampled_from(RECIPES))
def test_crop_is_the_box_of_the_reoriented_volume_with_zeros_beyond_it(volume, recipe):
    image, affine = volume
    _, geometry = prepare_image(image, affine, recipe=recipe)
    padded = np.pad(canonical_by_nibabel(image, affine), [(16, 16)] * 3 + [(0, 0)])
    box = tuple(slice(start + 16, stop + 16) for start, stop in geometry.box)
    np.testing.assert_array_equal(crop(image, geometry), padded[box])
    np.testing.assert_array_equal(crop(image[..., 0], geometry), padded[box][..., 0])


@pytest.mark.filterwarnings("ignore:.*constant")
@given(blocks(), st.sampled_from(RECIPES))
def test_restore_is_the_identity_inside_the_box_and_zero_outside(volume, recipe):
    image, affine = volume
    _, geometry = prepare_image(image, affine, recipe=recipe)
    label = np.random.default_rng(1).integers(1, 4, image.shape[:3], dtype=np.uint8)
    restored = restore(crop(label, geometry), geometry)
    inside = restore(np.ones(geometry.prepared_shape, np.uint8), geometry).astype(bool)
    assert restored.dtype == np.uint8
    np.testing.assert_array_equal(restored, label * inside)
    assert inside[image.any(axis=3)].all()
    common = [
        min(stop, size) - max(start, 0)
        for (start, stop), size in zip(
            geometry.box, canonical_by_nibabel(label, affine).shape, strict=True
        )
    ]
    assert np.count_nonzero(inside) == np.prod(common)


@pytest.mark.parametrize("codes", AXIS_CODES, ids="".join)
def test_every_orientation_is_prepared_alike_and_restored_to_itself(codes):
    canonical = block_image((21, 18, 9), (2, 1, 0), (19, 17, 8))
    ras = nib.Nifti1Image(canonical, affine_of("RAS"))
    turned = ras.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes)))
    image = np.asarray(turned.dataobj)
    prepared, geometry = prepare_image(image, turned.affine)
    expected, _ = prepare_image(canonical, ras.affine)
    np.testing.assert_array_equal(prepared, expected)
    tumour = (image[..., 0] > 500).astype(np.uint8)
    np.testing.assert_array_equal(restore(crop(tumour, geometry), geometry), tumour)


@pytest.mark.parametrize(("codes", "first_z"), [(("R", "A", "S"), 13), (("L", "P", "I"), 14)])
def test_a_brats_volume_is_cropped_to_the_reference_box(codes, first_z):
    """The box counts from below: in a file whose z points down it starts at 155 - 141 = 14."""
    image = np.full((240, 240, 155, 1), 3, np.int16)
    image[40:200, 40:200, first_z : first_z + 128] = 1
    image[40, 41, first_z] = 2
    prepared, geometry = prepare_image(image, affine_of(codes))
    assert geometry.box == ((40, 200), (40, 200), (13, 141))
    assert prepared.shape == (160, 160, 128, 1)
    assert np.unique(crop(image, geometry)).tolist() == [1, 2]
    assert np.argwhere(prepared[..., 0] == 1).tolist() == (
        [[0, 1, 0]] if codes[0] == "R" else [[159, 158, 127]]
    )


def test_zscore_crops_a_brats_volume_to_its_brain():
    image = np.zeros((240, 240, 155, 1), np.int16)
    image[50:150, 60:190, 30:130, 0] = np.arange(1, 101)
    _, geometry = prepare_image(image, np.eye(4), recipe="zscore")
    assert geometry.box == ((44, 156), (53, 197), (24, 136))


def test_an_image_of_zeros_keeps_its_whole_volume():
    with pytest.warns(UserWarning, match="constant"):
        prepared, geometry = prepare_image(np.zeros((17, 16, 3, 1)), np.eye(4))
    assert geometry.box == ((-7, 25), (0, 16), (-6, 10))
    assert not prepared.any()


def test_a_prediction_of_another_shape_is_refused():
    _, geometry = prepare_image(block_image((16, 16, 16), (0,) * 3, (16,) * 3), np.eye(4))
    with pytest.raises(InputError, match=r"got shape \(16, 16, 15\), expected \(16, 16, 16\)"):
        restore(np.zeros((16, 16, 15), np.uint8), geometry)


# --- normalisation ---------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*constant")
@given(blocks())
def test_min_max_spans_0_to_1_in_each_channel_and_pads_with_the_value_of_air(volume):
    image, affine = volume
    image[..., 1] = image[..., 1] * 3 + 50  # here even air has an intensity
    image[image.shape[0] // 2, 0, 0, 1] = 4000
    prepared, geometry = prepare_image(image, affine)
    raw = crop(image.astype(np.float64), geometry)
    inside = crop(np.ones(image.shape[:3], bool), geometry)
    for c in range(2):
        low, high = raw[inside, c].min(), raw[inside, c].max()
        if low < high:
            expected = (raw[..., c] - low) / (high - low)
            np.testing.assert_allclose(prepared[..., c], expected, rtol=1e-6, atol=1e-7)
            assert prepared[inside, c].min() == 0
            assert prepared[inside, c].max() == 1
            assert len(np.unique(prepared[~inside, c])) <= 1


@pytest.mark.filterwarnings("ignore:.*constant")
@given(blocks())
def test_zscore_standardises_the_nonzero_voxels_of_each_channel_and_leaves_zeros(volume):
    image, affine = volume
    image[::2, ..., 1] = 0
    prepared, geometry = prepare_image(image, affine, recipe="zscore")
    raw = crop(image.astype(np.float64), geometry)
    for c in range(2):
        values = raw[..., c][raw[..., c] != 0]
        if len(set(values)) > 1:
            expected = np.where(raw[..., c] == 0, 0, (raw[..., c] - values.mean()) / values.std())
            np.testing.assert_allclose(prepared[..., c], expected, rtol=1e-5, atol=1e-5)
            assert not prepared[raw[..., c] == 0, c].any()


def test_zscore_of_a_small_spread_on_a_large_mean_is_exact():
    random = np.random.default_rng(0)
    image = (1e4 + random.standard_normal((32, 32, 32, 1))).astype(np.float32)
    prepared, _ = prepare_image(image, np.eye(4), recipe="zscore")
    assert abs(prepared.mean(dtype=np.float64)) < 1e-6
    assert abs(prepared.std(dtype=np.float64) - 1) < 1e-6


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("value", [0, 7, 0.1])
def test_a_constant_channel_becomes_zeros_with_one_warning_even_where_it_is_padded(recipe, value):
    image = block_image((17, 16, 9), (0, 0, 0), (17, 16, 9), channels=3)
    image[..., 1] = value
    with pytest.warns(UserWarning, match="constant") as caught:
        prepared, _ = prepare_image(image, np.eye(4), recipe=recipe, name="CASE_9")
    assert [str(w.message) for w in caught] == ["CASE_9: channel 1 is constant, prepared as zeros"]
    assert not prepared[..., 1].any()
    assert prepared[..., 0].any()
    assert prepared[..., 2].any()


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_image_given_is_left_untouched(recipe):
    image = block_image((16, 16, 16), (0, 0, 0), (16, 16, 16))
    before = image.copy()
    image.flags.writeable = False
    prepared, _ = prepare_image(image, np.eye(4), recipe=recipe)
    assert prepared.dtype == np.float32
    assert prepared.flags.c_contiguous
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("recipe", RECIPES)
def test_memory_is_the_result_and_little_more_than_one_channel_in_float64(recipe):
    image = block_image((64, 64, 64), (0, 0, 0), (64, 64, 64), channels=8)
    tracemalloc.start()
    prepare_image(image, np.eye(4), recipe=recipe)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.8 * image.nbytes  # a copy of the whole case in float64 would be 2 more


# --- the cache -------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("workers", [1, 3])
def test_prepared_cases_are_mapped_arrays_of_what_prepare_image_gives(tmp_path, recipe, workers):
    cases = tiny_cases(5)
    task = make_task(tmp_path / "task", cases)
    done = prepare.prepare(task, tmp_path / "cache", recipe=recipe, workers=workers)
    assert [case.name for case in done.cases] == [f"CASE_{i}" for i in range(5)]
    for case, (image, label) in zip(done.cases, cases, strict=True):
        expected, geometry = prepare_image(image, np.eye(4), recipe=recipe)
        assert case.geometry == geometry
        for mapped, array in ((case.image, expected), (case.label, crop(label, geometry))):
            assert isinstance(mapped, np.memmap)
            assert not mapped.flags.writeable
            assert mapped.dtype == array.dtype
            np.testing.assert_array_equal(mapped, array)
        assert case.voxels == (4096 - 64, 0, 64)
        np.testing.assert_array_equal(restore(case.label, case.geometry), label)


@pytest.mark.filterwarnings("ignore:.*constant")
def test_only_the_reference_recipe_drops_cases_under_1_percent_and_still_prepares_them(tmp_path):
    volumes = (0, 40, 41, 64)  # 1 % of the box is 40.96 voxels
    cases = [tiny_cases(1, tumour)[0] for tumour in volumes]
    task = make_task(tmp_path / "task", cases)
    done = prepare.prepare(task, tmp_path / "cache")
    assert [case.voxels[2] for case in done.cases] == [41, 64]
    assert [case.voxels[2] for case in done.dropped] == [0, 40]
    assert [int(np.count_nonzero(case.label)) for case in done.dropped] == [0, 40]
    done = prepare.prepare(task, tmp_path / "cache", recipe="zscore")
    assert [case.voxels[2] for case in done.cases] == [0, 40, 41, 64]
    assert done.dropped == ()


def test_exactly_1_percent_is_kept(tmp_path):
    image, _ = tiny_cases(1)[0]
    image = block_image((80, 80, 16), (0, 0, 0), (80, 80, 16), channels=1)
    label = np.zeros((80, 80, 16), np.uint8)
    label.flat[:1024] = 1
    assert label.mean() == 0.01
    task = make_task(tmp_path / "task", [(image, label)])
    assert len(prepare.prepare(task, tmp_path / "cache").cases) == 1


@pytest.mark.parametrize("recipe", RECIPES)
def test_preparing_again_reads_no_case_and_gives_the_same(tmp_path, monkeypatch, recipe):
    task = make_task(tmp_path / "task", tiny_cases(3, tumour=41) + tiny_cases(1, tumour=5))
    first = prepare.prepare(task, tmp_path / "cache", recipe=recipe)
    refuse_reading(monkeypatch)
    again = prepare.prepare(task, str(tmp_path / "cache"), recipe=recipe)
    assert again == first
    assert len(first.dropped) == (recipe == "reference")


def test_the_cache_holds_nothing_but_the_lock_the_arrays_and_the_index(tmp_path):
    task = make_task(tmp_path / "task", tiny_cases(2))
    prepare.prepare(task, tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        *(f"CASE_{i}.{kind}.npy" for i in range(2) for kind in ("image", "label")),
        "index.json",
    ]


def rewrite_label(folder):
    nib.save(
        nib.Nifti1Image(np.ones((17, 16, 9), np.uint8), np.eye(4)),
        folder / "labelsTr/CASE_1.nii.gz",
    )


def touch_image(folder):
    path = folder / "imagesTr/CASE_0.nii.gz"
    path.write_bytes(path.read_bytes())


def rename_class(folder):
    path = folder / "dataset.json"
    path.write_text(path.read_text().replace("edema", "oedema"))


@pytest.mark.parametrize("change", [rewrite_label, touch_image, rename_class])
def test_a_changed_source_is_prepared_anew(tmp_path, change):
    task = make_task(tmp_path / "task", tiny_cases(2))
    before = prepare.prepare(task, tmp_path / "cache")
    change(tmp_path / "task")
    after = prepare.prepare(decathlon.open_task(tmp_path / "task"), tmp_path / "cache")
    assert after.cases[0].folder != before.cases[0].folder
    if change is rewrite_label:
        assert after.cases[1].voxels[1] > 0


def test_each_recipe_and_format_has_its_own_folder(tmp_path, monkeypatch):
    task = make_task(tmp_path / "task", tiny_cases(1))
    for recipe in RECIPES:
        prepare.prepare(task, tmp_path / "cache", recipe=recipe)
    monkeypatch.setattr(prepared, "FORMAT", prepared.FORMAT + 1)
    prepare.prepare(task, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_repaired_voxels_are_counted_and_have_a_folder_of_their_own(tmp_path, monkeypatch):
    """What is prepared as zeros is what a file with zeros there would have become."""
    cases = tiny_cases(2)
    zeros = make_task(tmp_path / "zeros", cases)
    cases[1][0][5, 5, 5], cases[1][0][6, 6, 6, 0] = 0, 0
    expected = prepare.prepare(make_task(tmp_path / "mended", cases), tmp_path / "cache")
    cases[1][0][5, 5, 5], cases[1][0][6, 6, 6, 0] = np.nan, -np.inf
    task = make_task(tmp_path / "task", cases)
    with pytest.raises(NiftiError, match="NaN or infinite voxels: 3") as caught:
        prepare.prepare(task, tmp_path / "cache")
    assert caught.value.__notes__ == ["while preparing case CASE_1"]
    task = decathlon.open_task(task.folder, repair_nonfinite=True)
    with pytest.warns(UserWarning, match=r"CASE_1\.nii\.gz: NaN or infinite voxels set to zero: 3"):
        repaired = prepare.prepare(task, tmp_path / "cache")
    assert [case.repaired for case in repaired.cases] == [0, 3]
    assert (repaired.repaired, expected.repaired) == (3, 0)
    assert [c.checksum for c in repaired.cases] == [c.checksum for c in expected.cases]
    refuse_reading(monkeypatch)
    assert prepare.prepare(task, tmp_path / "cache") == repaired
    assert prepared.cache_name(zeros, "zscore") != prepared.cache_name(
        replace(zeros, repair_nonfinite=True), "zscore"
    )


def test_files_that_lie_too_far_apart_are_refused_whoever_has_prepared_them(tmp_path):
    task = make_task(tmp_path / "task", tiny_cases(2))
    path, moved = task.training[1].label, np.eye(4)
    moved[0, 3] = 0.01
    nib.save(nib.Nifti1Image(nib.load(path).get_fdata().astype(np.uint8), moved), path)
    prepare.prepare(replace(task, affine_tolerance=0.1), tmp_path / "cache")
    with pytest.raises(NiftiError, match=r"0\.01 mm"):
        prepare.prepare(task, tmp_path / "cache")


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_preparation_is_not_taken_for_a_complete_one(tmp_path, monkeypatch, error):
    task = make_task(tmp_path / "task", tiny_cases(4))

    def read_case(task, case):
        if case.name == "CASE_2":
            raise error
        return decathlon.read_case(task, case)

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "read_case", read_case)
        with pytest.raises(error):
            prepare.prepare(task, tmp_path / "cache", workers=1)
    assert len(prepare.prepare(task, tmp_path / "cache").cases) == 4


def test_a_crash_before_the_index_is_renamed_leaves_no_index(tmp_path, monkeypatch):
    task = make_task(tmp_path / "task", tiny_cases(2))
    replace = files.os.replace

    def replace_all_but_the_index(source, target):
        if target.name == "index.json":
            raise OSError("power failure")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", replace_all_but_the_index)
        with pytest.raises(InputError, match=r"index\.json: cannot be written: power failure"):
            prepare.prepare(task, tmp_path / "cache")
    with monkeypatch.context() as patch:
        refuse_reading(patch)
        with pytest.raises(AssertionError, match="was read again"):
            prepare.prepare(task, tmp_path / "cache")
    assert len(prepare.prepare(task, tmp_path / "cache").cases) == 2


@pytest.mark.parametrize("name", ["index.json", "CASE_1.image.npy", "CASE_0.label.npy"])
@pytest.mark.parametrize(
    "content", [b"", b"[{}]", b"[3]", b"[]", b"\x93NUMPY\x01\x00\x08\x00", b"null"]
)
def test_a_damaged_cache_counts_as_not_prepared(name, content, tmp_path):
    task = make_task(tmp_path / "task", tiny_cases(2))
    first = prepare.prepare(task, tmp_path / "cache").cases
    arrays = [(case.image.tobytes(), case.label.tobytes()) for case in first]
    (first[0].folder / name).write_bytes(content)
    again = prepare.prepare(task, tmp_path / "cache").cases
    assert again == first
    assert [(case.image.tobytes(), case.label.tobytes()) for case in again] == arrays


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_an_array_that_is_gone_or_damaged_in_mid_run_is_named(damage, tmp_path):
    task = make_task(tmp_path / "task", tiny_cases(1))
    (case,) = prepare.prepare(task, tmp_path / "cache").cases
    damage(case.folder / "CASE_0.image.npy")
    with pytest.raises(InputError, match=r"CASE_0\.image\.npy: cannot be read"):
        case.image  # noqa: B018


def test_a_cache_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    task = make_task(tmp_path / "task", tiny_cases(1))
    with pytest.raises(InputError, match="cannot be made: Not a directory"):
        prepare.prepare(task, tmp_path / "file" / "cache")


@pytest.mark.parametrize("kind", ["image", "label"])
def test_a_bit_that_has_flipped_in_the_cache_is_seen(kind, tmp_path):
    task = make_task(tmp_path / "task", tiny_cases(2))
    first = prepare.prepare(task, tmp_path / "cache").cases
    path = first[0].folder / f"CASE_1.{kind}.npy"
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    assert prepare.prepare(task, tmp_path / "cache").cases == first
    assert path.read_bytes() == sound


def test_what_a_kill_leaves_in_the_cache_is_removed(tmp_path):
    task = make_task(tmp_path / "task", tiny_cases(1))
    folder = prepare.prepare(task, tmp_path / "cache").cases[0].folder
    (folder / "index.json").unlink()
    leftover = folder / ".CASE_0.image.npy.0123abcd.tmp"
    leftover.write_bytes(b"half")
    prepare.prepare(task, tmp_path / "cache")
    assert not leftover.exists()


def test_of_several_runs_at_once_one_prepares(tmp_path, monkeypatch, capfd):
    task, read = make_task(tmp_path / "task", tiny_cases(4)), []

    def read_case(task, case):
        read.append(case.name)
        return decathlon.read_case(task, case)

    monkeypatch.setattr(prepare, "read_case", read_case)
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(prepare.prepare, task, tmp_path / "cache") for _ in range(3)]
        first, *others = (call.result() for call in calls)
    assert others == [first, first]
    assert sorted(read) == [case.name for case in task.training]


def test_an_array_that_was_removed_is_prepared_again(tmp_path):
    task = make_task(tmp_path / "task", tiny_cases(2))
    first = prepare.prepare(task, tmp_path / "cache")
    (first.cases[1].folder / "CASE_1.label.npy").unlink()
    again = prepare.prepare(task, tmp_path / "cache")
    assert again == first
    assert again.cases[1].label.any()


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_a_corrupt_case_is_the_readers_own_error_with_file_and_case(tmp_path, workers):
    task = make_task(tmp_path / "task", tiny_cases(4))
    path = tmp_path / "task/imagesTr/CASE_2.nii.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(NiftiError, match=r"CASE_2\.nii\.gz") as caught:
        prepare.prepare(task, tmp_path / "cache", workers=workers)
    assert caught.value.__notes__ == ["while preparing case CASE_2"]
    assert caught.value.__cause__ is not None


def test_the_first_error_stops_the_cases_that_have_not_begun(tmp_path, monkeypatch):
    task = make_task(tmp_path / "task", tiny_cases(10))
    begun, stopping = [], threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait=True, *, cancel_futures=False):
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            stopping.set()
            super().shutdown(wait=wait)

    def read_case(task, case):
        begun.append(case.name)
        if case.name == "CASE_0":
            raise InputError("CASE_0.nii.gz: broken")
        stopping.wait(timeout=10)  # the others last until the pool is told to stop
        return decathlon.read_case(task, case)

    monkeypatch.setattr(prepare, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(prepare, "read_case", read_case)
    with pytest.raises(InputError, match="CASE_0"):
        prepare.prepare(task, tmp_path / "cache", workers=2)
    assert len(begun) <= 3
    assert not any(t.name.startswith("minibrain-prepare") for t in threading.enumerate())


def test_a_constant_channel_in_a_task_is_warned_of_by_name(tmp_path):
    cases = tiny_cases(2)
    cases[1][0][..., 0] = 5
    task = make_task(tmp_path / "task", cases)
    with pytest.warns(UserWarning, match="^CASE_1: channel 0 is constant") as caught:
        prepare.prepare(task, tmp_path / "cache")
    assert len(caught) == 1


def test_unknown_recipes_and_no_workers_are_refused(tmp_path):
    task = make_task(tmp_path / "task", tiny_cases(1))
    with pytest.raises(InputError, match="recipe: got 'zcore', expected 'reference' or 'zscore'"):
        prepare.prepare(task, tmp_path / "cache", recipe="zcore")
    with pytest.raises(InputError, match="recipe"):
        prepare_image(np.ones((4, 4, 4, 1)), np.eye(4), recipe="minmax")
    with pytest.raises(InputError, match="workers: got 0"):
        prepare.prepare(task, tmp_path / "cache", workers=0)
    assert not (tmp_path / "cache").exists()


def test_progress_is_shown_on_a_terminal_only(tmp_path, capsys, monkeypatch):
    task = make_task(tmp_path / "task", tiny_cases(2))
    prepare.prepare(task, tmp_path / "quiet")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    prepare.prepare(task, tmp_path / "loud")
    prepare.prepare(task, tmp_path / "loud")
    shown = capsys.readouterr().err
    assert "prepare: 100%" in shown
    assert "check: 100%" in shown
    assert "2/2" in shown
