"""Scores as text."""

from collections.abc import Sequence

import numpy as np

from minibrain.metrics import SCORES, summarize


def class_table(confusions: np.ndarray, classes: Sequence[str]) -> str:
    """Per class: scores pooled over the set, and IoU averaged per case; then the four means.

    Parameters
    ----------
    confusions : (cases, C, C), one confusion matrix a case
    classes : names in label order, the background first
    """
    pooled = confusions.sum(axis=0)
    columns = [score(pooled) for score in SCORES.values()]
    summary = summarize(confusions)
    width = max(map(len, classes))
    lines = [
        f"{'':{width}}  {'pooled over the set':^40}  {'IoU per case':^14}",
        f"{'class':{width}}" + "".join(f"  {name:>9}" for name in SCORES) + "    mean   absent",
    ]
    for i, name in enumerate(classes):
        scores = "".join(f"  {_number(column[i]):>9}" for column in columns)
        per_case = f"  {_number(summary.per_case[i]):>6}  {summary.absent[i]:>4}/{len(confusions)}"
        lines.append(f"{name:{width}}{scores}{per_case}")
    lines += [
        "",
        f"mean IoU, pooled    with background {_number(summary.pooled_mean)}   "
        f"foreground {_number(summary.pooled_foreground_mean)}",
        f"mean IoU, per case  with background {_number(summary.per_case_mean)}   "
        f"foreground {_number(summary.per_case_foreground_mean)}",
    ]
    return "\n".join(lines)


def scores_as_dict(confusions: np.ndarray, classes: Sequence[str]) -> dict:
    """The same as JSON: every score the four ways, class by class; NaN as null."""
    return {
        "classes": list(classes),
        "cases": len(confusions),
        "confusion": confusions.sum(axis=0).tolist(),
        **{name: _jsonable(summarize(confusions, score)) for name, score in SCORES.items()},
    }


def _jsonable(summary):
    def plain(value):
        if isinstance(value, np.ndarray):
            return [plain(item) for item in value.tolist()]
        return None if isinstance(value, float) and np.isnan(value) else value

    return {name: plain(value) for name, value in summary._asdict().items()}


def _number(value: float) -> str:
    return "  –  " if np.isnan(value) else f"{value:.3f}"
