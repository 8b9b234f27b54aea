"""Segmentations of image files by a trained network."""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minibrain.arrays import to_host
from minibrain.data import nifti
from minibrain.data.dataset_json import ENDINGS
from minibrain.data.decathlon import Case, Task, open_task, read_case
from minibrain.data.prepare import prepare_image, restore
from minibrain.data.prepared import Geometry
from minibrain.errors import InputError
from minibrain.experiment import make_model
from minibrain.files import make_folder, read_json, require_writable
from minibrain.inference import check_windows, most_likely, predict_logits, softmax_inplace
from minibrain.models import UNet
from minibrain.report.tables import counted
from minibrain.runs.checkpoint import load_network
from minibrain.runs.config import read_config, settled
from minibrain.runs.run_files import find_run
from minibrain.saved import Array


@dataclass(frozen=True)
class TrainedNetwork:
    """A network, and what must be known to show it the images that it was trained for."""

    model: UNet
    task: Task  # its channels, classes and repair_nonfinite; its cases do not matter
    recipe: str
    channels: tuple[int, ...] | None
    patch_size: tuple[int, ...] | None


def load_run(folder: str | Path, *, device: str = "auto") -> TrainedNetwork:
    """The best network of a run, as its folder holds it; its task need not be there any more.

    Parameters
    ----------
    folder : of a run, which may still go on
    device : "auto", "cpu" or "cuda"

    Raises
    ------
    InputError : the folder is not that of a run, a file of it is damaged, or there is no such
        device
    """
    files = find_run(folder)
    config = settled(replace(read_config(files.config), device=device))
    task = _read_task(files.task, config.repair_nonfinite)
    model = make_model(config, task)
    load_network(files.best, model)
    return TrainedNetwork(model, task, config.recipe, config.channels, config.patch_size)


def predict_files(
    network: TrainedNetwork,
    inputs: Iterable[str | Path],
    output: str | Path,
    *,
    probabilities: bool = False,
    overlap: float = 0.5,
    mirror: bool = False,
) -> dict[str, str]:
    """Segment images, each in the shape, orientation and affine of its file.

    A case that fails is reported on stderr, and the others go on.

    Parameters
    ----------
    inputs : see find_cases
    output : folder for CASE.nii.gz (or .nii, as the image), made when missing
    probabilities : write CASE_probabilities too: (X, Y, Z, classes) float32, and the background
        certain wherever the network has not looked
    overlap, mirror : see predict_logits

    Returns
    -------
    failures : what was wrong, by the name of the case

    Raises
    ------
    InputError : there is nothing to predict, two cases have one name, a file that would be
        written is already there, or the overlap is impossible; nothing has been written then
    """
    check_windows(network.model, network.patch_size, overlap)
    cases, output = find_cases(inputs, len(network.task.channels)), Path(output)
    jobs = [(case, _targets(output, case, probabilities)) for case in cases]
    _require_free([path for _, paths in jobs for path in paths])
    require_writable(output)
    failures = {}
    for case, paths in tqdm(jobs, "predict", unit="case", disable=None):
        try:
            _predict(network, case, paths, overlap=overlap, mirror=mirror)
        except Exception as error:  # whatever is wrong with one case, the others shall have theirs
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            failures[case.name] = f"{kind}{error}"
            tqdm.write(f"error: case {case.name}: {failures[case.name]}", file=sys.stderr)
    done = len(jobs) - len(failures)
    print(f"{done} of {counted(len(jobs), 'case')} written to {output}")
    return failures


def find_cases(inputs: Iterable[str | Path], channels: int) -> list[Case]:
    """The images to predict, without labels.

    Parameters
    ----------
    inputs : of each, the image itself, all images of a folder, or the test cases of a task, which
        is a folder with dataset.json. Images CASE_0000, CASE_0001, ... are the channels of one
        case if there is one for each channel

    Raises
    ------
    InputError : a file or folder is missing or has no images
    """
    cases, files = [], []
    for path in map(Path, inputs):
        if (path / "dataset.json").exists():
            found = open_task(path).test
            cases += found
        elif path.is_dir():  # hidden files are no images: macOS leaves `._*` files behind
            visible = (file for file in path.iterdir() if not file.name.startswith("."))
            found = sorted(file for file in visible if file.name.endswith(ENDINGS))
            files += found
        elif path.exists():
            files.append(path)
            continue
        else:
            raise InputError(f"{path}: no such file or folder, expected images to predict")
        if not found:
            raise InputError(f"{path}: holds no images, expected .nii.gz, .nii or test cases")
    return cases + _grouped(files, channels)


def _read_task(path: Path, repair_nonfinite: bool) -> Task:
    names = read_json(path, "the names of a task")
    try:
        channels, classes = tuple(names["channels"]), tuple(names["classes"])
        return Task(path.parent, names["name"], channels, classes, (), (), repair_nonfinite)
    except (TypeError, KeyError) as error:
        raise InputError(f"{path}: cannot be read as the names of a task: {error}") from error


def _grouped(files: Sequence[Path], channels: int) -> list[Case]:
    """Put the files of one case together where each channel has its own."""
    given, cases = set(files), []
    for file in files:
        ending = _ending(file)
        stem = file.name.removesuffix(ending)
        case, _, _ = stem.rpartition("_")
        parts = [file.with_name(f"{case}_{channel:04d}{ending}") for channel in range(channels)]
        if file not in parts or not given.issuperset(parts):
            cases.append(Case(stem, (file,), None))
        elif file == parts[0]:
            cases.append(Case(case, tuple(parts), None))
    return cases


def _ending(file: Path) -> str:
    return next((ending for ending in ENDINGS if file.name.endswith(ending)), "")


def _require_free(paths: Sequence[Path]) -> None:
    for path, count in Counter(paths).items():
        if count > 1:
            raise InputError(f"{path.name}: {count} images ask for it, expected different names")
        if path.exists():
            raise InputError(f"{path}: already there, expected a folder without these predictions")


def _targets(folder: Path, case: Case, probabilities: bool) -> list[Path]:
    """The segmentation last: where it is, the case is complete."""
    kinds = ("_probabilities", "") if probabilities else ("",)
    return [folder / f"{case.name}{kind}{_ending(case.images[0])}" for kind in kinds]


def _predict(network: TrainedNetwork, case: Case, paths: Sequence[Path], **options) -> None:
    logits, geometry = _logits(network, case, **options)
    affine, segmentation = np.array(geometry.affine), restore(most_likely(logits), geometry)
    make_folder(paths[-1].parent)
    for path in paths[:-1]:
        softmax_inplace(logits)
        background = np.eye(logits.shape[-1], dtype=logits.dtype)[0]
        nifti.write_image(path, restore(to_host(logits), geometry, outside=background), affine)
    nifti.write_prediction(paths[-1], segmentation, affine)


def _logits(network: TrainedNetwork, case: Case, **options) -> tuple[Array, Geometry]:
    """In the prepared space. What has been read and prepared for it is forgotten on return."""
    image, geometry = _prepared(network, case)
    options |= {"patch_size": network.patch_size}
    return predict_logits(network.model, image, network.channels, **options), geometry


def _prepared(network: TrainedNetwork, case: Case) -> tuple[np.ndarray, Geometry]:
    """As for training, but nothing is cached."""
    data = read_case(network.task, case)
    return prepare_image(data.image, data.affine, recipe=network.recipe, name=case.name)
