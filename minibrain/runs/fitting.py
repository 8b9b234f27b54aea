"""Training for many epochs: what is kept when, how it is interrupted, and how it goes on.

All that the future of a run depends on is in a checkpoint, and what is random is keyed: the order
of the samples by (seed, epoch), patches and augmentation by (seed, epoch, sample), dropout by
(seed, step, layer). So a run that is stopped anywhere goes on as if nothing had happened, bit for
bit.
"""

import json
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite, nan

import numpy as np
from tqdm import tqdm

from minibrain.arrays import array_module
from minibrain.data.loader import batches
from minibrain.errors import InputError
from minibrain.models import UNet
from minibrain.optimizers import Adam, HalveOnPlateau
from minibrain.runs.config import DEFAULTS
from minibrain.runs.environment import describe_environment
from minibrain.runs.interruption import Interrupted, Interruption
from minibrain.runs.run_folder import RunFolder
from minibrain.training import RepeatedStep, train_step

SECONDS_BETWEEN_SAVES = 300  # within an epoch
MOST_SKIPPED = 10  # steps in a row without a finite loss and gradient
# What may differ from the interrupted run without making the result wrong.
FREE = {"data", "output", "epochs", "device"}


@dataclass
class Progress:
    """How far a run has come."""

    epoch: int = 0  # that is being trained, counted from 0
    batches: int = 0  # of this epoch that are done
    losses: list[float] = field(default_factory=list)  # of those
    skipped: int = 0  # steps in a row
    history: list[dict] = field(default_factory=list)  # a row for each epoch that is done
    best: float = float("-inf")  # validation IoU

    @property
    def best_epoch(self) -> int:
        """Whose network is best.npz: the first of the best, or of all if no IoU is a number."""
        ious = [row["validation_iou"] for row in self.history]
        return ious.index(self.best) + 1 if self.best in ious else 1


class Trainer:
    """Trains one network in one folder.

    Parameters
    ----------
    config : dict of all that decides the run
    data : fingerprint of the cases and their split
    samples : as in `minibrain.data.loader`
    validate : from cases to a dict with validation_loss and validation_iou
    cases : prepared ones for it
    """

    def __init__(
        self,
        config: dict,
        data: str,
        model: UNet,
        samples,
        validate: Callable[[Iterable], dict],
        cases: Sequence,
        folder: RunFolder,
    ):
        self.config, self.data, self.folder = config, data, folder
        self.model, self.samples, self.validate, self.cases = model, samples, validate, cases
        self.optimizer = Adam(model.named_parameters(), learning_rate=config["learning_rate"])
        self.schedule = HalveOnPlateau(self.optimizer) if config["halve_on_plateau"] else None
        on_gpu = array_module(self.optimizer.mean) is not np
        self.repeated_step = RepeatedStep() if on_gpu else None
        self.environment = describe_environment(config["device"])
        self.progress, self.saved_at, self.waited = Progress(), time.monotonic(), 0.0

    def restore(self) -> None:
        """Go back to where the folder's last checkpoint was written, if there is one.

        Raises
        ------
        InputError : no checkpoint can be read, or it is from other data, another configuration or
            a later epoch than the last
        """
        about = self.folder.load(self.model, self.optimizer)
        if about is None:
            return
        try:
            self._require_the_same(about)
            self.progress = Progress(**about["progress"])
            if self.schedule:
                self.schedule.best, self.schedule.waited = about["schedule"]
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{self.folder.path}: its checkpoint is of no run: {error}") from error
        if self.progress.history:
            self.folder.record(self.progress.history)
        done, total = self.progress.epoch, self.config["epochs"]
        if done == total:
            print(f"trained already, all {total} epochs")
        else:
            print(f"going on in epoch {done + 1} after {self.progress.batches} steps")

    def fit(self) -> None:
        """Train all epochs that are left; after each one validate, and write what is known.

        Raises
        ------
        Interrupted : by a signal; everything is saved
        InputError : something cannot be written, or there is no finite loss any more; what was
            saved before stays
        """
        total = self.config["epochs"] * self._steps_in_epoch()
        bar = tqdm(total=total, desc="train", unit="step", disable=None)
        with Interruption() as interruption, bar:
            try:
                while self.progress.epoch < self.config["epochs"]:
                    self._train_epoch(interruption, bar)
                    self._end_epoch(interruption)
                    if bar.disable:  # stderr is a log
                        self._print_epoch()
                interruption.check()
            except Interrupted as error:
                self.save()
                path = self.folder.path
                message = f"{error}; all is saved: --resume {path} goes on"
                raise Interrupted(message, error.number) from None
        print(f"waited {self.waited:.1f} s for data")
        best, epochs = self.progress.best_epoch, len(self.progress.history)
        print(f"best on the validation cases: epoch {best} of {epochs}, whose network is judged")

    def save(self, *, best: bool = False) -> None:
        schedule = self.schedule and [self.schedule.best, self.schedule.waited]
        about = {
            "config": self.config,
            "data": self.data,
            "environment": self.environment,
            "progress": asdict(self.progress),
            "schedule": schedule,
        }
        self.folder.save(self.model, self.optimizer, about, best=best)
        self.saved_at = time.monotonic()

    def _train_epoch(self, interruption: Interruption, bar: tqdm) -> None:
        progress = self.progress
        bar.update(progress.epoch * self._steps_in_epoch() + progress.batches - bar.n)
        epoch_batches = batches(
            self.samples,
            self.config["batch_size"],
            seed=self.config["seed"],
            epoch=progress.epoch,
            training=True,
            first=progress.batches,
            device="cuda" if self.repeated_step else "cpu",
        )
        for batch in interruption.between(epoch_batches):
            self._step(batch)
            bar.set_postfix(self._numbers(), refresh=False)  # to draw it takes long
            bar.update()
            if time.monotonic() - self.saved_at > SECONDS_BETWEEN_SAVES:
                self.save()
        self.waited += epoch_batches.waited

    def _step(self, batch) -> None:
        optimizer, progress = self.optimizer, self.progress
        take_step = self.repeated_step or train_step
        loss = take_step(
            self.model,
            optimizer,
            batch.images,
            batch.labels,
            optimizer.steps,
            clip_norm=self.config["clip_norm"],
        )
        progress.batches += 1
        progress.losses.append(loss)
        progress.skipped = 0 if isfinite(loss) else progress.skipped + 1
        if progress.skipped:
            names = ", ".join(batch.names)
            where = f"epoch {progress.epoch + 1}, step {progress.batches}"
            what = f"{where}: loss or gradient is not finite, step skipped: cases {names}"
            if progress.skipped == MOST_SKIPPED:
                raise InputError(f"{what}; {MOST_SKIPPED} in a row, expected a lower learning rate")
            warnings.warn(what, stacklevel=2)

    def _end_epoch(self, interruption: Interruption) -> None:
        progress = self.progress
        row = {"epoch": progress.epoch + 1, "train_loss": _mean(progress.losses)}
        row |= self.validate(interruption.between(self.cases))
        row["learning_rate"] = self.optimizer.learning_rate
        if self.schedule:
            self.schedule.update(row["validation_loss"])
        iou = row["validation_iou"]
        better = iou > progress.best or progress.epoch == 0  # the first counts even if it is NaN
        progress.best = iou if iou > progress.best else progress.best
        progress.history.append(row)
        progress.epoch, progress.batches, progress.losses = progress.epoch + 1, 0, []
        self.save(best=better)
        self.folder.record(progress.history)

    def _print_epoch(self) -> None:
        *_, row = self.progress.history
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")
        print(f"epoch {row['epoch']} of {self.config['epochs']}: {numbers}", flush=True)

    def _require_the_same(self, about: dict) -> None:
        """Refuse what would make the result wrong, warn of what changes its last bits."""
        before, now = DEFAULTS | about["config"], self.config  # which may be older than an option
        for name in sorted((before.keys() | now.keys()) - FREE):
            was, found = (json.dumps(config.get(name)) for config in (before, now))
            if was != found:
                path = self.folder.config
                raise InputError(f"{path}: {name} is {found}, but the run was trained with {was}")
        done = len(about["progress"]["history"])
        if now["epochs"] < done:
            raise InputError(f"epochs: got {now['epochs']}, but the run has done {done} already")
        if about["data"] != self.data:
            raise InputError(
                f"{self.folder.path}: the cases or their split are not those the run was trained on"
            )
        for name, value in self.environment.items():
            if (was := about["environment"].get(name)) != value:
                warnings.warn(
                    f"{name} is {value}, was {was}: the last bits will not be those of a run "
                    "without interruption",
                    stacklevel=2,
                )

    def _steps_in_epoch(self) -> int:
        return -(-len(self.samples) // self.config["batch_size"])

    def _numbers(self) -> dict:
        history = self.progress.history
        iou = f"{history[-1]['validation_iou']:.3f}" if history else "–"
        return {"loss": f"{_mean(self.progress.losses):.3f}", "IoU": iou}


def _mean(losses: Sequence[float]) -> float:
    """Of the steps that were taken."""
    finite = [loss for loss in losses if isfinite(loss)]
    return float(np.mean(finite)) if finite else nan
