"""Divide cases into training, validation and test, alike in tumour volume and classes.

A stratum is a quartile of tumour volume together with the set of classes that are present. Of
every stratum the three parts receive proportional shares, as scikit-learn draws them.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import train_test_split

from minibrain.data.prepared import PreparedCase
from minibrain.errors import InputError
from minibrain.files import read_json, write_json


class Split(NamedTuple):
    """The names of the cases of each part, sorted."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def split_cases(cases: Sequence[PreparedCase], *, seed: int = 1748) -> Split:
    """Draw a stratified split; the order in which the cases are given does not matter.

    Validation and test receive a tenth of the cases each, rounded, and at least one case; training
    receives the rest, at least one. Cases without tumour are a stratum like any other.

    Parameters
    ----------
    cases : at least three, with unique names; `voxels` counts each class, background first
    seed : of the draw

    Raises
    ------
    InputError : fewer than three cases, or a name given twice
    """
    cases = sorted(cases, key=lambda case: case.name)
    count = len(cases)
    if count < 3:
        raise InputError(f"split: got {count} cases, expected at least 3 (one for each part)")
    _require_unique([case.name for case in cases], "split")
    tenth = max(1, round(count / 10))

    strata = _strata(cases)
    train, held_out = _draw(np.arange(count), strata, 2 * tenth, seed)
    validation, test = _draw(held_out, strata, tenth, seed)
    return Split(*(tuple(cases[i].name for i in sorted(p)) for p in (train, validation, test)))


def save(split: Split, path: str | Path) -> None:
    """Write the split as JSON, atomically."""
    write_json(Path(path), split._asdict())


def load(path: str | Path, names: Collection[str] | None = None) -> Split:
    """Read a saved split.

    Parameters
    ----------
    path : a file written by `save`
    names : all known cases, to check against

    Raises
    ------
    InputError : not a split file, a part without cases, a case that stands twice in it, or one that
        is not in `names`
    """
    parts = read_json(Path(path), "a split")
    if not isinstance(parts, dict) or set(parts) != set(Split._fields):
        raise InputError(f"{path}: expected the keys {', '.join(Split._fields)} and no other")
    if not all(_is_list_of_names(listed) for listed in parts.values()):
        raise InputError(f"{path}: expected a list of case names, not empty, under each key")
    split = Split(**{part: tuple(listed) for part, listed in parts.items()})
    listed = [name for part in split for name in part]
    _require_unique(listed, path)
    unknown = [] if names is None else [name for name in listed if name not in names]
    if unknown:
        raise InputError(f"{path}: unknown cases {unknown}, expected cases of this task")
    return split


def _is_list_of_names(value) -> bool:
    return isinstance(value, list) and value and all(isinstance(name, str) for name in value)


def _strata(cases: Sequence[PreparedCase]) -> list[tuple]:
    """(classes present, quartile of the tumour volume) of every case."""
    volumes = [sum(case.voxels[1:]) for case in cases]
    quartiles = np.searchsorted(np.quantile(volumes, (0.25, 0.5, 0.75)), volumes)
    present = [tuple(bool(voxels) for voxels in case.voxels[1:]) for case in cases]
    return [(classes, int(quartile)) for classes, quartile in zip(present, quartiles, strict=True)]


def _draw(indices, strata: Sequence[tuple], size: int, seed: int):
    """Divide the indices in two, stratified; the second part has the given size."""
    groups = _merge_rare([strata[i] for i in indices], min(size, len(indices) - size))
    return train_test_split(indices, test_size=size, random_state=seed, stratify=groups)


def _merge_rare(strata: Sequence[tuple], most: int) -> list[int]:
    """Number the strata so that each has two cases or more and there are at most `most`.

    As long as that does not hold, the smallest stratum (of equal ones the first in sorted order)
    joins the smaller of its two neighbours in sorted order, which puts the quartiles of the same
    set of classes side by side.
    """
    sizes = Counter(strata)
    groups = [[stratum] for stratum in sorted(sizes)]
    totals = [sizes[stratum] for stratum in sorted(sizes)]
    while len(groups) > 1 and (min(totals) < 2 or len(groups) > most):
        rare = totals.index(min(totals))
        neighbours = [i for i in (rare - 1, rare + 1) if 0 <= i < len(groups)]
        left = min(rare, min(neighbours, key=totals.__getitem__))
        groups[left] += groups.pop(left + 1)
        totals[left] += totals.pop(left + 1)
    number = {stratum: n for n, group in enumerate(groups) for stratum in group}
    return [number[stratum] for stratum in strata]


def _require_unique(names: Sequence[str], where) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise InputError(f"{where}: cases {twice} are named more than once, expected each once")
