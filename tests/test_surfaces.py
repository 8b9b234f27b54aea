"""The 95th-percentile Hausdorff distance: by hand, against all pairs of points, and by law."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from minibrain.evaluation.surfaces import hausdorff95

SPACING = np.array([1.0, 2.0, 0.5])


@st.composite
def volumes(draw):
    """Two sets of voxels in a small volume, neither empty, and a spacing."""
    shape = draw(st.tuples(*[st.integers(1, 6)] * 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    sets = [rng.random(shape) < draw(st.sampled_from([0.1, 0.5, 0.95])) for _ in range(2)]
    for voxels in sets:
        voxels.flat[rng.integers(voxels.size)] = True
    return *sets, rng.uniform(0.3, 3, 3)


def surface_by_loops(voxels):
    padded = np.pad(voxels, 1)
    points = []
    for x, y, z in np.argwhere(padded):
        sides = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
        if not all(padded[x + i, y + j, z + k] for i, j, k in sides):
            points.append((x, y, z))
    return np.array(points)


@settings(max_examples=60)
@given(volumes())
def test_it_is_what_all_pairs_of_surface_points_give(sets):
    *voxels, spacing = sets
    here, there = (surface_by_loops(v) * spacing for v in voxels)
    distances = cdist(here, there)
    expected = max(np.percentile(distances.min(axis=axis), 95) for axis in (0, 1))
    np.testing.assert_allclose(hausdorff95(*sets), expected, rtol=1e-12)


@settings(max_examples=30)
@given(volumes(), st.floats(0.1, 10))
def test_it_is_symmetric_and_grows_with_the_spacing(sets, factor):
    first, second, spacing = sets
    distance = hausdorff95(first, second, spacing)
    assert hausdorff95(second, first, spacing) == distance
    np.testing.assert_allclose(hausdorff95(first, second, factor * spacing), factor * distance)
    assert hausdorff95(first, first, spacing) == 0


def test_two_points_and_a_box_worked_by_hand():
    first, second = np.zeros((2, 9, 9, 9), bool)
    first[1, 2, 3] = second[4, 4, 7] = True
    assert hausdorff95(first, second, SPACING) == pytest.approx(np.hypot(np.hypot(3, 4), 2))
    first[2:5, 2:5, 2:5] = True
    second = np.roll(first, 3, axis=1)
    assert 0 < hausdorff95(first, second, SPACING) <= 6


def test_the_inside_of_a_body_does_not_count():
    """A hollow and a full cube have the same outer surface, but the hollow one has another."""
    full, small = np.zeros((2, 11, 11, 11), bool)
    full[1:10, 1:10, 1:10] = True
    small[5, 5, 5] = True
    assert hausdorff95(full, small, np.ones(3)) > 4  # the centre is no surface of the full cube
    assert hausdorff95(full & ~small, full, np.ones(3)) < 4


@pytest.mark.parametrize("empty", [0, 1])
def test_there_is_no_distance_to_nothing(empty):
    pair = [np.ones((3, 3, 3), bool)] * 2
    pair[empty] = np.zeros((3, 3, 3), bool)
    assert np.isnan(hausdorff95(*pair, SPACING))
    assert np.isnan(hausdorff95(pair[empty], pair[empty], SPACING))


def test_far_away_in_a_large_volume():
    first, second = np.zeros((2, 240, 240, 155), bool)
    first[10, 10, 10] = second[200, 10, 10] = True
    assert hausdorff95(first, second, np.ones(3)) == 190
