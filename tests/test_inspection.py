"""One look at a task finds every fault of every case; a sound task's figures are counted right."""

import gzip
import json
import os
import shutil
import struct

import nibabel
import numpy as np
import pytest

from minibrain.cli import main
from minibrain.data.decathlon import open_task, read_case
from minibrain.data.inspection import inspect
from minibrain.data.nifti import write_image, write_prediction
from minibrain.report.inspection import inspection_text

SHAPE = (6, 5, 4)
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


def sound_case(folder, name, tumour=True):
    rng = np.random.default_rng(abs(hash(name)) % 2**32)
    image = rng.integers(1, 900, (*SHAPE, 4)).astype(np.int16)
    label = rng.integers(0, 4, SHAPE).astype(np.uint8) * tumour
    write_image(folder / "imagesTr" / f"{name}.nii.gz", image, AFFINE)
    write_prediction(folder / "labelsTr" / f"{name}.nii.gz", label, AFFINE)


def entry(name):
    return {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}


def describe(folder, entries):
    content = {
        "name": "BRATS",
        "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
        "labels": {"0": "background", "1": "edema", "2": "core", "3": "enhancing"},
        "training": entries,
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.fixture
def task(tmp_path):
    folder = tmp_path / "Task01_BrainTumour"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    return folder


def rewrite(path, change):
    """Change the uncompressed bytes of a .nii.gz."""
    path.write_bytes(gzip.compress(change(bytearray(gzip.decompress(path.read_bytes())))))


def header_field(offset, form, *values):
    def change(data):
        struct.pack_into(f"<{form}", data, offset, *values)
        return data

    return change


def saved_by_nibabel(path, array, affine=AFFINE):
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def with_voxel(value, dtype=np.float32, shape=SHAPE):
    def change(path):
        array = np.ones(shape, dtype)
        array.flat[7] = value
        saved_by_nibabel(path, array)

    return change


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def replace_by(make):
    def change(path):
        path.unlink()
        make(path)

    return change


IMAGE_FAULTS = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "flipped": flip_a_bit,
    "bomb": lambda p: rewrite(p, header_field(40, "8h", 4, 30000, 30000, 30000, 4, 1, 1, 1)),
    "html": lambda path: path.write_text("<html>404</html>"),
    "empty": lambda path: path.write_bytes(b""),
    "zero_dim": lambda p: rewrite(p, header_field(40, "8h", 4, 0, 5, 4, 4, 1, 1, 1)),
    "negative_dim": lambda p: rewrite(p, header_field(40, "8h", 4, -6, 5, 4, 4, 1, 1, 1)),
    "five_dims": lambda p: rewrite(p, header_field(40, "8h", 5, 6, 5, 4, 4, 1, 1, 1)),
    "nan_voxel": with_voxel(np.nan, shape=(*SHAPE, 4)),
    "inf_voxel": with_voxel(np.inf, shape=(*SHAPE, 4)),
    "nan_affine": lambda p: rewrite(p, header_field(280, "f", float("nan"))),
    "three_channels": with_voxel(2, shape=(*SHAPE, 3)),
    "complex_voxels": lambda p: rewrite(p, header_field(70, "2h", 32, 64)),
    "longer": lambda path: rewrite(path, lambda data: data + b"x"),
    "metres": lambda path: rewrite(path, header_field(123, "b", 1)),
    "directory": replace_by(lambda path: path.mkdir()),
    "fifo": replace_by(os.mkfifo),
    "missing": lambda path: path.unlink(),
}
LABEL_FAULTS = {
    "fractional": with_voxel(1.5),
    "negative": with_voxel(-1, np.int16),
    "unknown_class": with_voxel(4, np.uint8),
    "nan_label": with_voxel(np.nan),
    "other_shape": with_voxel(1, np.uint8, shape=(6, 5, 3)),
    "four_dims": with_voxel(1, np.uint8, shape=(*SHAPE, 2)),
    "other_place": lambda path: saved_by_nibabel(
        path, np.ones(SHAPE, np.uint8), AFFINE + np.eye(4, k=3) * 0.1
    ),
}
PATH_FAULTS = {
    "parent": "../../imagesTr/sound.nii.gz",
    "absolute": "/etc/hostname.nii.gz",
    "nul": "./imagesTr/a\0.nii.gz",
    "other_ending": "./imagesTr/sound.png",
    "link": "./imagesTr/link.nii.gz",
}


@pytest.fixture
def broken(task):
    """One task with 31 kinds of faults, each in a case of its own, among two sound cases."""
    names = ["sound", "healthy", *IMAGE_FAULTS, *LABEL_FAULTS]
    for name in names:
        sound_case(task, name, tumour=name != "healthy")
    for kind, faults in (("imagesTr", IMAGE_FAULTS), ("labelsTr", LABEL_FAULTS)):
        for name, damage in faults.items():
            damage(task / kind / f"{name}.nii.gz")
    outside = task.parent / "secret.nii.gz"
    shutil.copy(task / "imagesTr" / "sound.nii.gz", outside)
    (task / "imagesTr" / "link.nii.gz").symlink_to(outside)
    paths = [{"image": path, "label": entry("sound")["label"]} for path in PATH_FAULTS.values()]
    describe(task, [entry(name) for name in names] + paths + [entry("sound")])
    return task


def test_every_fault_of_a_broken_task_is_reported_at_once(broken, capsys, record_property):
    assert len(IMAGE_FAULTS) + len(LABEL_FAULTS) + len(PATH_FAULTS) == 30
    assert main(["inspect", str(broken)]) == 1
    printed = capsys.readouterr().out
    faults = printed.partition("\nfaults\n")[2]
    for name in (*IMAGE_FAULTS, *LABEL_FAULTS):
        assert f"/{name}.nii.gz" in faults, f"{name} is not reported"
    for path in PATH_FAULTS.values():
        assert repr(path)[1:-1] in faults, f"{path} is not reported"
    assert "'sound' occurs twice" in faults
    assert "/sound.nii.gz:" not in faults
    assert "healthy" not in faults
    assert str(broken) not in faults, "paths are shown within the task"
    assert "31 faults" in faults
    record_property("figure", "31 kinds of faults in one task: all reported, exit 1")


def test_a_case_with_two_faults_has_both_reported(task):
    sound_case(task, "BRATS_001")
    describe(task, [entry("BRATS_001")])
    IMAGE_FAULTS["truncated"](task / "imagesTr" / "BRATS_001.nii.gz")
    LABEL_FAULTS["fractional"](task / "labelsTr" / "BRATS_001.nii.gz")
    image, label = inspect(task).faults
    assert image.startswith("imagesTr/BRATS_001.nii.gz: ")
    assert label == ("labelsTr/BRATS_001.nii.gz: label values 1.5: expected only [0, 1, 2, 3]")


def test_what_is_allowed_is_a_note(task):
    for name in ("constant", "healthy", "forms"):
        sound_case(task, name, tumour=name != "healthy")
    image = np.full((*SHAPE, 4), 7, np.int16)
    image[..., :3] = np.random.default_rng(0).integers(0, 9, (*SHAPE, 3))
    write_image(task / "imagesTr" / "constant.nii.gz", image, AFFINE)
    for kind in ("imagesTr", "labelsTr"):
        rewrite(task / kind / "forms.nii.gz", header_field(268, "f", 50.0))  # qoffset_x
    shutil.copy(task / "imagesTr" / "forms.nii.gz", task / "imagesTr" / "extra.nii.gz")
    (task / "imagesTr" / "._forms.nii.gz").write_bytes(b"Mac OS X")
    describe(task, [entry(name) for name in ("constant", "healthy", "forms")])
    found = inspect(task)
    assert found.faults == []
    notes = "\n".join(found.notes)
    assert "constant: channel T2w is constant" in notes
    assert "healthy: no tumour at all" in notes
    assert notes.count("qform and sform disagree") == 2
    assert "imagesTr/extra.nii.gz: not used by any case" in notes
    assert len(found.notes) == 5
    assert main(["inspect", str(task)]) == 0


def test_files_behind_links_within_the_task_are_not_stray(task):
    sound_case(task, "BRATS_001")
    describe(task, [entry("BRATS_001")])
    assert "BRATS: 1 labelled case, 0 without" in inspection_text(inspect(task))
    (task / "imagesTr").rename(task / "elsewhere")
    (task / "imagesTr").symlink_to("elsewhere")
    found = inspect(task)
    assert (found.faults, found.notes) == ([], [])


def test_the_figures_are_those_of_the_files(task):
    names = [f"BRATS_{i:03d}" for i in range(1, 5)]
    for name in names:
        sound_case(task, name)
    describe(task, [entry(name) for name in names])
    found = inspect(task)
    opened = open_task(task)
    for case, content in zip(opened.training, found.contents, strict=True):
        image, label, *_ = read_case(opened, case)
        assert content.voxels == tuple(int((label == i).sum()) for i in range(4))
        assert (content.shape, content.orientation) == (SHAPE, "LPS")
        assert content.tumour_ml == pytest.approx((label > 0).sum() * 2 / 1000)
        for (mean, std, least, most), channel in zip(
            content.intensities, image.astype(float).reshape(-1, 4).T, strict=True
        ):
            assert (mean, std) == pytest.approx((channel.mean(), channel.std()))
            assert (least, most) == (channel.min(), channel.max())
        shares = [(label[:, :, z] > 0).mean() for z in range(SHAPE[2])]
        z, share = content.fullest_slice
        assert share == pytest.approx(max(shares)) == pytest.approx(shares[z])
    text = inspection_text(found)
    assert "4 labelled cases" in text
    assert "6x5x4 (4)" in text


def test_pictures_are_written_where_asked(task, tmp_path, capsys):
    for name in ("a", "b"):
        sound_case(task, name)
    describe(task, [entry("a"), entry("b")])
    assert main(["inspect", str(task), "--output", str(tmp_path / "pictures")]) == 0
    written = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert written == ["distributions.png", "slices.png"]
    assert str(tmp_path / "pictures" / "slices.png") in capsys.readouterr().out


def test_a_place_where_no_pictures_can_be_written_is_refused_before_a_case_is_read(
    task, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("minibrain.data.inspection.inspect", lambda *_: pytest.fail("inspected"))
    (tmp_path / "file").touch()
    assert main(["inspect", str(task), "--output", str(tmp_path / "file" / "pictures")]) == 2
    assert "file/pictures: cannot be written: Not a directory" in capsys.readouterr().err


def test_no_task_at_all_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'nowhere'}: no such folder")
