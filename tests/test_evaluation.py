"""Predictions with planted errors: every number worked by hand, in every form it is written."""

import csv
import json

import numpy as np
import pytest

from minibrain.data import nifti, phantom_task
from minibrain.data.decathlon import open_task
from minibrain.data.nifti import Volume
from minibrain.errors import InputError
from minibrain.evaluation.scores import evaluate, read_pairs
from minibrain.metrics import SCORES, Region, confusion_matrix, merge, tumour_regions
from minibrain.report.tables import class_table, scores_as_dict, write_cases

CLASSES = ("background", "edema", "non-enhancing tumor", "enhancing tumour")
AFFINE = np.diag([2.0, 1, 1, 1])  # a voxel is 2 mm³


def line(*labels):
    return np.array(labels, np.uint8)[:, None, None]


PLANTED = [  # the truth above the prediction; the second case lacks classes 2 and 3
    ("A", line(0, 0, 0, 1, 1, 1, 2, 2, 3, 0), line(0, 0, 1, 1, 1, 0, 2, 3, 3, 0)),
    ("B", line(1, 0, 0, 0, 0, 0, 0, 0, 0, 0), line(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)),
]


@pytest.fixture
def planted():
    return evaluate([(name, Volume(t, AFFINE), p) for name, t, p in PLANTED], CLASSES)


def test_classes_and_regions_pooled_worked_by_hand(planted):
    """Whole tumour: 5 right, 1 too much, 2 missed. Core: all 3 right."""
    expected = {
        "iou": [12 / 15, 2 / 5, 1 / 2, 1 / 2, 5 / 8, 1, 1 / 2],
        "dice": [24 / 27, 4 / 7, 2 / 3, 2 / 3, 10 / 13, 1, 2 / 3],
        "recall": [12 / 13, 2 / 4, 1 / 2, 1, 5 / 7, 1, 1],
        "precision": [12 / 14, 2 / 3, 1, 1 / 2, 5 / 6, 1, 1 / 2],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(planted.summary(name).pooled, values)


def test_classes_and_regions_per_case_worked_by_hand(planted):
    summary = planted.summary("iou")
    case_a, case_b = [3 / 5, 1 / 2, 1 / 2, 1 / 2, 5 / 7, 1, 1 / 2], [9 / 10, 0, 0]
    np.testing.assert_allclose(planted.case_scores("iou")[0], case_a)
    np.testing.assert_allclose(planted.case_scores("iou")[1][[0, 1, 4]], case_b)
    expected = [0.75, 0.25, 0.5, 0.5, 5 / 14, 1, 0.5]
    np.testing.assert_allclose(summary.per_case, expected)
    assert summary.absent.tolist() == [0, 0, 1, 1, 0, 1, 1]


def test_the_four_means_are_over_classes_and_not_over_regions(planted):
    summary = planted.summary("iou")
    assert summary.pooled_mean == pytest.approx((12 / 15 + 2 / 5 + 1 / 2 + 1 / 2) / 4)
    assert summary.pooled_foreground_mean == pytest.approx((2 / 5 + 1 / 2 + 1 / 2) / 3)
    assert summary.per_case_mean == pytest.approx((2.1 / 4 + 0.9 / 2) / 2)
    assert summary.per_case_foreground_mean == pytest.approx((1.5 / 3 + 0) / 2)


def test_distances_and_volumes_worked_by_hand(planted):
    """Voxels are 2 mm apart. The 95th percentile of 0, 0, 2 mm is 1.8, of 0, 2 it is 1.9, and of
    five zeros and a 2 it is 1.5."""
    nan = np.nan
    expected = [[nan, 1.8, 1.9, 1.9, 1.5, 0, 1.9], [nan] * 7]
    np.testing.assert_allclose(planted.hausdorff95, expected)
    truth, prediction = planted.volumes_ml
    np.testing.assert_allclose(truth[0], np.array([4, 3, 2, 1, 6, 3, 1]) * 0.002)
    np.testing.assert_allclose(prediction[0], np.array([4, 3, 1, 2, 6, 3, 2]) * 0.002)
    np.testing.assert_allclose(truth[1, [0, 1, 4]], [0.018, 0.002, 0.002])
    np.testing.assert_allclose(prediction[1], [0.02, 0, 0, 0, 0, 0, 0])


def test_intervals_worked_by_hand(planted):
    """Of two cases A, B a draw is AA, AB or BB: the middle 95 % reaches from one to the other."""
    ends = planted.intervals("iou")
    np.testing.assert_allclose(ends.pooled[1], [0, 1 / 2])
    np.testing.assert_allclose(ends.pooled[0], [3 / 5, 9 / 10])
    np.testing.assert_allclose(ends.per_case[2], [1 / 2, 1 / 2])  # B has no such class
    np.testing.assert_allclose(ends.per_case_mean, [0.45, 0.525])
    np.testing.assert_allclose(ends.pooled_foreground_mean, [0, 1 / 2])
    assert ends.pooled.shape == (7, 2)


def test_json_says_the_same(planted):
    written = json.loads(json.dumps(scores_as_dict(planted), allow_nan=False))
    assert written["classes"] == list(CLASSES)
    assert written["regions"] == {
        "whole tumour": [1, 2, 3],
        "tumour core": [2, 3],
        "enhancing": [3],
    }
    assert written["confusion"] == [[12, 1, 0, 0], [2, 2, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]]
    for name in SCORES:
        np.testing.assert_allclose(written[name]["pooled"], planted.summary(name).pooled)
        np.testing.assert_allclose(written[name]["pooled_interval"], planted.intervals(name).pooled)
    assert written["hausdorff95_mm"]["per_case"][0] is None
    assert written["hausdorff95_mm"]["per_case"][1:3] == pytest.approx([1.8, 1.9])
    assert written["hausdorff95_mm"]["absent"] == [2, 1, 1, 1, 1, 1, 1]
    assert written["volume_error_ml"]["per_case"][1:4] == pytest.approx([-0.001, -0.001, 0.001])
    assert written["absolute_volume_error_ml"]["per_case"][3] == pytest.approx(0.001)


def test_csv_has_a_row_for_each_case_and_structure(planted, tmp_path):
    write_cases(planted, tmp_path / "scores.csv")
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    assert [(row["case"], row["kind"]) for row in rows[::4]] == [
        ("A", "class"),
        ("A", "region"),
        ("B", "class"),
        ("B", "region"),
    ]
    edema, lacking = rows[1], rows[9]
    assert (edema["name"], float(edema["iou"]), float(edema["hausdorff95_mm"])) == (
        "edema",
        0.5,
        pytest.approx(1.8),
    )
    assert (float(edema["truth_ml"]), float(edema["volume_error_ml"])) == (0.006, 0)
    assert (lacking["name"], lacking["iou"], lacking["hausdorff95_mm"]) == (CLASSES[2], "", "")


def test_the_table_shows_them(planted):
    text = class_table(planted)
    for row in (
        r"edema  0.400 0.571 0.500 0.667 0.333 0/2 1.8",
        r"tumour core  1.000 1.000 1.000 1.000 1.000 1/2 0.0",
        r"background  0.800 0.889 0.923 0.857 0.849 0/2 –",
    ):
        assert any(line.split() == row.split() for line in text.splitlines()), (row, text)


# Regions


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (CLASSES, [(1, 2, 3), (2, 3), (3,)]),
        (("background", "Necrotic core", "Oedema", "Enhancing"), [(1, 2, 3), (1, 3), (3,)]),
        (("background", "edema", "nonenhancing_tumor", "enhancing"), [(1, 2, 3), (2, 3), (3,)]),
        (("background", "liver", "tumour"), []),
        (("background", "edema", "enhancing", "vessel"), []),
        (("background", "edema", "necrosis", "non-enhancing", "enhancing"), []),
        (("edema", "background", "necrosis", "enhancing"), []),
    ],
)
def test_regions_are_found_by_the_names_of_the_classes(classes, expected):
    regions = tumour_regions(classes)
    assert [region.labels for region in regions] == expected
    names = ["whole tumour", "tumour core", "enhancing"] if expected else []
    assert [region.name for region in regions] == names


def test_a_merged_confusion_matrix_is_that_of_merged_labels():
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 4, (2, 500))
    for labels in [(1, 2, 3), (2, 3), (0,), ()]:
        binary = (np.isin(values, labels).astype(int) for values in (truth, prediction))
        expected = confusion_matrix(*binary, 2)
        np.testing.assert_array_equal(
            merge(confusion_matrix(truth, prediction, 4), labels), expected
        )
    assert Region("x", (1,)).labels == (1,)


def test_a_task_without_tumour_regions_has_classes_alone():
    volume = line(0, 1, 1)
    result = evaluate([("A", Volume(volume, AFFINE), volume)], ("background", "heart"))
    assert [structure.name for structure in result.structures] == ["background", "heart"]
    assert result.hausdorff95.shape == (1, 2)
    assert "heart" in class_table(result)


# Files


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "Task01_BrainTumour"
    return open_task(phantom_task.write_task(folder, cases=2, size=(24, 24, 16)))


def copy_labels(task, folder, change=lambda label, affine: (label, affine)):
    for case in task.training:
        label = nifti.read_label(case.label)
        nifti.write_prediction(folder / f"{case.name}.nii.gz", *change(label.array, label.affine))


def test_labels_as_predictions_score_one(task, tmp_path):
    copy_labels(task, tmp_path)
    names = [case.name for case in task.training]
    result = evaluate(read_pairs(task, tmp_path, names), task.classes)
    assert result.cases == ("BRATS_001", "BRATS_002")
    assert result.summary("dice").pooled_mean == 1
    assert np.nanmax(result.hausdorff95) == 0


def moved(label, affine):
    affine = affine.copy()
    affine[0, 3] += 1
    return label, affine


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (moved, ["BRATS_001.nii.gz", "affine", "mm"]),
        (lambda label, affine: (label[1:], affine), ["BRATS_001.nii.gz", "shape"]),
        (lambda label, affine: (label + 4, affine), ["BRATS_001.nii.gz", "label values"]),
    ],
)
def test_predictions_that_do_not_fit_are_refused(task, tmp_path, change, words):
    copy_labels(task, tmp_path, change)
    with pytest.raises(InputError) as error:
        evaluate(read_pairs(task, tmp_path, ["BRATS_001"]), task.classes)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [("BRATS_002", "no prediction of case BRATS_002"), ("BRATS_009", "no labelled case")],
)
def test_cases_that_are_missing_are_named(task, tmp_path, name, words):
    with pytest.raises(InputError, match=words):
        list(read_pairs(task, tmp_path, [name]))
