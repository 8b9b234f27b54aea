"""Prepare the cases of a task once: reorient, crop, normalise, and cache as mapped arrays.

A prepared case lies in RAS+ orientation and in a box whose sizes divide by 16, so that a U-Net
can halve it four times. Two recipes:

    "reference"  box [40:200, 40:200, 13:141] of a 240x240x155 volume, of another volume the
                 non-zero bounding box; min-max of each channel to [0, 1]; cases with under 1 %
                 tumour in the box are set aside
    "zscore"     the non-zero bounding box; z-score over the non-zero voxels of each channel,
                 zeros elsewhere

Bounding boxes are grown about their centre to multiples of 16. What of a box lies outside the
volume is air: intensity 0 before normalising, background in the label.
"""

import warnings
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minibrain.data.boxes import common_part, cut
from minibrain.data.decathlon import Case, Task, read_case
from minibrain.data.nifti import to_canonical
from minibrain.data.prepared import (
    Geometry,
    Prepared,
    PreparedCase,
    cache_name,
    checksum_of,
    read_index,
    write_index,
)
from minibrain.errors import InputError
from minibrain.files import Lock, make_folder, remove_leftovers, replacing

REFERENCE_SHAPE = (240, 240, 155)
REFERENCE_BOX = ((40, 200), (40, 200), (13, 141))
LEAST_TUMOUR = 0.01  # of the voxels of the box


def prepare(task: Task, cache: Path, *, recipe: str = "reference", workers: int = 2) -> Prepared:
    """Prepare all labelled cases of a task, or find them prepared.

    The result lies in a folder of `cache` named by a fingerprint of the sources and the recipe.
    Its index is written last: a preparation that was interrupted has none and starts again. Cases
    that are found prepared are read once, and prepared again if a checksum is not the index's.

    Parameters
    ----------
    cache : folder, made when missing; may be deleted at any time to free space
    recipe : "reference" or "zscore"
    workers : threads, each with one case in memory at a time

    Raises
    ------
    InputError : an unknown recipe, no worker, or the reader's own error about a case. The first
        error ends the preparation; its note names the case.
    """
    _require_recipe(recipe)
    if workers < 1:
        raise InputError(f"workers: got {workers}, expected 1 or more")
    folder = Path(cache) / cache_name(task, recipe)
    cases = read_index(folder, task, workers)
    if cases is None:
        make_folder(folder)
        with Lock(folder / ".lock", wait=True):  # of several runs at once, one prepares
            cases = read_index(folder, task, workers)
            if cases is None:
                remove_leftovers(folder)
                cases = _prepare_cases(task, folder, recipe, workers)
                write_index(folder, cases)
    least = LEAST_TUMOUR if recipe == "reference" else 0
    kept = tuple(case for case in cases if case.tumour_fraction >= least)
    return Prepared(kept, dropped=tuple(case for case in cases if case.tumour_fraction < least))


def prepare_image(
    image: np.ndarray, affine: np.ndarray, *, recipe: str = "reference", name: str = "image"
) -> tuple[np.ndarray, Geometry]:
    """Reorient, crop and normalise one image, labelled or not.

    Parameters
    ----------
    image : (X, Y, Z, C) intensities in the file's own orientation; left untouched
    affine : (4, 4), voxel to mm
    recipe : "reference" or "zscore"
    name : for the warning that a channel is constant, and becomes zeros

    Returns
    -------
    prepared : (X', Y', Z', C) float32 in RAS+ axes
    geometry : for `crop` and `restore`
    """
    _require_recipe(recipe)
    canonical, _ = to_canonical(image, affine)
    box = _box(canonical, recipe)
    geometry = Geometry(image.shape[:3], tuple(map(tuple, np.asarray(affine).tolist())), box)
    prepared = crop(image, geometry).astype(np.float32, copy=False)
    inside_box, _ = common_part(box, canonical.shape[:3])
    _normalise_inplace(prepared, inside_box, recipe, name)
    return prepared, geometry


def crop(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Reorient (X, Y, Z) or (X, Y, Z, C) to RAS+ and cut out the box, with zeros outside."""
    canonical, _ = to_canonical(array, np.array(geometry.affine))
    return cut(canonical, geometry.box)


def restore(prediction: np.ndarray, geometry: Geometry, outside=0) -> np.ndarray:
    """Put a prediction back where it belongs in the file: the inverse of `crop`.

    Parameters
    ----------
    prediction : (X, Y, Z) labels or (X, Y, Z, C) probabilities in the prepared space
    geometry : of the case
    outside : what the voxels outside the box are, one value or one per channel

    Returns
    -------
    restored : in the original shape and orientation; same dtype

    Raises
    ------
    InputError : the prediction does not have the shape of the prepared case
    """
    if prediction.shape[:3] != geometry.prepared_shape:
        expected = geometry.prepared_shape
        raise InputError(f"prediction: got shape {prediction.shape}, expected {expected}")
    shape = (*geometry.shape, *prediction.shape[3:])
    restored = np.full(shape, outside, prediction.dtype)
    canonical, _ = to_canonical(restored, np.array(geometry.affine))  # a view: writing writes both
    inside_box, inside_volume = common_part(geometry.box, canonical.shape[:3])
    canonical[inside_volume] = prediction[inside_box]
    return restored


def _prepare_cases(task, folder, recipe, workers) -> list[PreparedCase]:
    """Prepare all cases on threads, in the order of the task; the first error stops the rest."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="minibrain-prepare")
    try:
        jobs = [pool.submit(_prepare_case, task, case, folder, recipe) for case in task.training]
        for job in tqdm(as_completed(jobs), "prepare", len(jobs), disable=None):
            job.result()
        return [job.result() for job in jobs]
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_case(task: Task, case: Case, folder: Path, recipe: str) -> PreparedCase:
    try:
        data = read_case(task, case)
        image, geometry = prepare_image(data.image, data.affine, recipe=recipe, name=case.name)
        label = crop(data.label, geometry)
        for kind, array in (("image", image), ("label", label)):
            with replacing(folder / f"{case.name}.{kind}.npy") as file:
                np.save(file, array)
    except Exception as error:
        error.add_note(f"while preparing case {case.name}")
        raise
    voxels = np.bincount(label.ravel(), minlength=len(task.classes))
    checksum = checksum_of(image, label)
    voxels = tuple(voxels.tolist())
    return PreparedCase(case.name, folder, voxels, geometry, checksum, data.repaired)


def _require_recipe(recipe: str) -> None:
    if recipe not in ("reference", "zscore"):
        raise InputError(f"recipe: got {recipe!r}, expected 'reference' or 'zscore'")


def _box(canonical: np.ndarray, recipe: str) -> tuple[tuple[int, int], ...]:
    """(start, stop) along each RAS+ axis of an (X, Y, Z, C) image."""
    if recipe == "reference" and canonical.shape[:3] == REFERENCE_SHAPE:
        return REFERENCE_BOX
    nonzero = np.any(canonical != 0, axis=3)
    return tuple(_grown_extent(nonzero.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))


def _grown_extent(occupied: np.ndarray) -> tuple[int, int]:
    """(start, stop) of the true entries (of all, when none is), grown to a multiple of 16."""
    positions = np.flatnonzero(occupied) if occupied.any() else np.arange(len(occupied))
    start, stop = int(positions[0]), int(positions[-1]) + 1
    missing = -(stop - start) % 16
    return start - missing // 2, stop + missing - missing // 2


def _normalise_inplace(image, inside, recipe: str, name: str) -> None:
    """Normalise each channel with statistics of what lies inside the volume.

    Statistics and quotients are float64, for one channel or one plane at a time.
    """
    for number, channel in enumerate(np.moveaxis(image, -1, 0)):
        values = channel[inside]
        if recipe == "zscore":
            values = values[values != 0]
        if values.size == 0 or values.min() == values.max():
            warnings.warn(f"{name}: channel {number} is constant, prepared as zeros", stacklevel=2)
            channel[...] = 0
            continue
        low, high = np.float64(values.min()), np.float64(values.max())
        shift, scale = low, high - low
        if recipe == "zscore":  # np.std takes two passes: the mean, then the squares about it
            shift, scale = values.mean(dtype=np.float64), values.std(dtype=np.float64)
        for plane in channel:
            normal = (plane - shift) / scale
            plane[...] = np.where(plane == 0, 0, normal) if recipe == "zscore" else normal
