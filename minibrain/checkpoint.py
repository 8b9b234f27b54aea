"""Networks on disk: uncompressed .npz, read without pickle, written all or not at all."""

import json
import zipfile
from pathlib import Path

import numpy as np

from minibrain.arrays import like, to_host
from minibrain.errors import InputError
from minibrain.files import replacing
from minibrain.models import UNet
from minibrain.optimizers import Adam

# What np.load raises for files that are not what it wrote: a flipped bit in a zip directory can
# ask for encryption (RuntimeError), a .npy file has no names (TypeError).
UNREADABLE = (OSError, ValueError, EOFError, TypeError, RuntimeError, zipfile.BadZipFile)


def save(path: Path, model: UNet, optimizer: Adam, about: dict) -> None:
    """Write parameters, running statistics, Adam's state and a JSON-able description."""
    arrays = {f"network/{name}": to_host(p.value) for name, p in _network(model).items()}
    arrays["adam/mean"], arrays["adam/square"] = to_host(optimizer.mean), to_host(optimizer.square)
    arrays["adam/steps"] = np.array(optimizer.steps)
    arrays["about"] = np.array(json.dumps(about))
    with replacing(path) as file:
        np.savez(file, **arrays)


def load_network(path: Path, model: UNet) -> dict:
    """Read a network's parameters and running statistics into a model of the same structure.

    Returns
    -------
    about : the description it was saved with

    Raises
    ------
    InputError : not a checkpoint, damaged, or of another network
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read as a checkpoint: {error}") from error
    network = _network(model)
    expected = {f"network/{name}" for name in network} | {"about"}
    found = {name for name in arrays if not name.startswith("adam/")}
    if found != expected:
        example = sorted(found ^ expected)[0]
        raise InputError(f"{path}: of another network: {example} is missing or not expected")
    for name, parameter in network.items():
        shape = arrays[f"network/{name}"].shape
        if shape != parameter.value.shape:
            raise InputError(f"{path}: {name} has shape {shape}, expected {parameter.value.shape}")
    for name, parameter in network.items():
        parameter.value = like(arrays[f"network/{name}"], parameter.value)
    return json.loads(str(arrays["about"]))


def _network(model: UNet):
    return model.named_parameters() | model.named_buffers()
