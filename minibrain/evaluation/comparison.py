"""Runs side by side: the same held-out cases, judged in the same space, case for case."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from minibrain.data.decathlon import open_task
from minibrain.errors import InputError
from minibrain.evaluation.judging import score_run, write_report
from minibrain.evaluation.scores import Evaluation
from minibrain.files import make_folder, require_writable, write_json
from minibrain.metrics import SCORES
from minibrain.report.page import JudgedRun
from minibrain.report.tables import plain, scores_as_dict
from minibrain.runs.finished_run import FinishedRun, read_run


def compare(
    paths: Sequence[str | Path], output: str | Path, data: str | Path | None = None
) -> Path:
    """Put two runs or more side by side; the others are compared with the first.

    Parameters
    ----------
    paths : folders of runs over the same task with the same split, that have come to their end
    output : folder for comparison.json and comparison.html
    data : folder of the task, if it is no longer where the runs found it

    Returns
    -------
    report : path of the HTML page

    Raises
    ------
    InputError : fewer than two runs, one that is not finished, another task or split, or the output
        folder cannot be made or written to
    """
    if len({Path(path).resolve() for path in paths}) < max(2, len(paths)):
        raise InputError(f"runs: got {', '.join(map(str, paths))}, expected two or more, each once")
    runs = [read_run(path) for path in paths]
    for run in runs[1:]:
        _require_same_cases(runs[0], run)
    task = open_task(data or runs[0].summary["task"])
    output = Path(output)
    require_writable(output)
    judged = [score_run(run, task) for run in runs]
    first = judged[0].evaluation
    judged[1:] = [_with_difference(run, first) for run in judged[1:]]
    make_folder(output)
    content = [_as_dict(run, first) for run in judged]
    write_json(output / "comparison.json", content)
    report = output / "comparison.html"
    title = f"{len(runs)} runs on the same cases"
    write_report(report, title, task, judged, [run.files.predictions for run in runs])
    print(f"\n{comparison_table(judged)}\n\nwritten to {output / 'comparison.json'}")
    print(f"written to {report}")
    return report


def comparison_table(runs: Sequence[JudgedRun]) -> str:
    """Mean foreground Dice of each run, and how far it is from the first."""
    width = max(len(run.name) for run in runs)
    lines = [f"{'mean foreground Dice, pooled':{width}}"]
    for run in runs:
        dice = run.evaluation.summary("dice").pooled_foreground_mean
        line = f"{run.name:{width}}  {dice:.3f}"
        if run.difference:
            low, high = run.difference["interval"]
            line += f"  {run.difference['value']:+.3f}"
            line += "" if low is None else f" (95 % interval {low:+.3f} to {high:+.3f})"
        lines.append(line)
    return "\n".join(lines)


def _require_same_cases(first: FinishedRun, other: FinishedRun) -> None:
    folder, expected = other.files.path, first.files.path
    if first.summary["dataset_json"] != other.summary["dataset_json"]:
        tasks = f"of the task {other.summary['task']}, expected {first.summary['task']}"
        raise InputError(f"{folder}: {tasks} as {expected}, or a copy of it")
    if first.split != other.split:
        raise InputError(f"{folder}: its split of the cases is not that of {expected}")


def _with_difference(run: JudgedRun, first: Evaluation) -> JudgedRun:
    apart, ends = run.evaluation.difference(first, "dice")
    difference = {
        "value": plain(apart.pooled_foreground_mean),
        "interval": plain(ends.pooled_foreground_mean),
    }
    return replace(run, difference=difference)


def _as_dict(run: JudgedRun, first: Evaluation) -> dict:
    """Settings, scores and, of all but the first, the differences from it."""
    differences = {}
    for name in SCORES if run.evaluation is not first else ():
        apart, ends = run.evaluation.difference(first, name)
        differences[name] = {
            field: {"value": plain(value), "interval": plain(interval)}
            for field, value, interval in zip(apart._fields, apart, ends, strict=True)
            if field != "absent"
        }
    return {
        "name": run.name,
        "settings": {name: setting["value"] for name, setting in run.settings.items()},
        "network": scores_as_dict(run.evaluation),
        "background": run.background and run.background.summary(),
        "difference_from_the_first": differences,
    }
