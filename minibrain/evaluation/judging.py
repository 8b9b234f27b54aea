"""Judging: predict the cases that a run has not seen, score them, and write the report.

Scores are taken from the files on the disk, in the space of the label files. So a run can be
judged again at any time, and predictions that come from elsewhere are judged in the same way.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minibrain.data import nifti
from minibrain.data.decathlon import Task, open_task, read_case
from minibrain.data.prepare import restore
from minibrain.data.prepared import PreparedCase
from minibrain.errors import InputError
from minibrain.evaluation.background import FalseAlarms, false_alarms
from minibrain.evaluation.baseline import voxelwise_classifier
from minibrain.evaluation.scores import Evaluation, evaluate, find_prediction, read_pairs
from minibrain.files import make_folder, require_writable, write_json
from minibrain.inference import predict
from minibrain.metrics import confusion_matrix
from minibrain.models import UNet
from minibrain.report.page import JudgedRun, write_page
from minibrain.report.slices import PIXELS, pack_case, representative_cases
from minibrain.report.tables import (
    class_table,
    confusions_as_dict,
    counted,
    scores_as_dict,
    write_cases,
)
from minibrain.runs.cost import read_cost
from minibrain.runs.finished_run import FinishedRun, read_run
from minibrain.runs.run_files import RunFiles
from minibrain.runs.run_folder import RunFolder

Predict = Callable[[np.ndarray], np.ndarray]  # (X, Y, Z, C) prepared image -> (X, Y, Z) classes


def judge(
    model: UNet,
    train: Sequence[PreparedCase],
    test: Sequence[PreparedCase],
    dropped: Sequence[PreparedCase],
    task: Task,
    folder: RunFolder,
    *,
    seed: int,
    repaired: int,
    channels: Sequence[int] | None = None,
    **options,
) -> None:
    """Predict all that a network has not seen, write it out, and say how good it is.

    Parameters
    ----------
    train : cases that the voxel-wise classifier learns from, for comparison
    test : held-out cases
    dropped : cases set aside for the background test
    seed : of the voxel-wise classifier
    repaired : voxels of all cases that were not finite and have been set to zero
    channels, options : of `minibrain.inference.predict`
    """
    shown = partial(predict, model, channels=channels, **options)
    write_predictions(shown, test, folder.predictions)
    write_predictions(shown, dropped, folder.background)
    voxelwise = confusions_of(voxelwise_classifier(train, seed), test, task)
    names = task.channels if channels is None else [task.channels[i] for i in channels]
    write_json(
        folder.summary,
        {
            "task": str(task.folder),
            "dataset_json": sha256((task.folder / "dataset.json").read_bytes()).hexdigest(),
            "parameters": sum(p.value.size for p in model.named_parameters().values()),
            "initializer": model.initializer,
            "channels": list(names),
            "repaired_voxels": repaired,
            **read_cost(folder.cost),
            "voxelwise classifier": confusions_as_dict(voxelwise, task.classes),
        },
    )
    judge_run(folder.path)


def write_predictions(predict: Predict, cases: Sequence[PreparedCase], folder: Path) -> None:
    """Predict case after case into CASE.nii.gz, in the shape and orientation of its label file."""
    silent = None if cases else True
    for case in tqdm(cases, f"predict {folder.name}", unit="case", disable=silent):
        restored = restore(predict(case.image), case.geometry)
        affine = np.array(case.geometry.affine)
        nifti.write_prediction(folder / f"{case.name}.nii.gz", restored, affine)


def confusions_of(predict: Predict, cases: Sequence[PreparedCase], task: Task) -> np.ndarray:
    """(cases, C, C) confusion matrices in the space of the label files; nothing is written."""
    labels = {case.name: case.label for case in task.training}
    classes = len(task.classes)
    confusions = []
    for case in cases:
        truth = nifti.read_label(labels[case.name], allowed=range(classes))
        restored = restore(predict(case.image), case.geometry)
        confusions.append(confusion_matrix(truth.array, restored, classes))
    return np.stack(confusions)


def judge_run(path: str | Path, data: str | Path | None = None) -> Path:
    """Score the predictions of a run; writes summary.json, scores.csv and report.html into it.

    Parameters
    ----------
    path : folder of a run that has come to its end
    data : folder of the task, if it is no longer where the run found it

    Returns
    -------
    report : path of the HTML page

    Raises
    ------
    InputError : no such run or task, the task is another than before, a prediction is missing or
        does not overlay its label, or nothing can be written into the run
    """
    run = read_run(path)
    task = open_task(data or run.summary["task"])
    require_writable(run.files.path)
    judged = score_run(run, task)
    scores, labels = scores_as_dict(judged.evaluation), _labels(judged.evaluation)
    summary = {**run.summary, "labels": labels, "network": scores}
    if judged.background:
        summary["background"] = judged.background.summary()
    report = _write_results(run.files.path, task, judged, run.files.predictions, summary)
    iou = summary["network"]["iou"]["pooled_foreground_mean"]
    print(f"\nof a classifier that sees single voxels: mean foreground IoU {_number(run.baseline)}")
    print(f"held-out mean foreground IoU: {_number(iou)}")
    return report


def judge_predictions(
    predictions: str | Path, data: str | Path, output: str | Path | None = None
) -> Path:
    """Score a folder of predictions, made by whatever, against the labels of a task.

    Parameters
    ----------
    predictions : folder of CASE.nii.gz or CASE.nii; labelled cases without one are left out
    data : folder of the task
    output : folder for summary.json, scores.csv and report.html; by default the predictions' own

    Returns
    -------
    report : path of the HTML page

    Raises
    ------
    InputError : no prediction is of a labelled case, one does not overlay its label, or the output
        folder cannot be made or written to
    """
    folder, task = Path(predictions), open_task(data)
    names = [case.name for case in task.training if find_prediction(folder, case.name)]
    if not names:
        example = f"{task.training[0].name}.nii.gz"
        raise InputError(f"{folder}: no prediction of a labelled case, expected such as {example}")
    print(f"predictions of {len(names)} of {counted(len(task.training), 'labelled case')}")
    output = Path(output or folder)
    require_writable(output)
    judged = JudgedRun(folder.resolve().name, evaluate(_pairs(task, folder, names), task.classes))
    make_folder(output)
    summary = {"network": scores_as_dict(judged.evaluation)}
    return _write_results(output, task, judged, folder, summary)


def score_run(run: FinishedRun, task: Task) -> JudgedRun:
    """Score the held-out cases of a run, and its background test if it has predicted one.

    Raises
    ------
    InputError : as `judge_run`; also if a label is not the one that the run was judged by before
    """
    files = run.files
    evaluation = evaluate(_pairs(task, files.predictions, run.split.test), task.classes)
    if run.summary.get("labels") not in (None, _labels(evaluation)):
        raise InputError(
            f"{task.folder}: its labels are not those that {files.path} was judged by, "
            "expected the task of the run, or a copy of it"
        )
    names = [case.name for case in task.training if find_prediction(files.background, case.name)]
    return JudgedRun(
        name=files.path.resolve().name,
        evaluation=evaluation,
        settings=run.settings,
        history=run.history,
        background=false_alarms(_pairs(task, files.background, names)) if names else None,
        baseline=run.baseline,
    )


def write_report(
    path: Path, title: str, task: Task, runs: Sequence[JudgedRun], folders: Sequence[Path]
) -> None:
    """Write the page of one run or several, with slices of four cases from worst to best.

    Parameters
    ----------
    folders : of the predictions, one for each run
    """
    cases = {case.name: case for case in task.training}
    task = replace(task, repair_nonfinite=True)  # of an image that is looked at, not judged
    shown = representative_cases(runs[0].evaluation)
    slices = []
    for name, dice in shown.items():
        data = read_case(task, cases[name])
        predictions = [nifti.read_label(find_prediction(folder, name)).array for folder in folders]
        note = f"Dice {dice:.2f}"
        slices.append(pack_case(name, note, data, predictions, PIXELS // len(shown)))
    write_page(path, title, task.name, task.channels, runs, slices)


def _labels(evaluation: Evaluation) -> dict[str, int]:
    """What the held-out cases are known by in summary.json: the checksum of each label."""
    return dict(zip(evaluation.cases, evaluation.checksums, strict=True))


def _pairs(task: Task, folder: Path, names: Sequence[str]):
    pairs = read_pairs(task, folder, names)
    bar = {"unit": "case", "leave": False, "disable": None}
    return tqdm(pairs, f"score {folder.name}", len(names), **bar)


def _write_results(
    output: Path, task: Task, judged: JudgedRun, predictions: Path, summary: dict
) -> Path:
    files = RunFiles(output)
    write_json(files.summary, summary)
    write_cases(judged.evaluation, files.scores)
    write_report(files.report, judged.name, task, [judged], [predictions])
    cases = counted(len(judged.evaluation.cases), "case")
    print(f"\n{cases}, in the space of the original files\n\n{class_table(judged.evaluation)}\n")
    if judged.background:
        print(_background_text(judged.background), end="\n\n")
    for path in (files.summary, files.scores, files.report):
        print(f"written to {path}")
    return files.report


def _background_text(found: FalseAlarms) -> str:
    summary = found.summary()
    slices, cases = summary["alarmed_slices"], summary["alarmed_cases"]
    shown = counted(summary["cases"], "case")
    text = f"background test, {shown}: {summary['false_ml']:.1f} ml of false tumour per case"
    if slices is not None:
        free = counted(summary["free_slices"], "slice")
        text += f", false alarm on {slices:.1%} of {free} without tumour"
    if cases is not None:
        text += f" and in {cases:.0%} of {counted(summary['free_cases'], 'case')}"
    return text


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
