"""False alarms where there is nothing to find, worked by hand."""

import numpy as np
import pytest

from minibrain.data.nifti import Volume
from minibrain.evaluation.background import false_alarms

AFFINE = np.diag([2.0, 1, 5, 1])  # a voxel is 10 mm³ = 0.01 ml


def case(name, truth_slices, predicted_slices, affine=AFFINE, turn=(0, 1, 2)):
    """Slices as lists of (row of classes); one voxel deep along Y."""
    arrays = [
        np.array(slices, np.uint8).T[:, None, :].transpose(turn)
        for slices in (truth_slices, predicted_slices)
    ]
    return name, Volume(arrays[0], affine), arrays[1]


# four slices of three voxels: tumour in the second, found elsewhere too
LITTLE = [[0, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]]
FOUND = [[0, 0, 0], [0, 1, 3], [2, 2, 0], [0, 0, 0]]
NOTHING = [[0, 0, 0]] * 4
EVERYWHERE = [[1, 1, 1]] * 4


def test_volumes_slices_and_cases_worked_by_hand():
    found = false_alarms(
        [
            case("little", LITTLE, FOUND),
            case("healthy", NOTHING, EVERYWHERE),
            case("quiet", NOTHING, NOTHING),
        ]
    )
    np.testing.assert_allclose(found.false_ml, [0.03, 0.12, 0])
    assert found.free_slices.tolist() == [3, 4, 4]
    assert found.alarmed_slices.tolist() == [1, 4, 0]
    assert found.free.tolist() == [False, True, True]
    summary = found.summary()
    assert summary["false_ml"] == pytest.approx(0.05)
    assert summary["false_ml_largest"] == pytest.approx(0.12)
    assert (summary["free_slices"], summary["alarmed_slices"]) == (11, 5 / 11)
    assert (summary["free_cases"], summary["alarmed_cases"]) == (2, 1 / 2)
    assert summary["alarmed_slices_interval"] == [0, 1]


def test_a_wrong_class_of_tumour_is_no_false_alarm():
    found = false_alarms([case("little", LITTLE, [[0, 0, 0], [0, 3, 0], [0, 0, 0], [0, 0, 0]])])
    assert (found.false_ml[0], found.alarmed_slices[0]) == (0, 0)


def test_where_no_case_is_free_there_is_no_share():
    full = [[1, 0, 0]] * 4
    summary = false_alarms([case("full", full, EVERYWHERE)]).summary()
    assert (summary["free_cases"], summary["alarmed_cases"]) == (0, None)
    assert (summary["free_slices"], summary["alarmed_slices"]) == (0, None)
    assert summary["alarmed_slices_interval"] is None


def test_slices_are_axial_however_the_file_lies():
    """Stored with the axis from feet to head first, and backwards."""
    affine = np.zeros((4, 4))
    affine[[2, 0, 1, 3], [0, 1, 2, 3]] = -5, 2, 1, 1
    found = false_alarms([case("little", LITTLE, FOUND, affine, turn=(2, 0, 1))])
    assert (found.free_slices[0], found.alarmed_slices[0]) == (3, 1)
    assert found.false_ml[0] == pytest.approx(0.03)
