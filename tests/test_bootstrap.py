"""Bootstrap intervals: known distributions, SciPy's own, and laws."""

import numpy as np
import pytest
from scipy import stats

from minibrain.evaluation.bootstrap import bootstrap_interval


def mean_of(values):
    return lambda draws: values[draws].mean(axis=1)


def test_two_cases_have_three_possible_means():
    """0, 1/2 and 1 with chances 1/4, 1/2, 1/4: the middle 95 % reaches both ends."""
    assert bootstrap_interval(mean_of(np.array([0.0, 1.0])), 2).tolist() == [0, 1]


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(3, 2, 400)
    error = values.std() / np.sqrt(400)
    low, high = bootstrap_interval(mean_of(values), 400)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_it_is_scipys():
    values = np.random.default_rng(2).exponential(1, 30)
    peer = stats.bootstrap(
        (values,), np.median, method="percentile", n_resamples=20_000, rng=np.random.default_rng(3)
    )
    ours = bootstrap_interval(lambda draws: np.median(values[draws], axis=1), 30)
    np.testing.assert_allclose(ours, peer.confidence_interval, atol=0.08)


def test_the_same_cases_have_the_same_interval():
    values = np.random.default_rng(4).random(20)
    first, again = (bootstrap_interval(mean_of(values), 20) for _ in range(2))
    assert first.tolist() == again.tolist()


def test_one_case_says_nothing_about_others():
    assert np.isnan(bootstrap_interval(mean_of(np.array([0.7])), 1)).tolist() == [True, True]


def test_a_paired_difference_leaves_out_what_is_hard_for_both():
    hard = np.random.default_rng(5).random(15)
    better, worse = hard + 0.01, hard
    paired = bootstrap_interval(lambda d: (better[d] - worse[d]).mean(axis=1), 15)
    np.testing.assert_allclose(paired, [0.01, 0.01])
    alone = [bootstrap_interval(mean_of(values), 15) for values in (better, worse)]
    assert alone[0][0] < alone[1][1]  # side by side the two would overlap


def test_arrays_keep_their_shape_and_nan_is_left_out():
    values = np.random.default_rng(6).random((12, 2, 3))
    values[:, 1, 2] = np.nan
    values[0, 0, 0] = np.nan
    ends = bootstrap_interval(lambda draws: values[draws].mean(axis=1), 12)
    assert ends.shape == (2, 3, 2)
    assert np.isnan(ends[1, 2]).all()
    assert np.isfinite(ends[0]).all()
    assert (ends[0, :, 0] < ends[0, :, 1]).all()
