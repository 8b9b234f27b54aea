"""False alarms: what a network sees where there is nothing, or next to nothing.

Cases with too little tumour are set aside before the split. A network that has never seen a
nearly healthy head may well find tumour in one; its scores on the held-out cases do not show it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from minibrain.data import nifti
from minibrain.evaluation.bootstrap import bootstrap_interval
from minibrain.report.tables import plain


@dataclass(frozen=True, eq=False)
class FalseAlarms:
    """Case by case, in the space of the files.

    Attributes
    ----------
    cases : names
    false_ml : (cases,) volume predicted as tumour where the truth is background, in ml
    free_slices : (cases,) axial slices without any tumour in truth
    alarmed_slices : (cases,) those of them in which the prediction has tumour
    free : (cases,) bool, no tumour in the whole volume
    """

    cases: tuple[str, ...]
    false_ml: np.ndarray
    free_slices: np.ndarray
    alarmed_slices: np.ndarray
    free: np.ndarray

    def summary(self) -> dict:
        """The three numbers that count, with bootstrap intervals over cases; JSON-able.

        A share is None where there is nothing to have a share of, and so are an interval's ends.
        """
        count = len(self.cases)
        return {
            "cases": count,
            "false_ml": float(self.false_ml.mean()),
            "false_ml_interval": plain(
                bootstrap_interval(lambda draws: self.false_ml[draws].mean(axis=1), count)
            ),
            "false_ml_largest": float(self.false_ml.max()),
            "free_slices": int(self.free_slices.sum()),
            "alarmed_slices": _share(self.alarmed_slices.sum(), self.free_slices.sum()),
            "alarmed_slices_interval": self._slices_interval(),
            "free_cases": int(self.free.sum()),
            "alarmed_cases": _share(np.sum(self.free & (self.false_ml > 0)), self.free.sum()),
        }

    def _slices_interval(self) -> list | None:
        if not self.free_slices.all():
            return None
        ends = bootstrap_interval(
            lambda draws: (
                self.alarmed_slices[draws].sum(axis=1) / self.free_slices[draws].sum(axis=1)
            ),
            len(self.cases),
        )
        return plain(ends)


def false_alarms(pairs: Iterable[tuple[str, nifti.Volume, np.ndarray]]) -> FalseAlarms:
    """Compare predictions with truths that have little tumour or none.

    Parameters
    ----------
    pairs : (name of the case, truth, prediction), at least one; arrays (X, Y, Z) of classes
    """
    rows = []
    for name, truth, prediction in pairs:
        axial, alarm = (
            np.any(nifti.to_canonical(array > 0, truth.affine)[0], axis=(0, 1))
            for array in (truth.array, prediction)
        )
        false_voxels = np.count_nonzero((prediction > 0) & (truth.array == 0))
        false_ml = false_voxels * truth.voxel_ml
        rows.append((name, false_ml, np.sum(~axial), np.sum(~axial & alarm), not axial.any()))
    names, *columns = zip(*rows, strict=True)
    return FalseAlarms(names, *(np.array(column) for column in columns))


def _share(part, whole) -> float | None:
    return float(part / whole) if whole else None
