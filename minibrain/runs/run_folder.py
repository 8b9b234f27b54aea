"""The folder of a run: who may write to it, and everything written there."""

import csv
import io
import shutil
import warnings
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

from minibrain.data import split
from minibrain.data.decathlon import Task
from minibrain.errors import InputError
from minibrain.files import Lock, make_folder, remove_leftovers, replacing, write_json
from minibrain.models import UNet
from minibrain.optimizers import Adam
from minibrain.report.plots import plot_progress
from minibrain.runs import checkpoint
from minibrain.runs.run_files import RunFiles, find_run


class RunFolder(RunFiles):
    """A folder that one process writes to: from `claim` until the end of the `with` block.

    What fails there (a full disk, missing permissions) is an InputError that names the file.
    """

    def __init__(self, path: Path, made: Sequence[Path] = ()):
        super().__init__(path)
        self._made = made  # for this run: this folder and those above it, from the inside out
        self._lock = Lock(self.lock)
        remove_leftovers(path)

    @classmethod
    def claim(cls, output: str | None, network: str) -> "RunFolder":
        """Make the folder of a new run; no other run can claim the same.

        Parameters
        ----------
        output : a new or empty folder; if None, the first of runs/NETWORK-1, runs/NETWORK-2, ...
            that is not there yet

        Raises
        ------
        InputError : the folder is in use, holds anything, or cannot be made
        """
        if output is None:
            above = make_folder(Path("runs"))
            path = _make_first_free(Path("runs"), network)
            return cls(path, [path, *above])
        path = Path(output)
        made = make_folder(path)
        if not any(path.iterdir()) or (path / ".lock").exists():
            folder = cls(path, made or [path])
            if folder._files() <= {folder.lock}:
                return folder
            folder._lock.release()
        raise InputError(f"{path}: already there, expected a new or empty folder for the run")

    @classmethod
    def reopen(cls, path: str) -> "RunFolder":
        """Take over the folder of a run that has ended, in whatever way.

        Raises
        ------
        InputError : there is none, or the run is still going on
        """
        return cls(find_run(path).path)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *error) -> None:
        """Let others in; a new run that ends before its first checkpoint leaves no folder."""
        of_the_start = {self.lock, self.config, self.splits, self.task, self.cost}
        if self._made and self._files() <= of_the_start:
            shutil.rmtree(self.path, ignore_errors=True)
            with suppress(OSError):  # another run may have its folder beside this one's
                for above in self._made[1:]:
                    above.rmdir()
        self._lock.release()

    def start(self, config: dict, parts: split.Split) -> None:
        """Write what is known before the first step; first the file that `reopen` asks for."""
        write_json(self.config, config)
        split.save(parts, self.splits)
        for folder in (self.last.parent, self.predictions, self.background):
            make_folder(folder)

    def save(self, model: UNet, optimizer: Adam, about: dict, *, best: bool = False) -> None:
        """Write last.npz; the one before becomes previous.npz, and the one before that goes.

        Parameters
        ----------
        best : write best.npz as well, and first: whoever finds the new last.npz finds it too
        """
        if best:
            checkpoint.save(self.best, model, optimizer, about)
        checkpoint.save(self.last, model, optimizer, about, keep=self.previous)

    def load(self, model: UNet, optimizer: Adam) -> dict | None:
        """Read last.npz or, with a warning if it is damaged or gone, previous.npz.

        What is damaged becomes damaged.npz, so that it never takes the place of previous.npz.

        Returns
        -------
        about : as it was saved, or None where nothing has been saved yet

        Raises
        ------
        InputError : neither can be used, or they are of another network
        """
        if not (self.last.exists() or self.previous.exists()):
            return None
        try:
            return checkpoint.load_training(self.last, model, optimizer)
        except checkpoint.DamagedError as error:
            if not self.previous.exists():
                raise
            warnings.warn(f"{error}; going on from {self.previous}", stacklevel=2)
            about = checkpoint.load_training(self.previous, model, optimizer)
            with suppress(FileNotFoundError):
                self.last.replace(self.damaged)
            return about

    def record(self, history: Sequence[dict]) -> None:
        """Write the table and the plot of all epochs so far, one dict each."""
        table = io.StringIO()
        rows = csv.DictWriter(table, history[-1])
        rows.writeheader()
        rows.writerows(history)
        with replacing(self.metrics) as file:
            file.write(table.getvalue().encode())
        plot_progress(history, self.progress)

    def write_task(self, task: Task) -> None:
        """What predicting must know of the task, which may be elsewhere by then."""
        names = {"name": task.name, "channels": task.channels, "classes": task.classes}
        write_json(self.task, names)

    def _files(self) -> set[Path]:
        return {path for path in self.path.rglob("*") if not path.is_dir()}


def _make_first_free(parent: Path, stem: str) -> Path:
    """Of several programs at once, each makes another."""
    for number in count(1):
        path = parent / f"{stem}-{number}"
        try:
            path.mkdir()
            return path
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(f"{path}: cannot be made: {error.strerror}") from error
