"""A task of phantoms, in the layout of the Medical Segmentation Decathlon."""

import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minibrain.data import nifti
from minibrain.data.phantom import (
    CLASSES,
    FULL_SIZE,
    MODALITIES,
    VERSION,
    Size,
    checked,
    make_case,
)
from minibrain.errors import InputError


def write_task(
    folder: str | os.PathLike,
    *,
    cases: int,
    test_cases: int = 0,
    size: Size = FULL_SIZE,
    seed: int = 0,
    family: str = "a",
    workers: int = 2,
) -> Path:
    """Write a Decathlon task of phantoms, or reuse the very same one written before.

    Every tenth case (BRATS_008, ...) has no tumour. The folder appears only when it is complete.

    Parameters
    ----------
    folder : the task folder itself, e.g. phantoms/Task01_BrainTumour
    cases, test_cases : labelled cases (at least 1), and images without a label
    size, seed, family : as for `phantom.make_case`
    workers : threads; the files do not depend on it

    Raises
    ------
    InputError : a bad argument, a folder that cannot be written or that holds anything else
    """
    size = checked(size, family, seed=seed, cases=cases, test_cases=test_cases, workers=workers)
    folder = Path(folder)
    task = _description(cases, test_cases, size, seed, family)
    if _is_written(folder, task):
        return folder
    if folder.exists():
        raise InputError(f"{folder}: exists, expected no such folder or this very phantom task")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".phantom-", dir=folder.parent) as draft:
            _write_files(Path(draft, folder.name), task, workers)
            os.replace(Path(draft, folder.name), folder)
    except OSError as error:
        if not _is_written(folder, task):  # another process may have been faster
            raise InputError(f"{folder}: cannot be written: {error.strerror}") from error
    return folder


def _is_written(folder: Path, task: dict) -> bool:
    description = folder / "dataset.json"
    expected = json.dumps(task, indent=4).encode()
    return description.is_file() and description.read_bytes() == expected


def _description(cases, test_cases, size, seed, family):
    """What dataset.json says: the official keys, and "phantom" with all that made the files."""
    names = [f"BRATS_{index:03d}.nii.gz" for index in range(1, cases + test_cases + 1)]
    training = [
        {"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names[:cases]
    ]
    return {
        "name": "BRATS",
        "description": "Generated phantoms of brain tumours: no patients, no clinical meaning",
        "reference": "minibrain.data.phantom",
        "licence": "none needed: generated data",
        "release": f"{VERSION}.0",
        "tensorImageSize": "4D",
        "modality": {str(i): name for i, name in enumerate(MODALITIES)},
        "labels": {str(i): name for i, name in enumerate(CLASSES)},
        "numTraining": cases,
        "numTest": test_cases,
        "training": training,
        "test": [f"./imagesTs/{name}" for name in names[cases:]],
        "phantom": {"size": size, "seed": seed, "family": family},
    }


def _write_files(folder, task, workers):
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / name).mkdir(parents=True)
    entries = task["training"] + [{"image": path} for path in task["test"]]
    size = np.array(task["phantom"]["size"])
    affine = np.diag([*(FULL_SIZE / size), 1])
    affine[:3, 3] = affine[:3, :3] @ (1 - size) / 2  # RAS+, the centre of the head at 0

    def write(index, entry):
        image, label = make_case(index, tumour=index % 10 != 8, **task["phantom"])
        nifti.write_image(folder / entry["image"], image, affine)
        if "label" in entry:
            nifti.write_prediction(folder / entry["label"], label, affine)

    with ThreadPoolExecutor(workers) as pool:
        written = pool.map(write, range(1, len(entries) + 1), entries)
        list(tqdm(written, "phantoms", len(entries), disable=None))
    (folder / "dataset.json").write_bytes(json.dumps(task, indent=4).encode())
