"""The report page: the numbers of judged runs and slices of cases, beside each other."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from minibrain.evaluation.background import FalseAlarms
from minibrain.evaluation.scores import Evaluation
from minibrain.files import replacing
from minibrain.metrics import nan_mean
from minibrain.report.html_page import html_page
from minibrain.report.tables import plain, scores_as_dict

SCRIPTS = ("elements", "charts", "slices", "page")


@dataclass(frozen=True, eq=False)
class JudgedRun:
    """All that a report says about one run.

    Attributes
    ----------
    name : as it is called on the page
    settings : what to show (its text) and to sort by (its value), by name; the same for all runs
    history : one dict an epoch, as in metrics.csv; may be empty
    background : of the cases set aside, if there are any
    difference : of the mean foreground Dice from the first run, with its interval
    baseline : mean foreground IoU, pooled, of the classifier that sees single voxels
    """

    name: str
    evaluation: Evaluation
    settings: dict[str, dict] = field(default_factory=dict)
    history: Sequence[dict] = ()
    background: FalseAlarms | None = None
    difference: dict | None = None
    baseline: float | None = None


def write_page(
    path: Path,
    title: str,
    task_name: str,
    modalities: Sequence[str],
    runs: Sequence[JudgedRun],
    slices: Sequence[dict] = (),
) -> None:
    """Write the report of one run, or of several on the same cases.

    Parameters
    ----------
    path : of the HTML file, which opens from disk and needs no other
    modalities : names of the image's channels
    slices : from `minibrain.report.slices.pack_case`, with the predictions in the order of `runs`
    """
    first = runs[0].evaluation
    data = {
        "title": title,
        "task": task_name,
        "classes": first.classes,
        "regions": [region._asdict() for region in first.regions],
        "cases": len(first.cases),
        "modalities": list(modalities),
        "runs": [_run_as_dict(run) for run in runs],
        "slices": list(slices),
    }
    with replacing(path) as file:
        file.write(html_page(files("minibrain.report"), SCRIPTS, title, data).encode())


def _run_as_dict(run: JudgedRun) -> dict:
    return {
        "name": run.name,
        "scores": scores_as_dict(run.evaluation),
        "cases": _cases(run.evaluation),
        "settings": run.settings,
        "history": [{key: plain(value) for key, value in row.items()} for row in run.history],
        "background": run.background and run.background.summary(),
        "difference": run.difference,
        "baseline": run.baseline,
    }


def _cases(evaluation: Evaluation) -> list[dict]:
    dice, classes = evaluation.case_scores("dice"), len(evaluation.classes)
    means = nan_mean(dice[:, 1:classes], axis=1)
    confusions = evaluation.confusions
    truth = confusions[:, 1:].sum(axis=(1, 2)) * evaluation.voxel_ml
    prediction = confusions[:, :, 1:].sum(axis=(1, 2)) * evaluation.voxel_ml
    columns = {
        "mean": means,
        "dice": dice,
        "hausdorff95": evaluation.hausdorff95,
        "truth_ml": truth,
        "prediction_ml": prediction,
    }
    return [
        {"case": name, **{key: plain(column[i]) for key, column in columns.items()}}
        for i, name in enumerate(evaluation.cases)
    ]
