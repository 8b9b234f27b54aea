"""The generator is frozen (hashes), is what the Decathlon layout says, and is not too easy."""

import hashlib
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import jaccard_score
from threadpoolctl import threadpool_limits

from minibrain.data import phantom_task
from minibrain.data.phantom import make_case
from minibrain.data.phantom_task import write_task
from minibrain.errors import InputError
from minibrain.evaluation.baseline import ONE_THREAD

SMALL = (24, 24, 16)
FROZEN = {  # sha256 of case 1 at 48 x 48 x 32: image bytes, then label bytes
    "a": "241e972dd5546efa6a52d54a2c93c066e582dfef6462f3e12e5124295f040674",
    "b": "2ae153e442583e4874e7caf2b8562530445b9afec37fa2f201ab602706d0c367",
}


def files_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def inside_the_brains_box(image, label):
    """The (voxels, 4) min-max normalised intensities and the labels of the non-zero box."""
    box = tuple(slice(axis.min(), axis.max() + 1) for axis in np.nonzero(image.any(-1)))
    image = image[box].astype(float)
    low, high = image.min((0, 1, 2)), image.max((0, 1, 2))
    return ((image - low) / (high - low)).reshape(-1, 4), label[box].ravel()


@pytest.mark.parametrize("family", FROZEN)
def test_the_generator_is_frozen(family):
    image, label = make_case(1, size=(48, 48, 32), family=family)
    assert hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest() == FROZEN[family]


def test_each_argument_matters_and_nothing_else_does():
    np.random.seed(1)  # noqa: NPY002 the global generator must not matter
    reference, label = make_case(3, size=SMALL)
    np.random.seed(2)  # noqa: NPY002
    again, label_again = make_case(3, size=SMALL)
    assert np.array_equal(reference, again)
    assert np.array_equal(label, label_again)
    for change in ({"index": 4}, {"seed": 1}, {"family": "b"}, {"tumour": False}):
        image, _ = make_case(**({"index": 3, "size": SMALL} | change))
        assert not np.array_equal(reference, image), change


@pytest.mark.parametrize("size", [SMALL, (31, 45, 27), (60, 60, 39), (16, 90, 17)])
def test_any_size_holds_a_brain_on_an_exact_zero_background(size):
    image, label = make_case(2, size=size)
    assert image.shape == (*size, 4)
    assert label.shape == size
    assert (image.dtype, label.dtype) == (np.int16, np.uint8)
    brain = image.all(-1)
    assert np.array_equal(brain, image.any(-1)), "the modalities share one mask"
    assert image.min() == 0
    assert 0.1 < brain.mean() < 0.2, "the head keeps its share of the field of view"
    assert not label[~brain].any()
    for axis in range(3):
        face = brain.take([0, -1], axis)
        assert not face.any(), "the brain stays inside the field of view"


def test_a_head_is_the_same_head_at_another_size():
    _, coarse = make_case(5, size=(24, 24, 16))
    _, fine = make_case(5, size=(72, 72, 48))
    centres = fine[1::3, 1::3, 1::3]  # three fine voxels to a coarse one: the middle is its centre
    assert (coarse == centres).mean() > 0.995


def test_the_brain_of_a_tumour_free_head_is_the_same_brain():
    with_tumour, _ = make_case(6, size=SMALL)
    without, label = make_case(6, size=SMALL, tumour=False)
    assert not label.any()
    assert np.array_equal(with_tumour > 0, without > 0)


def test_tumours_are_large_enough_and_mostly_have_all_classes():
    counts, box_shares = [], []
    for index in range(1, 25):
        _, labels = inside_the_brains_box(*make_case(index, size=(32, 32, 22)))
        counts.append(np.bincount(labels, minlength=4))
        box_shares.append((labels > 0).mean())
    present = np.array(counts)[:, 1:] > 0
    assert min(box_shares) > 0.02
    assert 0.05 < np.mean(box_shares) < 0.12
    assert present[:, :2].all(), "edema and a non-enhancing part are always there"
    assert 0.7 < present[:, 2].mean() < 1, "some tumours do not enhance"


@pytest.mark.parametrize("family", ["a", "b"])
def test_single_voxels_are_ambiguous(family):
    def voxels(indexes):
        cases = [make_case(i, size=(48, 48, 32), family=family) for i in indexes]
        parts = [inside_the_brains_box(*case) for case in cases]
        return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])

    x, y = voxels(range(1, 9))
    with threadpool_limits(**ONE_THREAD):
        classifier = HistGradientBoostingClassifier(max_iter=40, random_state=0).fit(x[::2], y[::2])
        x, y = voxels(range(13, 17))
        score = jaccard_score(y, classifier.predict(x), labels=[1, 2, 3], average="macro")
    assert 0.15 < score < 0.45


def test_the_layout_is_the_decathlons(tmp_path):
    folder = tmp_path / "new" / "Task01_BrainTumour"
    assert write_task(folder, cases=8, test_cases=2, size=(30, 24, 16)) == folder
    task = json.loads((folder / "dataset.json").read_text())
    assert list(task) == [
        *("name", "description", "reference", "licence", "release", "tensorImageSize", "modality"),
        *("labels", "numTraining", "numTest", "training", "test", "phantom"),
    ]
    assert task["modality"] == {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    assert list(task["labels"].items()) == [
        ("0", "background"),
        ("1", "edema"),
        ("2", "non-enhancing tumor"),
        ("3", "enhancing tumour"),
    ]
    assert "phantom" in task["description"].lower()
    assert (task["numTraining"], task["numTest"], task["tensorImageSize"]) == (8, 2, "4D")
    assert task["training"][7] == {
        "image": "./imagesTr/BRATS_008.nii.gz",
        "label": "./labelsTr/BRATS_008.nii.gz",
    }
    assert task["test"] == ["./imagesTs/BRATS_009.nii.gz", "./imagesTs/BRATS_010.nii.gz"]
    named = {path for case in task["training"] for path in case.values()} | set(task["test"])
    assert {str(path) for path in files_of(folder)} == {p[2:] for p in named} | {"dataset.json"}
    assert not list(folder.parent.glob(".*")), "no temporary folder is left"


def test_the_files_hold_the_cases_where_they_are_in_the_head(tmp_path):
    folder = write_task(tmp_path / "task", cases=8, size=(30, 24, 16), seed=7)
    for index in (1, 8):
        image = nibabel.load(folder / "imagesTr" / f"BRATS_{index:03d}.nii.gz")
        label = nibabel.load(folder / "labelsTr" / f"BRATS_{index:03d}.nii.gz")
        made = make_case(index, size=(30, 24, 16), seed=7, tumour=index != 8)
        assert np.array_equal(np.asanyarray(image.dataobj), made[0])
        assert np.array_equal(np.asanyarray(label.dataobj), made[1])
        assert (image.get_data_dtype(), label.get_data_dtype()) == (np.int16, np.uint8)
        assert np.allclose(image.affine, label.affine)
        assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
        assert np.allclose(image.header.get_zooms()[:3], (240 / 30, 240 / 24, 155 / 16))
        corners = image.affine @ [[-0.5, 29.5], [-0.5, 23.5], [-0.5, 15.5], [1, 1]]
        assert np.allclose(corners[:3], [[-120, 120], [-120, 120], [-77.5, 77.5]])


def test_a_few_cases_have_no_tumour(tmp_path):
    folder = write_task(tmp_path / "task", cases=20, size=SMALL)
    empty = [
        path.name[:9]
        for path in sorted((folder / "labelsTr").iterdir())
        if not np.asanyarray(nibabel.load(path).dataobj).any()
    ]
    assert empty == ["BRATS_008", "BRATS_018"]


def test_the_files_do_not_depend_on_the_number_of_workers(tmp_path):
    options = {"cases": 4, "test_cases": 1, "size": SMALL}
    one = write_task(tmp_path / "one", workers=1, **options)
    three = write_task(tmp_path / "three", workers=3, **options)
    assert files_of(one) == files_of(three)


def test_the_same_task_is_reused_and_anything_else_is_left_alone(tmp_path):
    options = {"cases": 2, "size": SMALL}
    folder = write_task(tmp_path / "task", **options)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    write_task(folder, **options)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times
    for other in ({"cases": 3}, {"seed": 1}, {"family": "b"}, {"size": (24, 24, 17)}):
        with pytest.raises(InputError, match="task: exists"):
            write_task(folder, **(options | other))
    (tmp_path / "mine").mkdir()
    (tmp_path / "file").write_text("mine")
    for name in ("mine", "file"):
        with pytest.raises(InputError, match=f"{name}: exists"):
            write_task(tmp_path / name, **options)


def test_a_failure_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minibrain.data.nifti.write_prediction", full_disk)
    with pytest.raises(InputError, match=r"task: cannot be written: No space left"):
        write_task(tmp_path / "task", cases=3, size=SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"size": (24, 24)}, "size: got .24, 24., expected three"),
        ({"size": (24, 24, 8)}, "size: .* voxels >= 16"),
        ({"family": "c"}, "family: got 'c', expected one of a, b"),
        ({"seed": -1}, "seed: got -1"),
        ({"cases": 0}, "cases: got 0, expected 1 or more"),
        ({"test_cases": -1}, "test_cases: got -1"),
        ({"workers": 0}, "workers: got 0"),
    ],
)
def test_bad_arguments_are_named(tmp_path, options, complaint):
    with pytest.raises(InputError, match=complaint):
        write_task(tmp_path / "task", **({"cases": 1, "size": SMALL} | options))
    assert not list(tmp_path.iterdir())


def test_a_negative_index_is_refused():
    with pytest.raises(InputError, match="index: got -1"):
        make_case(-1, size=SMALL)


def test_the_same_task_that_appears_meanwhile_is_taken_and_another_is_not(tmp_path, monkeypatch):
    """As when two first runs are started at once."""
    folder, rename = tmp_path / "task", phantom_task.os.replace
    options = {"cases": 1, "size": (16, 16, 16)}

    def meanwhile(make):
        def replace(source, target):
            if target == folder:
                monkeypatch.setattr(phantom_task.os, "replace", rename)
                make()
            rename(source, target)

        monkeypatch.setattr(phantom_task.os, "replace", replace)

    meanwhile(lambda: phantom_task.write_task(folder, **options))
    assert phantom_task.write_task(folder, **options) == folder
    assert [path.name for path in tmp_path.iterdir()] == ["task"]

    folder = tmp_path / "other"
    meanwhile(lambda: (folder / "imagesTr").mkdir(parents=True))
    with pytest.raises(InputError, match="other: cannot be written"):
        phantom_task.write_task(folder, **options)
