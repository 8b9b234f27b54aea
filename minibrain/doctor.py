"""What this installation can do: versions, processor, GPU, and a short test of the arithmetic."""

import importlib
import importlib.metadata
import os
import platform

import numpy as np
from threadpoolctl import threadpool_info

from minibrain.arrays import find_device, to_device, to_host
from minibrain.errors import InputError
from minibrain.functional import cce_dice_loss_backward, cce_dice_loss_forward
from minibrain.kernels.cpu.threads import thread_count
from minibrain.models import UNet

PACKAGES = ("numpy", "scipy", "scikit-learn", "nibabel", "matplotlib", "cupy")
AGREEMENT = 1e-4  # of float32 gradients with those in float64, relative


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
        error = self_test(device)
        sound &= error < AGREEMENT
        verdict = "right" if error < AGREEMENT else "WRONG"
        lines.append(f"self-test on {device}: gradients off by {error:.1e}, {verdict}")
    return "\n".join(lines), sound


def self_test(device: str) -> float:
    """The largest relative difference between a small network's gradients in float32, by the fast
    twins of a device, and in float64, by the reference on the CPU."""
    exact = _gradients(np.float64, "cpu")
    fast = _gradients(np.float32, device)
    return max(
        float(np.linalg.norm(fast[name] - exact[name]) / np.linalg.norm(exact[name]))
        for name in exact
        if np.linalg.norm(exact[name]) > 1e-6  # a bias before instance norm has no gradient
    )


def _gradients(dtype, device: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 16, 16, 16, 4)).astype(np.float32).astype(dtype)
    labels = rng.integers(0, 4, images.shape[:-1])
    model = UNet(3, 4, 4, channels=(16, 32), seed=0, dtype=dtype).to(device)
    logits, saved = model.forward(to_device(images, device), training=True)
    _, loss_saved = cce_dice_loss_forward(logits, to_device(labels, device))
    model.backward(cce_dice_loss_backward(1.0, loss_saved), saved, input_gradient=False)
    return {name: to_host(p.grad) for name, p in model.named_parameters().items()}


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
