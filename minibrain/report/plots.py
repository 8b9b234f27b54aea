"""Pictures: the progress of a run, and slices."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from minibrain.files import replacing

CLASS_COLOURS = ("#00000000", "#2ca25f", "#2b6cb0", "#f2a900", "#c0392b", "#8e44ad", "#16a085")


def plot_progress(history: Sequence[dict], path: Path) -> None:
    """Loss and validation IoU against the epoch.

    Parameters
    ----------
    history : one dict an epoch with epoch, train_loss, validation_loss, validation_iou
    path : of the PNG
    """
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [row["train_loss"] for row in history], label="training")
    left.plot(epochs, [row["validation_loss"] for row in history], label="validation")
    left.set(xlabel="epoch", ylabel="0.5 CCE + 0.5 Dice loss")
    left.legend(frameon=False)
    right.plot(epochs, [row["validation_iou"] for row in history], color="C1")
    right.set(xlabel="epoch", ylabel="validation mean foreground IoU", ylim=(0, 1))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
    save(figure, path)


def show_slice(axes, image: np.ndarray, label: np.ndarray | None = None, classes: int = 0) -> None:
    """Draw an axial (X, Y) slice, front up and the right side at the right, its label over it."""
    axes.imshow(image.T, cmap="gray", origin="lower")
    if label is not None:
        axes.imshow(
            label.T,
            cmap=ListedColormap(CLASS_COLOURS[:classes]),
            vmin=-0.5,
            vmax=classes - 0.5,
            origin="lower",
            alpha=0.6,
            interpolation="nearest",
        )
    axes.set_axis_off()


def save(figure: Figure, path: Path) -> None:
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)
