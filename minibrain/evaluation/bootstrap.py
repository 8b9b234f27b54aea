"""How far a number would move had other cases been drawn: percentile bootstrap intervals.

The cases are the sample: n of them are drawn with replacement from the n there are, the statistic
is computed anew, and the interval holds the middle 95 % of a thousand such values. Two networks
judged on the same cases are compared by their difference on the *same* draws, which leaves out
what makes a case hard for both. With a handful of cases the interval is rough, and too narrow;
one case has none, for it says nothing about others.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.
"""

import warnings
from collections.abc import Callable

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0


def bootstrap_interval(statistic: Callable[[np.ndarray], np.ndarray], cases: int) -> np.ndarray:
    """The percentile interval of a statistic under resampling of the cases.

    Parameters
    ----------
    statistic : (draws, cases) indices of the drawn cases -> (draws, ...), which may hold NaN
    cases : how many there are to draw from, at least 1; for as many the draws are the same

    Returns
    -------
    interval : (..., 2), the lower and the upper end for each number of the statistic, over the
        draws in which it is not NaN; NaN where it always is, and everywhere if there is one case
    """
    draws = np.random.default_rng(SEED).integers(0, cases, (RESAMPLES, cases))
    values = statistic(draws) * (1 if cases > 1 else np.nan)
    tail = 100 * (1 - LEVEL) / 2
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice")
        ends = np.nanpercentile(values, (tail, 100 - tail), axis=0)
    return np.moveaxis(ends, 0, -1)
