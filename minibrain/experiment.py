"""The road from a task folder to numbers: check, prepare, split, train, evaluate, predict."""

import json
import os
import warnings
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from minibrain import models
from minibrain.arrays import precision_dtype
from minibrain.data import phantom_task, split
from minibrain.data.decathlon import Task, open_task
from minibrain.data.loader import SliceSamples, VolumeSamples
from minibrain.data.patches import PatchSamples
from minibrain.data.prepare import prepare
from minibrain.data.prepared import Prepared, PreparedCase
from minibrain.errors import InputError
from minibrain.evaluation.judging import judge
from minibrain.functional import cce_dice_loss_forward
from minibrain.inference import check_windows, most_likely, predict_logits
from minibrain.memory import available_memory, estimate_memory, fitting_patch
from minibrain.metrics import confusion_matrix, summarize
from minibrain.report.tables import counted
from minibrain.runs import checkpoint
from minibrain.runs.config import Config, read_config, settled
from minibrain.runs.cost import measured
from minibrain.runs.fitting import Trainer
from minibrain.runs.run_folder import RunFolder
from minibrain.selftest import self_test
from minibrain.training import to_model


def run(config: Config) -> Path:
    """Train a network and judge it on held-out cases.

    Without `data` a phantom task is made first; from there on it is treated like any other.

    Returns
    -------
    folder : of the run, see `minibrain.runs.run_files`

    Raises
    ------
    InputError : anything about data, device or folders that the user can mend
    """
    config = settled(config)
    if config.data:
        config = replace(config, data=os.path.abspath(config.data))
    with RunFolder.claim(config.output, config.network) as folder:
        _run(replace(config, output=str(folder.path)), folder)
    return folder.path


def resume(path: str, **changes) -> Path:
    """Go on with a run that has ended in whatever way, as if it had not.

    Parameters
    ----------
    path : folder of the run
    changes : of its configuration; those that would make the result another's are refused. Data
        that has been moved is found by data

    Raises
    ------
    InputError : as `run`; also if the run still goes on, or its data or configuration changed
    """
    if "data" in changes:
        changes["data"] = os.path.abspath(changes["data"])
    with RunFolder.reopen(path) as folder:
        config = replace(read_config(folder.config), output=str(folder.path), **changes)
        _run(settled(config), folder)
    return folder.path


def _run(config: Config, folder: RunFolder) -> None:
    """Train from where the folder's last checkpoint stands, and judge."""
    task = _open_task(config, folder.path.parent)
    model = make_model(config, task)
    check_windows(model, config.patch_size)
    if config.device == "cuda":
        _require_right(model, config)
    prepared = _prepare(config, task, folder.path.parent / "prepared")
    parts = _split(config, prepared.cases, folder)
    train, validation, test = (_select(prepared.cases, names) for names in parts)
    print(f"{len(train)} to train, {len(validation)} to validate, {len(test)} held out")

    samples = _samples(config, model, train)
    _print_memory(config, model, samples)
    # One block's matrix product is too small to share: more BLAS threads only wait.
    with threadpool_limits(limits=1, user_api="blas"):
        trainer = Trainer(
            asdict(config),
            f"{prepared.fingerprint}-{zlib.crc32(json.dumps(parts).encode()):08x}",
            model,
            samples,
            partial(validate, config, model),
            validation,
            folder,
        )
        trainer.restore()
        folder.start(asdict(config), parts)
        folder.write_task(task)
        with measured(folder.cost, config.device):
            trainer.fit()
    checkpoint.load_network(folder.best, model)
    known = {"seed": config.seed, "repaired": prepared.repaired}
    judge(model, train, test, prepared.dropped, task, folder, **known, **_seen(config))


def _require_right(model, config: Config) -> None:
    """Or a kernel that is wrong on this very GPU would train a network that is wrong."""
    right, findings = self_test(model)
    print(f"self-test in {config.precision} on {config.device}: {findings}")
    if not right:
        raise InputError(
            f"device {config.device}: computes {config.precision} wrong ({findings}), expected "
            "every operation of a training step to be right; try another --precision or --device"
        )


def validate(config: Config, model, cases: Iterable[PreparedCase]) -> dict:
    """Mean loss and pooled mean foreground IoU over whole prepared cases."""
    losses, confusions = [], []
    for case in cases:
        logits, label = predict_logits(model, case.image, **_seen(config)), case.label
        loss, _ = cce_dice_loss_forward(logits[None], to_model(label[None], model, label.dtype))
        losses.append(float(loss))
        confusions.append(confusion_matrix(label, most_likely(logits), model.classes))
    iou = summarize(confusions).pooled_foreground_mean
    return {"validation_loss": float(np.mean(losses)), "validation_iou": iou}


def _split(config: Config, cases: Sequence[PreparedCase], folder: RunFolder) -> split.Split:
    """Drawn anew, or as the folder has it."""
    if folder.splits.exists():
        return split.load(folder.splits, {case.name for case in cases})
    return split.split_cases(cases, seed=config.seed)


def _seen(config: Config) -> dict:
    """What of a volume the network is shown at a time, for inference."""
    return {"channels": config.channels, "patch_size": config.patch_size}


def _open_task(config: Config, parent: Path) -> Task:
    folder = _phantom_task(config, parent) if config.data is None else config.data
    task = open_task(folder, repair_nonfinite=config.repair_nonfinite)
    print(f"{task.name}: {counted(len(task.training), 'labelled case')} from {task.folder}")
    return task


def _prepare(config: Config, task: Task, cache: Path) -> Prepared:
    prepared = prepare(task, cache, recipe=config.recipe)
    left, dropped = len(prepared.cases), len(prepared.dropped)
    if config.repair_nonfinite:
        print(f"NaN or infinite voxels set to zero: {prepared.repaired}")
    if dropped:
        print(f"{dropped} set aside with under 1 % tumour")
    if left < 3:
        kept = "; --recipe zscore sets none aside" if dropped else ""
        raise InputError(
            f"{task.folder}: cases to learn from: {left}, with {dropped} set aside; expected at "
            f"least 3: to train, to validate and to test{kept}"
        )
    return prepared


def _phantom_task(config: Config, parent: Path) -> Path:
    size, cases = config.phantom_size, config.phantom_cases
    family, seed = config.phantom_family, config.phantom_seed
    name = f"phantom-{'x'.join(map(str, size))}-{cases}-{family}{seed}"
    folder = parent / name / "Task01_BrainTumour"
    return phantom_task.write_task(folder, cases=cases, size=size, family=family, seed=seed)


def _select(cases, names: Sequence[str]) -> list:
    by_name = {case.name: case for case in cases}
    return [by_name[name] for name in names]


def make_model(config: Config, task: Task) -> models.UNet:
    """The network of a configuration, for the channels and classes of a task, untrained.

    Raises
    ------
    InputError : the task lacks one of the channels, one is named twice, they are chosen for a 3D
        network, or patches for a 2D one
    """
    there = range(len(task.channels))
    channels = there if config.channels is None else config.channels
    if not set(channels) <= set(there) or len(set(channels)) < len(channels):
        expected = f"numbers from 0 on and below {len(there)}, each once"
        raise InputError(
            f"channels: got {channels}, expected {expected} ({', '.join(task.channels)})"
        )
    model = getattr(models, config.network)(
        in_channels=len(channels),
        classes=len(task.classes),
        seed=config.seed,
        dtype=precision_dtype(config.precision),
    )
    if model.rank == 3 and config.channels is not None:
        raise InputError(f"channels: got {channels} for volumes, expected them for slices only")
    if model.rank == 2 and config.patch_size is not None:
        found = config.patch_size
        raise InputError(f"patch_size: got {found} for slices, expected it for volumes only")
    return model.to(config.device)


def _samples(config: Config, model: models.UNet, cases):
    if model.rank == 2:
        return SliceSamples(cases, config.every, config.channels or range(model.in_channels))
    if config.patch_size is not None:
        return PatchSamples(cases, config.patch_size)
    return VolumeSamples(cases)


def _print_memory(config: Config, model, samples) -> None:
    """And a warning, with what would fit, if there is less."""
    shape = (min(config.batch_size, len(samples)), *samples.largest_shape, model.in_channels)
    parameters = sum(p.value.size for p in model.named_parameters().values())
    needed, there_is = estimate_memory(model, shape), available_memory(config.device)
    print(
        f"{config.network}: {parameters:,} parameters, batches of {shape}, {config.precision} on "
        f"{config.device}; a step needs about {_memory_text(needed)}"
    )
    if there_is is None or needed <= there_is:
        return
    patch = None if model.rank == 2 else fitting_patch(model, shape, there_is)
    remedy = f"--patch-size {' '.join(map(str, patch))}" if patch else "a smaller --batch-size"
    free = f"{_memory_text(there_is)} of it are free on {config.device}"
    warnings.warn(f"memory may not suffice: {free}; try {remedy}", stacklevel=1)


def _memory_text(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
