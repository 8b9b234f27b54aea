"""Cases packed small enough to travel inside a page: JPEG images and compressed labels.

Everything is shown in RAS+ axes as seen from above: rows from front to back, columns from the
patient's left to the right. The numbers of the slices are those of the file.
"""

import base64
import io
import math
import zlib
from collections.abc import Sequence

import numpy as np
from nibabel.orientations import io_orientation
from PIL import Image

from minibrain.data.decathlon import CaseData
from minibrain.data.nifti import spacing_of, to_canonical
from minibrain.evaluation.scores import Evaluation
from minibrain.metrics import nan_mean

PIXELS = 20_000_000  # of all images of a page: about 5 MB
QUALITY = 78  # of the JPEG
CASES = 4


def representative_cases(evaluation: Evaluation) -> dict[str, float]:
    """Up to four cases from the worst to the best, with their mean foreground Dice."""
    dice = evaluation.case_scores("dice")[:, 1 : len(evaluation.classes)]
    means = nan_mean(dice, axis=1)
    ranked = np.argsort(means, kind="stable")[: np.count_nonzero(~np.isnan(means))]
    chosen = ranked[np.linspace(0, len(ranked) - 1, min(CASES, len(ranked))).round().astype(int)]
    return {evaluation.cases[i]: float(means[i]) for i in chosen}


def pack_case(
    name: str, note: str, data: CaseData, predictions: Sequence[np.ndarray], pixels: int = PIXELS
) -> dict:
    """One case for the slice browser, JSON-able.

    Parameters
    ----------
    note : said beside the name
    data : image (X, Y, Z, C), label and affine in the orientation of the file
    predictions : (X, Y, Z) classes, in the same space
    pixels : that all its images may have together; slices are left out, evenly, to keep to it

    Returns
    -------
    packed : the images, one JPEG a modality with all slices side by side; zlib-compressed bytes of
        truth and predictions, slice after slice; and what it takes to draw them
    """
    image, *labels = (
        to_canonical(array, data.affine)[0] for array in (data.image, data.label, *predictions)
    )
    box = _extent(image, labels)
    image, labels = image[box], [_as_seen(array[box]) for array in labels]
    kept = _kept_slices(image, labels[0], pixels)
    shape = labels[0].shape[2:0:-1]
    orientation = io_orientation(data.affine)
    spacing = spacing_of(data.affine)[np.argsort(orientation[:, 0])]
    numbers, depth = _numbers_in_file(box[2].start + kept, data.label.shape, orientation)
    across = math.ceil(math.sqrt(len(kept)))
    return {
        "case": name,
        "note": note,
        "size": shape,
        "aspect": shape[0] * spacing[0] / (shape[1] * spacing[1]),
        "pixel": float(spacing[0] * spacing[1]),
        "slices": numbers,
        "depth": depth,
        "start": int(np.argmax((labels[0][kept] > 0).sum(axis=(1, 2)))),
        "across": across,
        "images": [_jpeg(_as_seen(channel)[kept], across) for channel in np.moveaxis(image, 3, 0)],
        "truth": _compressed(labels[0][kept]),
        "predictions": [_compressed(array[kept]) for array in labels[1:]],
    }


def _extent(image: np.ndarray, labels: Sequence[np.ndarray]) -> tuple[slice, ...]:
    """The box that holds whatever is not air; all of the volume if there is nothing else."""
    occupied = np.any(image != image.flat[0], axis=3)
    for array in labels:
        occupied |= array > 0
    if not occupied.any():
        occupied[...] = True
    lines = (np.flatnonzero(occupied.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    return tuple(slice(int(line[0]), int(line[-1]) + 1) for line in lines)


def _as_seen(array: np.ndarray) -> np.ndarray:
    """(X, Y, Z) in RAS+ -> (slices, rows, columns)."""
    return array[:, ::-1].transpose(2, 1, 0)


def _kept_slices(image: np.ndarray, truth: np.ndarray, pixels: int) -> np.ndarray:
    """Every n-th slice, the one with most tumour among them."""
    depth, per_slice = image.shape[2], math.prod(image.shape) // image.shape[2]
    step = math.ceil(depth / max(1, pixels // per_slice))
    most = int((truth > 0).sum(axis=(1, 2)).argmax())
    return np.arange(most % step, depth, step)


def _numbers_in_file(slices, shape, orientation) -> tuple[list[int], int]:
    """Where RAS+ slices lie along the axis of the file that runs from feet to head."""
    axis = int(np.flatnonzero(orientation[:, 0] == 2)[0])
    forward, depth = orientation[axis, 1] > 0, shape[axis]
    return (slices if forward else depth - 1 - slices).tolist(), depth


def _jpeg(slices: np.ndarray, across: int) -> str:
    """(slices, rows, columns) intensities as the URL of one grey image, `across` slices a row."""
    count, rows, columns = slices.shape
    low = slices.min()
    tissue = slices[slices > low]
    high = np.percentile(tissue, 99.5) if tissue.size else low + 1
    grey = np.clip((slices - low) / (high - low), 0, 1) * 255
    mosaic = np.zeros((math.ceil(count / across), across, rows, columns), np.uint8)
    mosaic.reshape(-1, rows, columns)[:count] = grey
    mosaic = mosaic.transpose(0, 2, 1, 3).reshape(-1, across * columns)
    buffer = io.BytesIO()
    Image.fromarray(mosaic).save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _compressed(labels: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(labels), 9)).decode()
