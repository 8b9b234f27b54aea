"""What this installation can do: versions, processor, GPU, and a short test of the arithmetic."""

import importlib
import importlib.metadata
import os
import platform

import numpy as np
from threadpoolctl import threadpool_info

from minibrain.arrays import find_device
from minibrain.errors import InputError
from minibrain.kernels.cpu.threads import thread_count
from minibrain.models import brain_3d_small
from minibrain.optimizers import Adam
from minibrain.selftest import TOLERANCE, worst_errors
from minibrain.training import train_step

PACKAGES = ("numpy", "scipy", "scikit-learn", "nibabel", "matplotlib", "cupy")


def report() -> tuple[str, bool]:
    """What is here, a line each, and whether the arithmetic is right on every device."""
    lines = [
        f"minibrain {_version('minibrain')}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}",
        "packages: " + ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        f"processor: {thread_count()} threads, {_blas()}, {_memory()}",
        f"NVRTC: {_nvrtc()}",
        f"GPU: {_gpu()}",
    ]
    sound = True
    for device in ["cpu", *(["cuda"] if find_device() == "cuda" else [])]:
        right, findings = self_test(device)
        sound &= right
        lines.append(f"self-test on {device}: {findings}")
    return "\n".join(lines), sound


def self_test(device: str) -> tuple[bool, str]:
    """Whether every operation of a training step is right on a device, and how far which is off."""
    model, rng = brain_3d_small().to(device), np.random.default_rng(0)
    optimizer = Adam(model.named_parameters())
    images = rng.standard_normal((1, 16, 12, 8, 4), np.float32)
    labels = rng.integers(0, 4, images.shape[:-1], np.uint8)
    errors = worst_errors(lambda: train_step(model, optimizer, images, labels, step=0))
    name = max(errors, key=lambda name: np.nan_to_num(errors[name], nan=np.inf))
    right = errors[name] < TOLERANCE["float32"]
    return right, f"{'right' if right else 'WRONG'}, {name} off by {errors[name]:.1e}"


def _version(package: str) -> str:
    if package == "cupy":  # its wheels have other names
        try:
            return importlib.import_module("cupy").__version__
        except ImportError:
            return "not installed"
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _blas() -> str:
    blas = next((info for info in threadpool_info() if info["user_api"] == "blas"), None)
    if blas is None:
        return "unknown BLAS"
    return f"{blas['internal_api']} {blas['version']} for {blas.get('architecture', 'any')}"


def _memory() -> str:
    try:
        pages = os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return "memory unknown"
    return f"{pages * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB of memory"


def _nvrtc() -> str:
    from minibrain.kernels.cuda.loader import Compiler

    try:
        return ".".join(map(str, Compiler().version))
    except InputError as error:
        return str(error)


def _gpu() -> str:
    try:
        find_device("cuda")
    except InputError as error:
        return str(error)
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    free, total = cupy.cuda.runtime.memGetInfo()
    driver = cupy.cuda.runtime.driverGetVersion()
    return (
        f"{properties['name'].decode()}, compute capability {properties['major']}."
        f"{properties['minor']}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, "
        f"driver for CUDA {driver // 1000}.{driver % 1000 // 10}"
    )
