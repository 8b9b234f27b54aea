"""What an inspection found, as text and as pictures."""

from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from minibrain.data.decathlon import Task, read_case
from minibrain.data.inspection import CaseContent, Inspection
from minibrain.data.nifti import to_canonical
from minibrain.files import make_folder
from minibrain.report.plots import CLASS_COLOURS, save, show_slice
from minibrain.report.tables import counted

CASES_SHOWN = 6


def inspection_text(found: Inspection) -> str:
    """The task in a page: sizes, classes, tumour volumes, intensities, fullest slices, faults."""
    task, contents = found.task, found.contents
    lines = [
        f"{task.name}: {counted(len(task.training), 'labelled case')}, {len(task.test)} without a "
        f"label, {len(contents)} of the labelled ones sound",
    ]
    if contents:
        lines += _sizes(contents) + _classes(task, contents) + _volumes(contents)
        lines += _intensities(task, contents) + _fullest(contents)
    lines += _listed("notes", found.notes) + _listed("faults", found.faults)
    return "\n".join([*lines, "", counted(len(found.faults), "fault")])


def inspection_pictures(found: Inspection, folder: Path) -> list[Path]:
    """Write distributions.png and slices.png, the slices with most tumour; returns their paths."""
    make_folder(folder)
    paths = [folder / "distributions.png", folder / "slices.png"]
    _plot_distributions(found.task, found.contents, paths[0])
    _plot_slices(found.task, _by_fullness(found.contents)[:CASES_SHOWN], paths[1])
    return paths


def _sizes(contents: list[CaseContent]) -> list[str]:
    def frequent(values) -> str:
        parts = [f"{value} ({count})" for value, count in Counter(values).most_common(3)]
        return ", ".join(parts)

    return [
        "",
        "voxels       " + frequent("x".join(map(str, c.shape)) for c in contents),
        "spacing, mm  " + frequent("x".join(f"{s:.3g}" for s in c.spacing) for c in contents),
        "orientation  " + frequent(c.orientation for c in contents),
    ]


def _classes(task: Task, contents: list[CaseContent]) -> list[str]:
    voxels = np.array([content.voxels for content in contents])
    total, width = voxels.sum(axis=0), max(map(len, task.classes))
    tumour = max(1, total[1:].sum())
    lines = ["", f"{'class':{width}}   of all voxels   of the tumour   in cases"]
    for i, name in enumerate(task.classes):
        of_tumour = f"{total[i] / tumour:.1%}" if i else ""
        lines.append(
            f"{name:{width}}   {total[i] / total.sum():>13.3%}   {of_tumour:>13}   "
            f"{np.count_nonzero(voxels[:, i]):>8}"
        )
    return lines


def _volumes(contents: list[CaseContent]) -> list[str]:
    volumes = [content.tumour_ml for content in contents]
    least, low, median, high, most = np.percentile(volumes, (0, 25, 50, 75, 100))
    return [
        "",
        f"tumour, ml   least {least:.1f}, quartiles {low:.1f} / {median:.1f} / {high:.1f}, "
        f"most {most:.1f}",
    ]


def _intensities(task: Task, contents: list[CaseContent]) -> list[str]:
    """Of the non-zero voxels; how far the means lie apart shows what normalising is for."""
    values = np.array([content.intensities for content in contents])
    width = max(7, *map(len, task.channels))
    names = ("mean", "std", "lowest mean", "highest mean", "largest")
    lines = ["", f"{'channel':{width}}" + "".join(f"   {name:>12}" for name in names)]
    for name, cases in zip(task.channels, np.moveaxis(values, 1, 0), strict=True):
        means, stds, _, most = cases.T
        numbers = (means.mean(), stds.mean(), means.min(), means.max(), most.max())
        lines.append(f"{name:{width}}" + "".join(f"   {number:>12.4g}" for number in numbers))
    return lines


def _fullest(contents: list[CaseContent]) -> list[str]:
    lines = ["", "slices with most tumour (axial, RAS+ z)"]
    for content in _by_fullness(contents)[:CASES_SHOWN]:
        z, share = content.fullest_slice
        lines.append(f"  {content.name}  z = {z}  {share:.1%} tumour")
    return lines


def _listed(title: str, lines: list[str]) -> list[str]:
    return ["", title, *(f"  {line}" for line in lines)] if lines else []


def _by_fullness(contents: list[CaseContent]) -> list[CaseContent]:
    return sorted(contents, key=lambda content: -content.fullest_slice[1])


def _plot_distributions(task: Task, contents: list[CaseContent], path: Path) -> None:
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    shares, volumes, intensities = figure.subplots(1, 3)
    voxels = np.array([content.voxels for content in contents])[:, 1:]
    total = voxels.sum(axis=0) / max(1, voxels.sum())
    shares.barh(task.classes[1:], total, color=CLASS_COLOURS[1 : len(task.classes)])
    shares.invert_yaxis()
    shares.set(xlabel="share of all tumour voxels", xlim=(0, 1))
    volumes.hist([content.tumour_ml for content in contents], bins=20, color="0.4")
    volumes.set(xlabel="tumour volume, ml", ylabel="cases")
    volumes.yaxis.get_major_locator().set_params(integer=True)
    means = np.array([content.intensities for content in contents])[:, :, 0]
    intensities.boxplot(list(means.T), tick_labels=task.channels, medianprops={"color": "C1"})
    intensities.set(ylabel="mean intensity of non-zero voxels, per case")
    for axes in (shares, volumes, intensities):
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def _plot_slices(task: Task, contents: list[CaseContent], path: Path) -> None:
    """Each channel of the fullest slice of a case in a row, the label over the first."""
    cases = {case.name: case for case in task.training}
    columns = len(task.channels) + 1
    figure = Figure(figsize=(2.2 * columns, 2.4 * len(contents)), layout="constrained")
    grid = figure.subplots(len(contents), columns, squeeze=False)
    for row, content in zip(grid, contents, strict=True):
        data = read_case(task, cases[content.name])
        image, _ = to_canonical(data.image, data.affine)
        label, _ = to_canonical(data.label, data.affine)
        z = content.fullest_slice[0]
        show_slice(row[0], image[:, :, z, 0], label[:, :, z], len(task.classes))
        row[0].set_title(f"{content.name}, z = {z}", fontsize=9)
        for channel, axes in enumerate(row[1:]):
            show_slice(axes, image[:, :, z, channel])
            axes.set_title(task.channels[channel], fontsize=9)
    keys = [Patch(color=c, label=n) for c, n in zip(CLASS_COLOURS, task.classes, strict=False)]
    figure.legend(handles=keys[1:], loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    save(figure, path)
