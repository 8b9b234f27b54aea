"""The checked NIfTI reader against damaged and hostile files, and against nibabel on sound ones."""

import gzip
import itertools
import os
import tracemalloc
import warnings

import nibabel as nib
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minibrain.data.nifti import (
    NiftiError,
    check_same_space,
    read,
    read_label,
    to_canonical,
    write_image,
    write_prediction,
)
from minibrain.errors import InputError

AFFINE = np.array([[-0.9, 0.1, 0, 90], [0.1, 0.9, 0, -126], [0, 0, 1.2, -72], [0, 0, 0, 1.0]])
FUZZ = settings(max_examples=1000, derandomize=True, deadline=None, database=None)
LABELS = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64]


def a_rotation(rng):
    return np.linalg.qr(rng.normal(size=(3, 3)))[0]


def an_image(shape=(5, 4, 3, 2), dtype=np.int16, seed=0):
    return np.random.default_rng(seed).integers(-900, 900, shape).astype(dtype)


def header_and_voxels(shape=(4, 3, 2), dtype="<i2", kind=nib.Nifti1Image, seed=0, **fields):
    """The bytes of an uncompressed file, with some fields of the header overwritten."""
    image = kind(an_image(shape, dtype, seed), AFFINE, dtype=dtype)
    data = image.to_bytes()
    size = int.from_bytes(data[:4], "little")
    header = kind.header_class(data[:size], check=False)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + data[size:]


def file_of(folder, data, name="X.nii"):
    path = folder / name
    path.write_bytes(data)
    return path


REFUSED = []


@pytest.fixture(autouse=True)
def _count_refusals(record_property):
    REFUSED.clear()
    yield
    record_property("refused", len(REFUSED))


def refusal(path, reader=read, **options):
    """The message of the one error, which must be a single line naming the file."""
    with pytest.raises(NiftiError) as caught:
        reader(path, **options)
    REFUSED.append(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


# Sound files


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("name", ["X.nii", "X.nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", "<f4", ">f8", "<u4", ">i8"])
@pytest.mark.parametrize("scaling", [None, (0.37, -12.5)])
def test_reads_what_nibabel_reads(tmp_path, kind, name, dtype, scaling):
    voxels = an_image((5, 4, 3, 2), dtype)
    header = kind.header_class(endianness=">" if dtype[0] == ">" else "<")
    image = kind(voxels, AFFINE, header, dtype=voxels.dtype.newbyteorder("="))
    if scaling:
        image.header.set_slope_inter(*scaling)
    image.to_filename(tmp_path / name)
    expected = nib.load(tmp_path / name)
    volume = read(tmp_path / name)
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array, expected.get_fdata(), rtol=2e-7, atol=1e-6)
    np.testing.assert_array_equal(volume.affine, expected.affine)
    np.testing.assert_allclose(volume.spacing, expected.header.get_zooms()[:3], rtol=1e-6)


def test_reading_in_blocks_loses_nothing(tmp_path):
    voxels = an_image((130, 101, 90))  # more than one block, and not a whole number of them
    write_image(tmp_path / "X.nii.gz", voxels, AFFINE)
    np.testing.assert_array_equal(read(tmp_path / "X.nii.gz").array, voxels)


def test_extensions_between_header_and_voxels_are_skipped(tmp_path):
    image = nib.Nifti1Image(an_image(), AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 5000))
    image.to_filename(tmp_path / "X.nii.gz")
    np.testing.assert_array_equal(read(tmp_path / "X.nii.gz").array, an_image())


# Damage. Silent means: the file reads without an error, but array or affine differ from before.


def test_bit_flips_in_a_compressed_file_are_never_silent(tmp_path, record_property):
    path = tmp_path / "X.nii.gz"
    write_image(path, an_image((12, 11, 10, 2)), AFFINE)
    sound, data = read(path), path.read_bytes()
    rng = np.random.default_rng(1)
    bits = [int(bit) for bit in rng.integers(0, 8 * len(data), 500)]
    accepted = set()
    for bit in [*bits, *range(8 * 18), *range(8 * (len(data) - 9), 8 * len(data))]:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            found = read(path)
        except NiftiError as error:
            assert str(path) in str(error)  # noqa: PT017
            continue
        np.testing.assert_array_equal(found.array, sound.array)
        np.testing.assert_array_equal(found.affine, sound.affine)
        accepted.add(bit // 8)
    # gzip's flags, time, level and system describe no data; neither does the padding that
    # follows the last code of the deflate stream, in front of checksum and length
    assert accepted <= {3, 4, 5, 6, 7, 8, 9, len(data) - 9}
    record_property("figure", f"{len(bits)} flips and all of head and tail: 0 silent")


@pytest.mark.parametrize("name", ["X.nii", "X.nii.gz"])
def test_every_truncation_is_refused(tmp_path, name):
    path = tmp_path / name
    write_image(path, an_image((12, 11, 10)), AFFINE)
    data = path.read_bytes()
    for length in np.random.default_rng(2).choice(len(data), 200, replace=False):
        refusal(file_of(tmp_path, data[:length], name))


@pytest.mark.parametrize("name", ["X.nii", "X.nii.gz"])
def test_bytes_after_the_voxels_are_refused(tmp_path, name):
    data = header_and_voxels() + b"\0"
    data = gzip.compress(data) if name.endswith("gz") else data
    assert "more bytes" in refusal(file_of(tmp_path, data, name))


def read_or_refuse(path):
    """Only NiftiError may escape; what is read must be usable."""
    for reader in (read, read_label):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*qform", UserWarning)
            try:
                volume = reader(path, **({"max_bytes": 10**6} if reader is read else {}))
            except NiftiError as error:
                assert str(error).startswith(f"{path}: ")  # noqa: PT017
                continue
        assert np.isfinite(volume.array).all()
        assert (volume.spacing > 0).all()
        to_canonical(volume.array, volume.affine)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@FUZZ
@given(st.booleans(), st.dictionaries(st.integers(0, 543), st.integers(0, 255), max_size=6))
def test_mutated_header_bytes_raise_nothing_foreign(folder, second, edits):
    kind = nib.Nifti2Image if second else nib.Nifti1Image
    data = bytearray(header_and_voxels((2, 2, 2), "u1", kind))
    for position, value in edits.items():
        data[position % (544 if second else 352)] = value
    read_or_refuse(file_of(folder, data))


FIELDS = ["dim", "datatype", "bitpix", "pixdim", "vox_offset", "scl_slope", "scl_inter"]
FIELDS += ["qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x"]
FIELDS += ["srow_x", "srow_y", "srow_z", "xyzt_units", "magic"]
EXTREMES = [0, 1, 2, 5, 16, 64, 128, 348, 352, 512, 2**14, 2**15 - 1, -1, -(2**15)]
EXTREMES += [np.nan, np.inf, -np.inf, 1e-45, 1e-30, 1e30, 3e38, 0.5]


@FUZZ
@given(
    st.booleans(),
    st.lists(
        st.tuples(st.sampled_from(FIELDS), st.integers(0, 7), st.sampled_from(EXTREMES)),
        min_size=1,
        max_size=4,
    ),
)
@example(True, [("srow_x", 0, 1e300), ("qoffset_x", 0, -1e300)])
@example(False, [("sform_code", 0, 0), ("quatern_b", 0, 3e38)])
def test_mutated_header_fields_raise_nothing_foreign(folder, second, edits):
    kind = nib.Nifti2Image if second else nib.Nifti1Image
    data = header_and_voxels((2, 2, 2), "f4", kind)
    header = kind.header_class(data[: 540 if second else 348], check=False)
    for name, index, value in edits:
        field = header[name].reshape(-1)
        with np.errstate(all="ignore"):
            if field.dtype.kind == "S":
                field[0] = b"ni1"
            elif np.isfinite(value) or field.dtype.kind == "f":
                field[index % field.size] = np.asarray(value).astype(field.dtype)
        header[name] = field.reshape(header[name].shape)
    read_or_refuse(file_of(folder, header.binaryblock + data[len(header.binaryblock) :]))


# Hostile files


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"dim": [5, 4, 3, 2, 1, 1, 1, 1]}, "5 dimensions"),
        ({"dim": [2, 4, 3, 2, 1, 1, 1, 1]}, "2 dimensions"),
        ({"dim": [3, 0, 3, 2, 1, 1, 1, 1]}, "at least 1 voxel"),
        ({"dim": [3, 4, -3, 2, 1, 1, 1, 1]}, "at least 1 voxel"),
        ({"dim": [3, -1, 1, 1, 1, 1, 1, 1], "glmin": 24}, "at least 1 voxel"),
        ({"dim": [4, 32767, 32767, 32767, 32767, 1, 1, 1]}, "expected at most"),
        ({"datatype": 128, "bitpix": 24}, "voxels of type"),
        ({"datatype": 2304, "bitpix": 32}, "voxels of type"),
        ({"datatype": 32, "bitpix": 64}, "voxels of type complex64"),
        ({"datatype": 1536, "bitpix": 128}, "voxels of type"),
        ({"datatype": 9999}, "9999"),
        ({"bitpix": 8}, "bitpix"),
        ({"vox_offset": 0}, "vox_offset"),
        ({"vox_offset": 348}, "vox_offset"),
        ({"vox_offset": -352}, "vox_offset"),
        ({"vox_offset": 352.5}, "vox_offset"),
        ({"vox_offset": 1e30}, "vox_offset"),
        ({"vox_offset": np.nan}, "vox_offset"),
        ({"vox_offset": np.inf}, "vox_offset"),
        ({"magic": b"ni1"}, "single-file"),
        ({"xyzt_units": 3}, "millimetres"),
        ({"srow_x": [np.nan, 0, 0, 0]}, "affine"),
        ({"srow_y": [0, np.inf, 0, 0]}, "affine"),
        ({"srow_x": [0, 0, 0, 0]}, "affine does not span space"),
        ({"sform_code": 0, "qform_code": 1, "quatern_b": np.nan}, "affine"),
        ({"sform_code": 0, "qform_code": 1, "quatern_b": 2}, "w2"),
        ({"sform_code": 0, "qform_code": 1, "pixdim": [1, 0, 1, 1, 1, 1, 1, 1]}, "spacing"),
        ({"scl_slope": np.inf}, "scl_slope"),
        ({"scl_slope": 2, "scl_inter": np.nan}, "scl_slope"),
        ({"scl_slope": 3e38}, "NaN or infinite"),
    ],
)
def test_headers_that_cannot_be_right_are_refused(tmp_path, fields, reason):
    assert reason in refusal(file_of(tmp_path, header_and_voxels(**fields)))


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>\n<html>404</html>" * 40, b"\0" * 4096])
@pytest.mark.parametrize("name", ["X.nii", "X.nii.gz"])
def test_what_is_no_nifti_is_refused(tmp_path, content, name):
    refusal(file_of(tmp_path, content, name))
    refusal(file_of(tmp_path, gzip.compress(content), name))


def test_names_that_are_no_readable_file_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo.nii")
    (tmp_path / "folder.nii.gz").mkdir()
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    (tmp_path / "endless.nii").symlink_to("/dev/zero")
    for name in ("fifo.nii", "folder.nii.gz", "loop.nii", "endless.nii", "absent.nii.gz"):
        refusal(tmp_path / name)
    assert ".nii.gz" in refusal(file_of(tmp_path, header_and_voxels(), "X.img"))
    with pytest.raises(NiftiError, match="null byte"):
        read("nul\0.nii")


def test_a_gzip_bomb_is_refused_from_its_header(tmp_path):
    huge = header_and_voxels(dim=[3, 1625, 1625, 1625, 1, 1, 1, 1], datatype=2, bitpix=8)
    small = header_and_voxels()
    for header in (huge, small):  # either the header admits the size, or the data go on after it
        path = file_of(tmp_path, gzip.compress(header + bytes(2**25)), "X.nii.gz")
        tracemalloc.start()
        refusal(path, max_bytes=2**30)
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()


def test_the_limit_counts_the_declared_bytes(tmp_path):
    path = file_of(tmp_path, header_and_voxels((4, 3, 2), "<i2"))
    read(path, max_bytes=48)
    assert "48 bytes" in refusal(path, max_bytes=47)


# Values


def test_nonfinite_voxels_are_refused_or_repaired_and_counted(tmp_path):
    voxels = an_image((4, 3, 2), np.float32)
    voxels[0, 0, 0], voxels[1, 2, 1], voxels[3, 0, 1] = np.nan, np.inf, -np.inf
    nib.Nifti1Image(voxels, AFFINE).to_filename(tmp_path / "X.nii.gz")
    assert "voxels: 3, expected" in refusal(tmp_path / "X.nii.gz")
    with pytest.warns(UserWarning, match=r"X\.nii\.gz: NaN or infinite voxels set to zero: 3"):
        volume = read(tmp_path / "X.nii.gz", repair_nonfinite=True)
    np.testing.assert_array_equal(volume.array, np.where(np.isfinite(voxels), voxels, 0))
    assert volume.repaired == 3


def test_float64_beyond_float32_is_not_finite(tmp_path):
    nib.Nifti1Image(np.full((2, 2, 2), 1e300), AFFINE).to_filename(tmp_path / "X.nii")
    assert "voxels: 8, expected" in refusal(tmp_path / "X.nii")


def test_disagreeing_forms_warn_and_the_spacing_is_the_affines(tmp_path):
    image = nib.Nifti1Image(an_image(), AFFINE)
    shifted = np.diag([2.0, 3, 4, 1])
    image.set_sform(np.diag([2, 3, 4, 1]), code=1)
    for shift in (0.9, 1.1):  # half of the smallest spacing is 1 mm
        shifted[1, 3] = shift
        image.set_qform(shifted, code=1)
        image.to_filename(tmp_path / "S.nii")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            read(tmp_path / "S.nii")
        assert len(caught) == (shift > 1)
    image.set_qform(np.diag([1, 1, 1, 1]), code=1)
    image.to_filename(tmp_path / "X.nii")
    with pytest.warns(UserWarning, match=r"X\.nii: qform and sform disagree"):
        volume = read(tmp_path / "X.nii")
    np.testing.assert_array_equal(volume.spacing, [2, 3, 4])


def test_the_qform_serves_where_there_is_no_sform(tmp_path):
    data = header_and_voxels(sform_code=0, qform_code=1, pixdim=[0, 2, 3, 4, 1, 1, 1, 1])
    np.testing.assert_allclose(read(file_of(tmp_path, data)).spacing, [2, 3, 4], rtol=1e-6)


@pytest.mark.parametrize("dtype", [*LABELS, np.float32, np.float64])
def test_labels_survive_every_type(tmp_path, dtype):
    labels = np.random.default_rng(3).integers(0, 4, (6, 5, 4))
    nib.Nifti1Image(labels.astype(dtype), AFFINE, dtype=dtype).to_filename(tmp_path / "X.nii.gz")
    found = read_label(tmp_path / "X.nii.gz", allowed=range(4)).array
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, labels)


@pytest.mark.parametrize("stored", [np.uint8, np.int16, np.int32])
def test_float_labels_saved_as_scaled_integers_survive(tmp_path, stored):
    labels = np.random.default_rng(4).integers(0, 4, (6, 5, 4))
    image = nib.Nifti1Image(labels.astype(np.float64), AFFINE)
    image.set_data_dtype(stored)
    image.to_filename(tmp_path / "X.nii.gz")
    scaled = nib.load(tmp_path / "X.nii.gz").get_fdata()
    assert (scaled != labels).any()  # the hazard is real: truncation would lose labels
    np.testing.assert_array_equal(read_label(tmp_path / "X.nii.gz").array, labels)


@pytest.mark.parametrize(
    ("value", "listed"), [(1.5, "1.5"), (-1, "-1"), (4, "4"), (300, "300"), (np.nan, "nan")]
)
def test_wrong_labels_are_listed(tmp_path, value, listed):
    labels = np.zeros((3, 3, 3), np.float32)
    labels[1, 1, 1] = value
    nib.Nifti1Image(labels, AFFINE).to_filename(tmp_path / "X.nii")
    message = refusal(tmp_path / "X.nii", read_label, allowed=range(4))
    assert f"label values {listed}: expected only [0, 1, 2, 3]" in message


@given(st.floats(-1e6, 1e6, width=32))
@settings(derandomize=True, deadline=None, database=None)
def test_a_label_reads_exactly_when_it_is_near_an_integer(folder, value):
    path = file_of(folder, nib.Nifti1Image(np.full((1, 1, 1), value, "f4"), AFFINE).to_bytes())
    nearest = int(np.floor(value + 0.5))
    if abs(value - nearest) < 1e-3 and 0 <= nearest <= 255:
        assert read_label(path).array.item() == nearest
    else:
        refusal(path, read_label)


def test_an_intensity_image_given_as_label_lists_ten_values(tmp_path):
    nib.Nifti1Image(an_image((9, 9, 9), np.float32) + 0.5, AFFINE).to_filename(tmp_path / "X.nii")
    message = refusal(tmp_path / "X.nii", read_label)
    assert message.count(",") == 10
    assert ", ...: expected integers 0 to 255" in message
    write_image(tmp_path / "X.nii", an_image(), AFFINE)
    assert "3 dimensions" in refusal(tmp_path / "X.nii", read_label)


# Geometry


def test_same_space_is_a_matter_of_a_thousandth_of_a_millimetre(tmp_path):
    paths = {"image_path": "image.nii", "label_path": "label.nii"}
    write_image(tmp_path / "X.nii", an_image(), AFFINE)
    write_prediction(tmp_path / "L.nii", np.zeros((5, 4, 3), np.uint8), AFFINE)
    image, label = read(tmp_path / "X.nii"), read_label(tmp_path / "L.nii")
    check_same_space(image, label, **paths)
    for row, column, step in ((0, 3, 0.002), (1, 0, 0.0005)):  # 4 steps of 0.0005 mm along X
        moved = label.affine.copy()
        moved[row, column] += step
        other = type(label)(label.array, moved)
        with pytest.raises(NiftiError, match=r"label\.nii: .*0\.002 mm .*image\.nii"):
            check_same_space(image, other, **paths)
        moved[row, column] -= 0.9 * step
        check_same_space(image, other, **paths)
    far = type(label)(label.array, label.affine + np.diag([np.inf, 0, 0, 0]))
    with pytest.raises(NiftiError, match="nan mm"):  # what cannot be compared does not agree
        check_same_space(image, far, **paths)
    with pytest.raises(NiftiError, match=r"label\.nii: shape \(4, 4, 3\)"):
        check_same_space(image, type(label)(label.array[1:], label.affine), **paths)


def every_orientation():
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            yield np.eye(3)[:, axes] * signs


@pytest.mark.parametrize("shape", [(4, 3, 2), (4, 3, 2, 2)])
def test_all_48_orientations_keep_every_voxel_where_it_was(shape):
    tilt = np.array([[0.99, -0.1, 0.05], [0.1, 0.99, -0.02], [-0.05, 0.03, 0.99]])
    array = np.arange(np.prod(shape)).reshape(shape)
    for axes in every_orientation():
        affine = np.eye(4)
        affine[:3, :3] = tilt @ axes * [0.8, 1.1, 3]
        affine[:3, 3] = [12, -7, 30]
        turned, moved = to_canonical(array, affine)
        assert nib.aff2axcodes(moved) == ("R", "A", "S")
        to_original = np.linalg.inv(affine) @ moved
        for index in np.ndindex(turned.shape[:3]):
            original = to_original @ (*index, 1)
            nearest = np.rint(original[:3]).astype(int)
            np.testing.assert_allclose(original[:3], nearest, atol=1e-9)
            np.testing.assert_array_equal(turned[index], array[tuple(nearest)])


# Writing


@pytest.mark.parametrize("name", ["P.nii", "P.nii.gz"])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_a_prediction_is_what_plain_nibabel_reads(tmp_path, name, dtype):
    rng = np.random.default_rng(5)
    for axes in every_orientation():
        affine = np.eye(4)
        affine[:3, :3] = a_rotation(rng) @ axes * [0.8, 1.1, 3]
        affine[:3, 3] = rng.normal(size=3) * 100
        labels = rng.integers(0, 2 if dtype is bool else 256, (5, 4, 3)).astype(dtype)
        write_prediction(tmp_path / name, labels, affine)
        image = nib.load(tmp_path / name)
        assert image.get_data_dtype() == np.uint8
        assert (image.header["qform_code"], image.header["sform_code"]) == (1, 1)
        assert image.header.get_slope_inter() in ((None, None), (1, 0))
        np.testing.assert_array_equal(np.asarray(image.dataobj), labels)
        np.testing.assert_array_equal(image.affine, affine.astype(np.float32))
        np.testing.assert_allclose(image.get_qform(), affine, atol=2e-3, rtol=1e-3)
        np.testing.assert_array_equal(read_label(tmp_path / name).array, labels)


def test_equal_predictions_are_equal_files(tmp_path):
    labels = an_image((6, 5, 4)) % 4
    write_prediction(tmp_path / "a.nii.gz", labels, AFFINE)
    write_prediction(tmp_path / "b.nii.gz", np.asfortranarray(labels).astype(np.uint8), AFFINE)
    data = (tmp_path / "a.nii.gz").read_bytes()
    assert data == (tmp_path / "b.nii.gz").read_bytes()
    assert data[4:8] == bytes(4)  # no time


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<f4", ">f4"])
def test_an_image_is_what_plain_nibabel_reads(tmp_path, dtype):
    voxels = an_image((5, 4, 3, 2), dtype)
    write_image(tmp_path / "X.nii.gz", voxels[:, ::-1], AFFINE)
    image = nib.load(tmp_path / "X.nii.gz")
    assert image.get_data_dtype() == np.dtype(dtype).newbyteorder("<")
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_array_equal(np.asarray(image.dataobj), voxels[:, ::-1])


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failure, step):
    path = tmp_path / "P.nii.gz"
    write_prediction(path, np.zeros((2, 2, 2), np.uint8), AFFINE)
    before = path.read_bytes()

    def fail(*_):
        raise failure

    monkeypatch.setattr(os, step, fail)
    expected = InputError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_prediction(path, np.ones((2, 2, 2), np.uint8), AFFINE)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["P.nii.gz"]


def test_a_refused_write_names_the_file_and_writes_nothing(tmp_path):
    path, labels = tmp_path / "P.nii.gz", np.zeros((2, 2, 2), np.uint8)
    for arguments, reason in [
        ((path, labels[0], AFFINE), "3-D"),
        ((path, labels.astype(float), AFFINE), "float64"),
        ((path, labels[:0], AFFINE), "shape"),
        ((path, labels - np.int16(1), AFFINE), "labels -1"),
        ((path, labels + np.int16(256), AFFINE), "256"),
        ((path, np.zeros((40000, 1, 1), np.uint8), AFFINE), "32767"),
        ((path, labels, AFFINE * np.nan), "affine"),
        ((path, labels, AFFINE * 1e39), "affine"),
        ((path, labels, np.zeros((4, 4))), "spacing"),
        ((path, labels, AFFINE[:3]), "affine"),
        ((path.with_suffix(".npz"), labels, AFFINE), ".nii.gz"),
        ((tmp_path / "absent" / "P.nii", labels, AFFINE), "No such file"),
    ]:
        with pytest.raises(InputError, match=reason) as caught:
            write_prediction(*arguments)
        assert str(caught.value).startswith(f"{arguments[0]}: ")
    for voxels in (an_image(dtype=np.float64), np.full((2, 2, 2), np.nan, np.float32), labels):
        with pytest.raises(NiftiError, match="expected"):
            write_image(path, voxels, AFFINE)
    assert os.listdir(tmp_path) == []
