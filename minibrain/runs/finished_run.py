"""What a finished run left behind, as others read it: to judge it again, or beside other runs."""

import csv
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from types import UnionType

from minibrain.data import split
from minibrain.errors import InputError
from minibrain.files import read_json
from minibrain.runs.config import Config, read_config
from minibrain.runs.run_files import RunFiles, find_run

# What must be in summary.json, and of what kind it is.
SUMMARY = {
    "task": str,
    "dataset_json": str,
    "parameters": int,
    "initializer": str,
    "channels": list,
    "seconds": float,
    "peak_memory_bytes": int | None,
}


@dataclass(frozen=True)
class FinishedRun:
    """What the files of a run say.

    Attributes
    ----------
    files : where they lie; `background` may be missing or empty
    config : what was asked for
    split : which cases it learnt from, and which were held out
    history : one dict an epoch, from metrics.csv; numbers
    summary : summary.json: what it was trained on and with, how long that took, and its scores
    """

    files: RunFiles
    config: Config
    split: split.Split
    history: list[dict]
    summary: dict

    @property
    def baseline(self) -> float | None:
        """Pooled mean foreground IoU of the voxel-wise classifier on the held-out cases, if any."""
        try:
            iou = self.summary["voxelwise classifier"]["iou"]["pooled_foreground_mean"]
        except (KeyError, TypeError):
            return None
        return iou if isinstance(iou, float) else None

    @property
    def settings(self) -> dict[str, dict]:
        """The rows of the reference's comparison: what to show, and a value to sort by."""
        config, summary, patch = self.config, self.summary, self.config.patch_size
        seconds, memory = summary["seconds"], summary.get("peak_memory_bytes")
        return {
            "Parameters": _setting(summary["parameters"], f"{summary['parameters']:,}"),
            "Batch size": _setting(config.batch_size),
            "Learning rate": _setting(config.learning_rate, f"{config.learning_rate:g}"),
            "Initialiser": _setting(summary["initializer"]),
            "Channels kept": _setting(", ".join(map(str, summary["channels"]))),
            "Patch": _setting("x".join(map(str, patch)) if patch else "whole"),
            "Epochs": _setting(len(self.history)),
            "Training time": _setting(seconds, _duration(seconds)),
            "Peak memory": _setting(memory, f"{memory / 1e9:.2f} GB" if memory else "–"),
            "Device": _setting(config.device),
        }


def read_run(path: str | Path) -> FinishedRun:
    """Read the folder of a run that has predicted its held-out cases.

    Raises
    ------
    InputError : a file is missing or damaged; the message names it
    """
    files = find_run(path)
    if not files.summary.is_file():
        raise InputError(f"{path}: has no summary.json, expected a run that has come to its end")
    config, parts = read_config(files.config), split.load(files.splits)
    history, summary = _read_history(files.metrics), _read_summary(files.summary)
    return FinishedRun(files, config, parts, history, summary)


def _read_summary(path: Path) -> dict:
    what = "what a run leaves behind"
    content = read_json(path, what)
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no JSON object, expected {what}")
    if wrong := [key for key, kind in SUMMARY.items() if not _is(content.get(key), kind)]:
        raise InputError(f"{path}: {', '.join(wrong)}: missing or not as a run leaves it behind")
    return content


def _is(value, kind: type | UnionType) -> bool:
    if kind is float:
        return isinstance(value, int | float) and isfinite(value)
    return isinstance(value, kind)


def _read_history(path: Path) -> list[dict]:
    try:
        rows = list(csv.DictReader(path.read_text().splitlines()))
        return [
            {key: int(value) if key == "epoch" else float(value) for key, value in row.items()}
            for row in rows
        ]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def _setting(value, text: str | None = None) -> dict:
    return {"value": value, "text": text or str(value)}


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
