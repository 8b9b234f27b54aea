"""The folder of a run: what lies where in it.

config.json, splits.json        what was asked for, and which case is in which part
task.json                       the names of the task, its channels and its classes
metrics.csv, progress.png       a row and a point for every epoch
checkpoints/                    last.npz, previous.npz (the one before it), best.npz
cost.json                       time and memory that training took
predictions/, background/       CASE.nii.gz of the held-out cases and of those set aside
summary.json, scores.csv        their scores, of the set and case by case
report.html                     the same to look at, with slices
"""

from pathlib import Path

from minibrain.errors import InputError


class RunFiles:
    """The paths of all these files, which need not be there."""

    def __init__(self, path: Path):
        self.path, self.lock = path, path / ".lock"
        self.config, self.splits = path / "config.json", path / "splits.json"
        self.task, self.cost = path / "task.json", path / "cost.json"
        self.metrics, self.progress = path / "metrics.csv", path / "progress.png"
        checkpoints = path / "checkpoints"
        self.last, self.best = checkpoints / "last.npz", checkpoints / "best.npz"
        self.previous, self.damaged = checkpoints / "previous.npz", checkpoints / "damaged.npz"
        self.predictions, self.background = path / "predictions", path / "background"
        self.summary, self.scores = path / "summary.json", path / "scores.csv"
        self.report = path / "report.html"


def find_run(path: str | Path) -> RunFiles:
    """The files of a run; InputError if the path is not the folder of one."""
    files = RunFiles(Path(path))
    if not files.config.is_file():
        raise InputError(f"{path}: holds no config.json, expected the folder of a run")
    return files
