"""Opening tasks: exact on sound ones in both forms; hostile descriptions end in TaskError only."""

import contextlib
import json
import os
import sys

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibrain.data.dataset_json import MAX_JSON_BYTES
from minibrain.data.decathlon import Case, TaskError, open_task, read_case, survey_task
from minibrain.data.nifti import NiftiError, write_image, write_prediction

AFFINE = np.diag([-1, -1, 1.5, 1])
CHANNELS = ("FLAIR", "T1w", "t1gd", "T2w")
CLASSES = ("background", "edema", "non-enhancing tumor", "enhancing tumour")
NAMES = ("BRATS_001", "BRATS_007")


def voxels_of(name):
    rng = np.random.default_rng(int(name[-3:]))
    image = rng.integers(0, 900, (5, 4, 3, 4)).astype(np.int16)
    return image, rng.integers(0, 4, (5, 4, 3)).astype(np.uint8)


def msd_description():
    return {
        "name": "BRATS",
        "licence": "CC-BY-SA 4.0",
        "modality": dict(zip("0123", CHANNELS, strict=True)),
        "labels": dict(zip("0123", CLASSES, strict=True)),
        "numTraining": 2,
        "training": [
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
            for name in NAMES
        ],
        "test": ["./imagesTs/BRATS_485.nii.gz"],
    }


def nnunet_description():
    return {
        "channel_names": dict(zip("0123", CHANNELS, strict=True)),
        "labels": {name: value for value, name in enumerate(CLASSES)},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }


def describe(root, content):
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def a_task(root, form):
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (root / folder).mkdir(parents=True)
    for name, folder in [*((name, "imagesTr") for name in NAMES), ("BRATS_485", "imagesTs")]:
        image, label = voxels_of(name)
        if form == "msd":
            write_image(root / folder / f"{name}.nii.gz", image, AFFINE)
        else:
            for index in range(4):
                file = root / folder / f"{name}_{index:04d}.nii.gz"
                write_image(file, image[..., index], AFFINE)
        if folder == "imagesTr":
            write_prediction(root / "labelsTr" / f"{name}.nii.gz", label, AFFINE)
            (root / "labelsTr" / f"._{name}.nii.gz").write_bytes(b"Mac OS X")
    return describe(root, msd_description() if form == "msd" else nnunet_description())


@pytest.fixture
def msd(tmp_path):
    return a_task(tmp_path / "Task01_BrainTumour", "msd")


@pytest.fixture
def nnunet(tmp_path):
    return a_task(tmp_path / "Dataset001_BrainTumour", "nnunet")


def refusal(root):
    """The message of the one error, which must be a single line naming dataset.json."""
    with pytest.raises(TaskError) as caught:
        open_task(root)
    message = str(caught.value)
    assert message.startswith(f"{root / 'dataset.json'}: ")
    assert message.isprintable()
    assert len(message) < 1000
    return message


# Sound tasks


@pytest.mark.parametrize("form", ["msd", "nnunet"])
def test_a_task_reads_exactly(tmp_path, form):
    root = a_task(tmp_path / "BRATS", form)
    task = open_task(str(root))
    assert (task.folder, task.name) == (root, "BRATS")
    assert (task.channels, task.classes) == (CHANNELS, CLASSES)
    assert [case.name for case in task.training] == list(NAMES)
    assert [case.name for case in task.test] == ["BRATS_485"]
    for case in task.training + task.test:
        assert len(case.images) == (1 if form == "msd" else 4)
        image, label = voxels_of(case.name)
        data = read_case(task, case)
        assert data.image.dtype == np.float32
        np.testing.assert_array_equal(data.image, image)
        np.testing.assert_array_equal(data.affine, AFFINE)
        if case in task.training:
            assert data.label.dtype == np.uint8
            np.testing.assert_array_equal(data.label, label)
        else:
            assert case.label is data.label is None


def test_one_channel_may_be_a_3d_image(msd):
    content = msd_description() | {"modality": {"0": "MRI"}}
    for name in (*NAMES, "BRATS_485"):
        folder = msd / ("imagesTs" if name == "BRATS_485" else "imagesTr")
        write_image(folder / f"{name}.nii.gz", voxels_of(name)[0][..., 0], AFFINE)
    task = open_task(describe(msd, content))
    image = read_case(task, task.training[0]).image
    np.testing.assert_array_equal(image, voxels_of(NAMES[0])[0][..., :1])


def test_a_task_without_test_cases_opens(msd, nnunet):
    content = msd_description()
    del content["test"]
    assert open_task(describe(msd, content)).test == ()
    for file in (nnunet / "imagesTs").iterdir():
        file.unlink()
    (nnunet / "imagesTs").rmdir()
    assert open_task(nnunet).test == ()


def test_links_within_the_task_and_to_its_folder_are_followed(msd, tmp_path):
    (msd / "imagesTr" / "BRATS_007.nii.gz").rename(msd / "elsewhere.nii.gz")
    (msd / "imagesTr" / "BRATS_007.nii.gz").symlink_to("../elsewhere.nii.gz")
    (tmp_path / "link").symlink_to(msd)
    task = open_task(tmp_path / "link")
    assert task.training[1].name == "BRATS_007"
    np.testing.assert_array_equal(read_case(task, task.training[1]).image, voxels_of(NAMES[1])[0])


# What a case may be wrong in


def test_channels_that_dataset_json_does_not_name_are_refused(msd, nnunet):
    write_image(msd / "imagesTr" / "BRATS_007.nii.gz", voxels_of(NAMES[1])[0][..., :3], AFFINE)
    task = open_task(msd)
    with pytest.raises(
        TaskError, match=r"007\.nii\.gz: channels: 3, expected 4 \(the task's are FLAIR, T1w"
    ):
        read_case(task, task.training[1])
    write_image(nnunet / "imagesTr" / "BRATS_007_0002.nii.gz", voxels_of(NAMES[1])[0], AFFINE)
    task = open_task(nnunet)
    with pytest.raises(TaskError, match=r"0002\.nii\.gz: channels: 4, expected 1"):
        read_case(task, task.training[1])


@pytest.mark.parametrize("form", ["msd", "nnunet"])
def test_files_that_do_not_overlay_are_refused_unless_tolerated(tmp_path, form):
    root = a_task(tmp_path / "BRATS", form)
    image, label = voxels_of(NAMES[0])
    moved = AFFINE.copy()
    moved[0, 3] += 0.01
    if form == "msd":
        write_prediction(root / "labelsTr" / "BRATS_001.nii.gz", label, moved)
    else:
        write_image(root / "imagesTr" / "BRATS_001_0003.nii.gz", image[..., 3], moved)
    task = open_task(root)
    with pytest.raises(NiftiError, match=r"0\.01 mm"):
        read_case(task, task.training[0])
    tolerant = open_task(root, affine_tolerance=0.1)
    np.testing.assert_array_equal(read_case(tolerant, task.training[0]).label, label)
    write_prediction(root / "labelsTr" / "BRATS_001.nii.gz", label[1:], AFFINE)
    with pytest.raises(NiftiError, match=r"BRATS_001\S*\.nii\.gz: "):
        read_case(task, task.training[0])


def test_labels_that_are_no_class_are_listed(msd):
    labels = voxels_of(NAMES[0])[1]
    labels[0, 0, 0], labels[1, 1, 1] = 4, 9
    write_prediction(msd / "labelsTr" / "BRATS_001.nii.gz", labels, AFFINE)
    task = open_task(msd)
    with pytest.raises(NiftiError, match=r"labelsTr/BRATS_001\.nii\.gz: label values 4, 9: "):
        read_case(task, task.training[0])


def test_nonfinite_voxels_are_refused_or_repaired(msd):
    image = np.full((5, 4, 3, 4), 7, np.float32)
    write_image(msd / "imagesTr" / "BRATS_001.nii", image, AFFINE)
    data = (msd / "imagesTr" / "BRATS_001.nii").read_bytes()
    nan = np.float32(np.nan).tobytes()
    (msd / "imagesTr" / "BRATS_001.nii").write_bytes(data[:-4] + nan)
    content = msd_description()
    content["training"][0]["image"] = "imagesTr/BRATS_001.nii"
    task = open_task(describe(msd, content))
    with pytest.raises(NiftiError, match=r"NaN or infinite voxels: 1, .*--repair-nonfinite"):
        read_case(task, task.training[0])
    task = open_task(msd, repair_nonfinite=True)
    with pytest.warns(UserWarning, match="NaN or infinite voxels set to zero: 1$"):
        case = read_case(task, task.training[0])
    assert (case.image.sum(), case.image[-1, -1, -1, -1], case.repaired) == (7 * 239, 0, 1)
    assert read_case(task, task.training[1]).repaired == 0


def test_repaired_voxels_are_counted_over_the_files_of_a_case(nnunet):
    for channel, count in ((1, 2), (3, 3)):
        path = nnunet / "imagesTr" / f"BRATS_001_{channel:04d}.nii.gz"
        image = voxels_of(NAMES[0])[0][..., channel].astype(np.float32)
        image.flat[:count] = np.inf
        nibabel.save(nibabel.Nifti1Image(image, AFFINE), path)
    task = open_task(nnunet, repair_nonfinite=True)
    with pytest.warns(UserWarning, match="set to zero") as caught:
        assert read_case(task, task.training[0]).repaired == 5
    assert len(caught) == 2


def test_missing_files_are_refused_on_opening_and_named_on_reading(msd, nnunet):
    task = open_task(msd)
    (msd / "imagesTr" / "BRATS_007.nii.gz").unlink()
    assert "imagesTr/BRATS_007.nii.gz is missing" in refusal(msd)
    with pytest.raises(NiftiError, match=r"BRATS_007\.nii\.gz: No such file"):
        read_case(task, task.training[1])
    for index in range(4):
        (nnunet / "imagesTr" / f"BRATS_001_{index:04d}.nii.gz").unlink()
        (nnunet / "imagesTr" / f"BRATS_007_{index:04d}.nii.gz").unlink()
    message = refusal(nnunet)
    assert message.count(".nii.gz is missing") == 5
    assert message.endswith("; and 3 more")


def test_a_case_that_is_no_file_does_not_block(msd):
    path = msd / "imagesTr" / "BRATS_001.nii.gz"
    path.unlink()
    os.mkfifo(path)
    assert "imagesTr/BRATS_001.nii.gz is not a regular file" in refusal(msd)
    task = open_task(a_task(msd / "inner", "msd"))
    with pytest.raises(NiftiError, match="not a regular file"):
        read_case(task, Case("x", (path,), None))


# Hostile descriptions


def test_a_folder_without_a_description_is_refused(tmp_path):
    for folder in (tmp_path / "absent", "nul\0", __file__):
        with pytest.raises(TaskError, match="no such folder"):
            open_task(folder)
    assert "No such file, expected it in a task's folder" in refusal(tmp_path)
    (tmp_path / "dataset.json").mkdir()
    assert "directory" in refusal(tmp_path)
    (tmp_path / "dataset.json").rmdir()
    os.mkfifo(tmp_path / "dataset.json")
    assert "not a regular file" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html></html>",
        b"null",
        b"[]",
        b'"\xff\xfe"',
        b"\xff" * 40,
        b"[" * 200_000,
        b'{"labels":' * 50_000,
        b'{"name": ' + b"9" * 10_000 + b"}",
        b'{"name": "a", "name": "b"}',
        b" " * (MAX_JSON_BYTES + 1),
    ],
)
def test_what_is_no_description_is_refused(tmp_path, content):
    (tmp_path / "dataset.json").write_bytes(content)
    refusal(tmp_path)


NO_NAMES = [None, [], {}, "edema", {"1": "a", "2": "b"}, {"0": "a", "2": "b"}, {"00": "a"}]
NO_NAMES += [{"0": 1, "1": 2}, {"0": "", "1": "b"}, {"0": "a\n", "1": "b"}, {"0": None}]
NO_CLASSES = [{"0": "a"}, {"0": "a", "1": "a"}, {str(index): str(index) for index in range(257)}]
NO_CASES = [None, {}, "x", 3, [3], [[]], [{}], [{"image": "./imagesTr/BRATS_001.nii.gz"}]]
NO_CASES += [[{"image": 1, "label": 2}], [{"image": ".", "label": "."}]]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("modality", value) for value in NO_NAMES),
        *(("labels", value) for value in NO_NAMES + NO_CLASSES),
        *(("training", value) for value in NO_CASES),
        *(("test", value) for value in (None, {}, "x", [1], [{}], ["a.txt"], [".nii.gz"])),
        ("name", 3),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_key(msd, key, value):
    assert f"key '{key}" in refusal(describe(msd, msd_description() | {key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("channel_names", value) for value in NO_NAMES),
        *(("labels", value) for value in ({}, [], {"a": 0}, {"a": 0, "b": 2}, {"a": 0, "b": 0})),
        ("labels", {"a": 0, "whole": [1, 2]}),
        ("labels", {"a": False, "b": True}),
        *(("file_ending", value) for value in (None, "", ".png", "/../x.nii.gz")),
    ],
)
def test_a_wrong_value_in_the_form_of_nnunet_is_refused(nnunet, key, value):
    assert f"key '{key}'" in refusal(describe(nnunet, nnunet_description() | {key: value}))


@pytest.mark.parametrize("key", ["modality", "labels", "training"])
def test_a_missing_key_is_named(msd, key):
    content = msd_description()
    del content[key]
    assert f"key '{key}' is missing" in refusal(describe(msd, content))


def test_a_task_without_training_cases_is_refused(msd, nnunet):
    assert "no training cases" in refusal(describe(msd, msd_description() | {"training": []}))
    for file in (nnunet / "labelsTr").iterdir():
        file.unlink() if not file.name.startswith(".") else None
    assert "no training cases" in refusal(nnunet)
    (nnunet / "labelsTr").rename(nnunet / "labels")
    assert "No such file" in refusal(nnunet)


def test_a_case_that_occurs_twice_is_refused(msd):
    content = msd_description()
    content["training"].append(content["training"][0])
    assert "'BRATS_001' occurs twice" in refusal(describe(msd, content))
    task, _ = survey_task(msd)
    assert [case.name for case in task.training].count("BRATS_001") == 1
    content = msd_description()
    content["test"] = ["./imagesTr/BRATS_007.nii.gz"]
    assert "'BRATS_007' occurs twice" in refusal(describe(msd, content))


# Nothing outside the root is opened. An audit hook cannot be removed, so it is switched.

opened = None


def note_opened_paths(event, arguments):
    if opened is not None and event in ("open", "os.listdir", "os.scandir"):
        opened.append(os.fspath(arguments[0]))


"".encode("utf-8-sig")  # loads the codec now: under the hook it would be a file outside the root
sys.addaudithook(note_opened_paths)


@contextlib.contextmanager
def opening_only_inside(root):
    global opened
    opened = []
    try:
        yield
    finally:
        paths, opened = opened, None
        for path in paths:
            assert os.path.realpath(path).startswith(f"{os.path.realpath(root)}{os.sep}"), path


ESCAPES = ["../secret.nii.gz", "./imagesTr/../../secret.nii.gz", "/etc/passwd", "out.nii.gz"]
ESCAPES += ["outside/secret.nii.gz", "secret.nii.gz\0", "..", "~/../../x.nii.gz", "\ud800.nii.gz"]
ESCAPES += ["imagesTr/../imagesTr/BRATS_007.nii.gz", "{root}/imagesTr/BRATS_007.nii.gz"]


@pytest.mark.parametrize("escape", ESCAPES)
@pytest.mark.parametrize("key", ["image", "label", "test"])
def test_paths_that_leave_the_folder_are_refused_unopened(msd, escape, key):
    write_image(msd.parent / "secret.nii.gz", voxels_of(NAMES[0])[0], AFFINE)
    (msd / "outside").symlink_to(msd.parent)
    (msd / "out.nii.gz").symlink_to(msd.parent / "secret.nii.gz")
    content = msd_description()
    escape = escape.replace("{root}", str(msd))
    if key == "test":
        content["test"] = [escape]
    else:
        content["training"][1][key] = escape
    describe(msd, content)
    with opening_only_inside(msd):
        message = refusal(msd)
    assert f"key '{'test[0]' if key == 'test' else f'training[1].{key}'}'" in message


@pytest.mark.parametrize(
    "part", ["labelsTr", "imagesTs", "dataset.json", "imagesTr/BRATS_001_0000.nii.gz"]
)
def test_links_that_leave_the_folder_are_refused_unopened(nnunet, part):
    (nnunet / part).rename(nnunet.parent / "outside")
    (nnunet / part).symlink_to(nnunet.parent / "outside")
    with opening_only_inside(nnunet):
        message = refusal(nnunet)
    assert f"key '{part}' is " in message
    assert f"which links to '{nnunet.parent}/outside'" in message


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
SCALARS |= st.sampled_from(
    [*ESCAPES, "0", "4", "./imagesTr/BRATS_001.nii.gz", "x" * 5000, "imagesTr"]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(content, path=()):
    """Every place of a description, from the whole to the innermost values."""
    yield path
    if isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in items:
            yield from places(value, (*path, key))


def mutate(data, content):
    """Replace, delete or add a value at a random place."""
    *path, key = data.draw(st.sampled_from(list(places(content))[1:]))
    target = content
    for step in path:
        target = target[step]
    action = data.draw(st.sampled_from(["replace", "delete", "add"]))
    if action == "replace":
        target[key] = data.draw(VALUES)
    elif action == "delete":
        del target[key]
    elif isinstance(target, dict):
        target[data.draw(st.text(max_size=4) | st.sampled_from(["4", "test", "modality"]))] = key
    else:
        target.append(data.draw(VALUES))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    roots = {form: a_task(folder / form, form) for form in ("msd", "nnunet")}
    for root in roots.values():
        open_task(root)  # now, so that Python's own modules are not loaded under the hook
    return roots


@settings(max_examples=2000, derandomize=True, deadline=None, database=None)
@given(st.data())
def test_mutated_descriptions_raise_only_task_errors(both, data):
    form = data.draw(st.sampled_from(["msd", "msd", "msd", "nnunet"]))
    content = msd_description() if form == "msd" else nnunet_description()
    for _ in range(data.draw(st.integers(1, 3))):
        mutate(data, content)
        if not content:
            break
    text = json.dumps(content).encode()
    if data.draw(st.integers(0, 9)) == 0:
        position = data.draw(st.integers(0, len(text) - 1))
        text = text[:position] + data.draw(st.binary(max_size=3)) + text[position + 1 :]
    (both[form] / "dataset.json").write_bytes(text)
    with opening_only_inside(both[form]):
        try:
            task = open_task(both[form])
        except TaskError as error:
            assert str(error).startswith(f"{both[form] / 'dataset.json'}: ")  # noqa: PT017
            return
    assert task.training
    for case in task.training + task.test:
        for path in (*case.images, *filter(None, [case.label])):
            assert path.is_relative_to(both[form])
