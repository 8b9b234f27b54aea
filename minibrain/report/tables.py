"""Scores as text, as JSON and as CSV."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minibrain.evaluation.bootstrap import bootstrap_interval
from minibrain.evaluation.scores import Evaluation
from minibrain.files import replacing
from minibrain.metrics import SCORES, nan_mean, summarize

CASE_COLUMNS = (
    "case",
    "kind",
    "name",
    *SCORES,
    "hausdorff95_mm",
    "truth_ml",
    "prediction_ml",
    "volume_error_ml",
)


def class_table(evaluation: Evaluation) -> str:
    """Per class and region: scores pooled over the set, and Dice per case; then four means."""
    columns = [evaluation.summary(name).pooled for name in SCORES]
    dice, iou = evaluation.summary("dice"), evaluation.summary("iou")
    names = [structure.name for structure in evaluation.structures]
    cases, width = len(evaluation.cases), max(map(len, names))
    distances = nan_mean(evaluation.hausdorff95, axis=0)
    lines = [
        f"{'':{width}}  {'pooled over the set':^40}  {'Dice per case':^14}  {'HD95':>6}",
        f"{'class':{width}}"
        + "".join(f"  {name:>9}" for name in SCORES)
        + "    mean   absent      mm",
    ]
    for i, name in enumerate(names):
        if i == len(evaluation.classes):
            lines.append("")
        scores = "".join(f"  {_number(column[i]):>9}" for column in columns)
        per_case = f"  {_number(dice.per_case[i]):>6}  {dice.absent[i]:>4}/{cases}"
        lines.append(f"{name:{width}}{scores}{per_case}  {_number(distances[i], 1):>6}")
    lines += [
        "",
        f"mean IoU, pooled    with background {_number(iou.pooled_mean)}   "
        f"foreground {_number(iou.pooled_foreground_mean)}",
        f"mean IoU, per case  with background {_number(iou.per_case_mean)}   "
        f"foreground {_number(iou.per_case_foreground_mean)}",
    ]
    return "\n".join(lines)


def scores_as_dict(evaluation: Evaluation) -> dict:
    """Every number of an evaluation for JSON, NaN as None; lists are over classes, then regions."""
    signed = -np.subtract(*evaluation.volumes_ml)
    return {
        "classes": list(evaluation.classes),
        "regions": {region.name: list(region.labels) for region in evaluation.regions},
        "cases": len(evaluation.cases),
        "confusion": evaluation.confusions.sum(axis=0).tolist(),
        **{name: _summary(evaluation, name) for name in SCORES},
        "hausdorff95_mm": _per_case(evaluation.hausdorff95),
        "volume_error_ml": _per_case(signed),
        "absolute_volume_error_ml": _per_case(np.abs(signed)),
    }


def confusions_as_dict(confusions: np.ndarray, classes: Sequence[str]) -> dict:
    """As `scores_as_dict`, of confusion matrices alone and without intervals."""
    return {
        "classes": list(classes),
        "cases": len(confusions),
        "confusion": confusions.sum(axis=0).tolist(),
        **{
            name: {
                key: plain(value) for key, value in summarize(confusions, score)._asdict().items()
            }
            for name, score in SCORES.items()
        },
    }


def write_cases(evaluation: Evaluation, path: Path) -> None:
    """One row for each case and class or region; a score that does not exist is left empty."""
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(CASE_COLUMNS)
    writer.writerows(case_rows(evaluation))
    with replacing(path) as file:
        file.write(table.getvalue().encode())


def case_rows(evaluation: Evaluation) -> list[list]:
    """The cells under CASE_COLUMNS, None where there is no score."""
    truth, prediction = evaluation.volumes_ml
    columns = [evaluation.case_scores(name) for name in SCORES]
    columns += [evaluation.hausdorff95, truth, prediction, prediction - truth]
    kinds = ["class"] * len(evaluation.classes) + ["region"] * len(evaluation.regions)
    return [
        [case, kind, structure.name, *(plain(column[i, s]) for column in columns)]
        for i, case in enumerate(evaluation.cases)
        for s, (kind, structure) in enumerate(zip(kinds, evaluation.structures, strict=True))
    ]


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def plain(value):
    """Arrays as lists and NaN as None, for JSON."""
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and np.isnan(value) else value


def _summary(evaluation: Evaluation, score: str) -> dict:
    summary, ends = evaluation.summary(score)._asdict(), evaluation.intervals(score)._asdict()
    del ends["absent"]
    return {
        **{name: plain(value) for name, value in summary.items()},
        **{f"{name}_interval": plain(value) for name, value in ends.items()},
    }


def _per_case(values: np.ndarray) -> dict:
    """(cases, S): the mean over the cases that have a value, its interval, and who has none."""
    ends = bootstrap_interval(lambda draws: nan_mean(values[draws], axis=1), len(values))
    return {
        "per_case": plain(nan_mean(values, axis=0)),
        "per_case_interval": plain(ends),
        "absent": plain(np.isnan(values).sum(axis=0)),
    }


def _number(value: float, digits: int = 3) -> str:
    return "–" if np.isnan(value) else f"{value:.{digits}f}"
