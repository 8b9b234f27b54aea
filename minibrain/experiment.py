"""The road from a task folder to numbers: check, prepare, split, train, evaluate, predict."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from minibrain import checkpoint, models
from minibrain.arrays import find_device, precision_dtype
from minibrain.data import nifti, phantom, prepare, split
from minibrain.data.decathlon import Task, open_task
from minibrain.data.loader import SliceSamples, VolumeSamples, batches
from minibrain.errors import InputError
from minibrain.evaluation import evaluate, predict_cases, voxelwise_classifier
from minibrain.files import replacing
from minibrain.functional import cce_dice_loss_forward
from minibrain.inference import predict, predict_logits
from minibrain.metrics import confusion_matrix, summarize
from minibrain.optimizers import Adam, HalveOnPlateau
from minibrain.report.plots import plot_case, plot_progress
from minibrain.report.tables import class_table, scores_as_dict
from minibrain.training import estimate_memory, train_step


@dataclass(frozen=True)
class Config:
    """All that decides a run. `channels` and `every` choose what a 2D network sees."""

    network: str
    epochs: int
    batch_size: int
    learning_rate: float
    data: str | None = None
    output: str | None = None
    device: str = "auto"
    precision: str = "fp32"
    seed: int = 1748
    recipe: str = "reference"
    channels: tuple[int, ...] | None = None
    every: int = 1
    halve_on_plateau: bool = False
    phantom_cases: int = 24
    phantom_size: tuple[int, int, int] = (240, 240, 155)
    phantom_family: str = "a"
    phantom_seed: int = 0


REFERENCE_3D = Config("brain_3d", epochs=36, batch_size=2, learning_rate=1e-4)
REFERENCE_2D = Config(
    "brain_2d",
    epochs=30,
    batch_size=144,
    learning_rate=1e-3,
    channels=(0, 2),
    every=8,
    halve_on_plateau=True,
)
SMALL_PHANTOM = {"phantom_cases": 40, "phantom_size": (48, 48, 32)}
SMALL_3D = replace(
    REFERENCE_3D, network="brain_3d_small", epochs=24, learning_rate=2e-3, **SMALL_PHANTOM
)
SMALL_2D = replace(
    REFERENCE_2D,
    network="brain_2d_small",
    epochs=24,
    batch_size=16,
    learning_rate=2e-3,
    every=2,
    **SMALL_PHANTOM,
)
CONFIGS = {c.network: c for c in (REFERENCE_3D, REFERENCE_2D, SMALL_3D, SMALL_2D)}


def run(config: Config) -> Path:
    """Train a network and judge it on held-out cases.

    Without `data` a phantom task is made first; from there on it is treated like any other.

    Returns
    -------
    folder : with config.json, splits.json, metrics.csv, progress.png, summary.json, checkpoints/,
        predictions/ and pictures/

    Raises
    ------
    InputError : anything about data, device or folders that the user can mend
    """
    config = _resolve(config)
    folder = Path(config.output)
    task = open_task(config.data or _phantom_task(config, folder.parent))
    print(f"{task.name}: {len(task.training)} labelled cases from {task.folder}")
    prepared = prepare.prepare(task, folder.parent / "prepared", recipe=config.recipe)
    parts = split.split_cases(prepared.cases, seed=config.seed)
    train, validation, test = (_select(prepared.cases, names) for names in parts)
    print(
        f"{len(train)} cases to train, {len(validation)} to validate, {len(test)} held out; "
        f"{len(prepared.dropped)} set aside with under 1 % tumour"
    )

    model = _make_model(config)
    samples = _samples(config, train)
    _print_memory(config, model, samples)
    _start_folder(folder, config, parts)
    # One block's matrix product is too small to share: more BLAS threads only wait for each other.
    with threadpool_limits(limits=1, user_api="blas"):
        fit(config, model, samples, validation, folder)

    checkpoint.load_network(folder / "checkpoints" / "best.npz", model)
    _judge(config, model, train, test, task, folder)
    return folder


def fit(config: Config, model, samples, validation, folder: Path) -> None:
    """Train for all epochs; after each one validate, and write metrics, plot and checkpoints."""
    optimizer = Adam(model.named_parameters(), learning_rate=config.learning_rate)
    schedule = HalveOnPlateau(optimizer) if config.halve_on_plateau else None
    history, best, waited = [], -1.0, 0.0
    steps = -(-len(samples) // config.batch_size)
    with tqdm(total=config.epochs * steps, desc="train", unit="step") as bar:
        for epoch in range(config.epochs):
            losses = []
            epoch_batches = batches(
                samples, config.batch_size, seed=config.seed, epoch=epoch, training=True
            )
            for batch in epoch_batches:
                loss = train_step(model, optimizer, batch.images, batch.labels, optimizer.steps)
                losses.append(loss)
                bar.update()
                bar.set_postfix(_postfix(losses, history))
            waited += epoch_batches.waited
            row = {"epoch": epoch + 1, "train_loss": float(np.mean(losses))}
            row |= validate(config, model, validation)
            history.append(row | {"learning_rate": optimizer.learning_rate})
            if schedule:
                schedule.update(row["validation_loss"])
            best = _record(folder, history, best, model, optimizer)
            bar.set_postfix(_postfix(losses, history))
    print(f"waited {waited:.1f} s for data")


def validate(config: Config, model, cases) -> dict:
    """Mean loss and pooled mean foreground IoU over whole prepared cases."""
    losses, confusions = [], []
    for case in cases:
        logits, label = predict_logits(model, case.image, config.channels), np.asarray(case.label)
        losses.append(cce_dice_loss_forward(logits[None], label[None])[0])
        confusions.append(confusion_matrix(label, logits.argmax(axis=-1), model.classes))
    iou = summarize(confusions).pooled_foreground_mean
    return {"validation_loss": float(np.mean(losses)), "validation_iou": iou}


def _resolve(config: Config) -> Config:
    for name in ("epochs", "batch_size", "learning_rate"):
        if not getattr(config, name) > 0:
            raise InputError(f"{name} must be above 0, got {getattr(config, name)}")
    precision_dtype(config.precision)
    output = Path(config.output or _next_free(Path("runs"), config.network))
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: already there, expected a new or empty folder for the run")
    return replace(config, device=find_device(config.device), output=str(output))


def _next_free(parent: Path, stem: str) -> Path:
    number = 1
    while (parent / f"{stem}-{number}").exists():
        number += 1
    return parent / f"{stem}-{number}"


def _phantom_task(config: Config, parent: Path) -> Path:
    size, family, seed = config.phantom_size, config.phantom_family, config.phantom_seed
    name = f"phantom-{'x'.join(map(str, size))}-{config.phantom_cases}-{family}{seed}"
    folder = parent / name / "Task01_BrainTumour"
    return phantom.write_task(
        folder, cases=config.phantom_cases, size=size, family=family, seed=seed
    )


def _select(cases, names: Sequence[str]) -> list:
    by_name = {case.name: case for case in cases}
    return [by_name[name] for name in names]


def _make_model(config: Config) -> models.UNet:
    make = getattr(models, config.network)
    return make(seed=config.seed, dtype=precision_dtype(config.precision)).to(config.device)


def _samples(config: Config, cases):
    if config.channels is None:
        return VolumeSamples(cases)
    return SliceSamples(cases, config.every, config.channels)


def _print_memory(config: Config, model, samples) -> None:
    label_shape = np.max([samples.read(i)[1].shape for i in range(len(samples))], axis=0)
    shape = (min(config.batch_size, len(samples)), *label_shape.tolist(), model.in_channels)
    parameters = sum(p.value.size for p in model.named_parameters().values())
    print(
        f"{config.network}: {parameters:,} parameters, batches of {shape}, {config.precision} on "
        f"{config.device}; a step needs about {estimate_memory(model, shape) / 1e9:.1f} GB"
    )


def _start_folder(folder: Path, config: Config, parts: split.Split) -> None:
    for name in ("checkpoints", "predictions", "pictures"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", asdict(config))
    split.save(parts, folder / "splits.json")


def _record(folder: Path, history, best: float, model, optimizer) -> float:
    """Write all that is known after an epoch; returns the best validation IoU so far."""
    table = io.StringIO()
    rows = csv.DictWriter(table, history[-1])
    rows.writeheader()
    rows.writerows(history)
    with replacing(folder / "metrics.csv") as file:
        file.write(table.getvalue().encode())
    plot_progress(history, folder / "progress.png")
    checkpoint.save(folder / "checkpoints" / "last.npz", model, optimizer, history[-1])
    iou = history[-1]["validation_iou"]
    if iou > best or len(history) == 1:  # the first is kept even if its IoU is NaN
        checkpoint.save(folder / "checkpoints" / "best.npz", model, optimizer, history[-1])
        return iou if iou > best else best
    return best


def _judge(config: Config, model, train, test, task: Task, folder: Path) -> None:
    """Predict the held-out cases, write them out, and print how good they are."""
    confusions = []
    predicting = predict_cases(partial(predict, model, channels=config.channels), test, task)
    for case, prediction, truth in tqdm(predicting, "held out", len(test), unit="case"):
        path = folder / "predictions" / f"{case.name}.nii.gz"
        nifti.write_prediction(path, prediction, truth.affine)
        confusions.append(confusion_matrix(truth.array, prediction, len(task.classes)))
        in_box = (prepare.crop(array, case.geometry) for array in (truth.array, prediction))
        picture = folder / "pictures" / f"{case.name}.png"
        plot_case(case.image, *in_box, task.classes, picture, title=case.name)
    confusions = np.stack(confusions)
    voxelwise = evaluate(voxelwise_classifier(train, config.seed), test, task)
    _write_json(
        folder / "summary.json",
        {
            "network": scores_as_dict(confusions, task.classes),
            "voxelwise classifier": scores_as_dict(voxelwise, task.classes),
        },
    )
    _print_results(confusions, voxelwise, task, folder)


def _print_results(confusions, voxelwise, task: Task, folder: Path) -> None:
    print(f"\n{len(confusions)} held-out cases, in the space of their files\n")
    print(class_table(confusions, task.classes))
    print("\nwritten to", folder)
    for name in ("summary.json", "metrics.csv", "progress.png", "checkpoints/best.npz"):
        print(f"  {folder / name}")
    print(f"  {folder / 'predictions'}/*.nii.gz, {folder / 'pictures'}/*.png\n")
    baseline = summarize(voxelwise).pooled_foreground_mean
    print(f"voxel-wise classifier without context: {baseline:.3f}")
    print(f"held-out mean foreground IoU: {summarize(confusions).pooled_foreground_mean:.3f}")


def _postfix(losses, history) -> dict:
    iou = f"{history[-1]['validation_iou']:.3f}" if history else "–"
    return {"loss": f"{np.mean(losses):.3f}", "IoU": iou}


def _write_json(path: Path, value) -> None:
    with replacing(path) as file:
        file.write(json.dumps(value, indent=1).encode())
