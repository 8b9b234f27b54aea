"""From the name of a network to a page that explains one of its training steps."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import trange

from minibrain import models
from minibrain.arrays import to_host
from minibrain.data import phantom, prepare
from minibrain.data.decathlon import open_task, read_case
from minibrain.errors import InputError
from minibrain.files import require_writable
from minibrain.optimizers import Adam
from minibrain.runs.config import CONFIGS
from minibrain.study.page import write_page, write_record
from minibrain.study.pictures import Picture, slicer
from minibrain.study.records import Trace
from minibrain.study.trace import trace_step
from minibrain.training import to_model, train_step

PHANTOM_SIZE = (64, 64, 48)


class StudyCase(NamedTuple):
    name: str
    images: np.ndarray  # (1, *S, C) float32, as the network takes it
    labels: np.ndarray  # (1, *S) uint8
    depth: float  # share of the third axis at which there is most tumour
    channels: tuple[str, ...]
    classes: tuple[str, ...]


def explain(
    network: str = "brain_3d_small",
    data: str | None = None,
    steps: int = 12,
    output: str = "explorer.html",
    device: str = "auto",
) -> None:
    """Train on one case for a while, then trace a step: print it, and make a page of it.

    Parameters
    ----------
    network : name of a preset
    data : "TASK/CASE", folder of a task and name of a labelled case in it; None makes a phantom
    steps : before the traced one, so that activations and gradients mean something
    output : the page, or, if its name ends in .json, the record of the step alone
    device : "auto", "cpu" or "cuda"

    Raises
    ------
    InputError : an unknown network, task, case or device; a folder that is not there or cannot be
        written to; steps below 0
    """
    path = Path(output)
    if network not in CONFIGS:
        raise InputError(f"network: got {network!r}, expected one of {', '.join(CONFIGS)}")
    if steps < 0:
        raise InputError(f"steps: got {steps}, expected 0 or more")
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{path}: cannot be written, expected a file in a folder that is there")
    require_writable(path.parent)
    model = getattr(models, network)().to(device)
    case = load_case(data, CONFIGS[network].channels if model.rank == 2 else None, model.rank)
    trace, scene = _learn_and_trace(model, case, steps)
    print(trace)
    size = "×".join(map(str, case.labels.shape[1:]))
    title = f"{network} on {case.name}, {size} voxels, after {steps} steps"
    if path.suffix == ".json":
        write_record(path, title, trace)
    else:
        write_page(path, title, trace, scene, {"channels": case.channels, "classes": case.classes})
    print(f"written to {path}")


def _learn_and_trace(model, case: StudyCase, steps: int) -> tuple[Trace, dict[str, Picture]]:
    """The step after these, and pictures of the case and of what is predicted before it."""
    optimizer = Adam(model.named_parameters(), learning_rate=2e-3)
    picture = slicer(case.depth)
    with threadpool_limits(limits=1, user_api="blas"):
        for step in trange(steps, desc="train", unit="step", disable=None):
            train_step(model, optimizer, case.images, case.labels, step)
        predicted = to_host(model.forward(to_model(case.images, model))[0]).argmax(axis=-1)
        trace = trace_step(model, optimizer, case.images, case.labels, steps, picture)
    labels, prediction = case.labels[..., None], predicted[..., None]
    scene = {"image": case.images, "labels": labels, "prediction": prediction}
    return trace, {name: picture(array) for name, array in scene.items()}


def load_case(data: str | None, channels, rank: int) -> StudyCase:
    """A prepared case as a batch of one: the volume, or for rank 2 the slice with most tumour."""
    case = _phantom_case() if data is None else _task_case(Path(data))
    z = int((case.labels > 0).sum(axis=(0, 1, 2)).argmax())
    if channels is not None:
        names = tuple(case.channels[channel] for channel in channels)
        case = case._replace(images=case.images[..., list(channels)], channels=names)
    if rank == 3:
        return case._replace(depth=(z + 0.5) / case.labels.shape[3])
    name, images = f"{case.name}, slice {z}", case.images[:, :, :, z]
    return case._replace(name=name, images=images, labels=case.labels[:, :, :, z])


def _phantom_case() -> StudyCase:
    image, label = phantom.make_case(1, size=PHANTOM_SIZE)
    spacing = np.array(phantom.FULL_SIZE) / PHANTOM_SIZE
    prepared, geometry = prepare.prepare_image(image, np.diag([*spacing, 1]), name="phantom")
    label = prepare.crop(label, geometry)
    names = phantom.MODALITIES, phantom.CLASSES
    return StudyCase("a phantom", prepared[None], label[None], 0.0, *names)


def _task_case(path: Path) -> StudyCase:
    folder = path if (path / "dataset.json").exists() else path.parent
    task = open_task(folder)
    case = next((case for case in task.training if folder / case.name == path), None)
    if case is None:
        example = folder / task.training[0].name
        raise InputError(
            f"data: got {str(path)!r}, expected a labelled case as TASK/CASE, such as {example}"
        )
    read = read_case(task, case)
    image, geometry = prepare.prepare_image(read.image, read.affine, name=case.name)
    label = prepare.crop(read.label, geometry)
    return StudyCase(case.name, image[None], label[None], 0.0, task.channels, task.classes)
