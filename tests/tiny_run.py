"""A run of a moment: nine heads of 16³ voxels, three epochs of four steps, and everything in it
that has a state (batch norm, dropout, a schedule), or not (a smaller last batch)."""

import os
import sys
from functools import partial

import numpy as np

from minibrain import cli, experiment, models
from minibrain.data import phantom_task
from minibrain.models import UNet
from minibrain.optimizers import HalveOnPlateau
from minibrain.runs import config, fitting, run_folder

CONFIG = config.Config(
    "tiny",
    epochs=3,
    batch_size=2,
    learning_rate=0.01,
    device="cpu",
    seed=4,
    recipe="zscore",
    halve_on_plateau=True,
)


def write_data(folder):
    return phantom_task.write_task(folder, cases=9, size=(16, 16, 16))


def install(set_attribute=setattr):
    """Let the programs know the tiny network, and leave out what takes long and has no state."""
    models.tiny = partial(UNet, 3, channels=(3, 4), norm="batch", dropout=0.2)
    set_attribute(config, "CONFIGS", config.CONFIGS | {"tiny": CONFIG})
    set_attribute(fitting, "HalveOnPlateau", partial(HalveOnPlateau, patience=1))
    set_attribute(run_folder, "plot_progress", lambda history, path: None)
    set_attribute(experiment, "judge", lambda *arguments, **options: None)


def result(folder):
    """All that a run has to say, without times and places."""
    found = {}
    for name in ("last", "best"):
        with np.load(folder / "checkpoints" / f"{name}.npz") as arrays:
            found |= {f"{name} {key}": arrays[key].tobytes() for key in arrays if key != "about"}
    found["metrics"] = (folder / "metrics.csv").read_text()
    return found


def run_program(arguments, errors, change=lambda: None):
    """For a process of its own: `minibrain ARGUMENTS`, with stderr in a file."""
    install()
    change()
    output = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(cli.main(arguments))
