"""What this installation can do: versions, processor, GPU, and a short test of the arithmetic."""

import importlib
import os
import platform

from threadpoolctl import threadpool_info

from minibrain.arrays import find_device, find_precision, precision_dtype
from minibrain.errors import InputError
from minibrain.kernels.cpu.threads import thread_count
from minibrain.models import brain_3d
from minibrain.runs.environment import version_of
from minibrain.selftest import self_test

CHANNELS = (16, 32, 64, 128)  # of the network in the self-test: one level less, to be quick
PACKAGES = ("numpy", "scipy", "scikit-learn", "nibabel", "matplotlib")


def report() -> tuple[str, bool]:
    """What is here, a line each, and whether the arithmetic is right on every device."""
    lines = [
        f"minibrain {version_of('minibrain')}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}",
        f"packages: {', '.join(f'{name} {version_of(name)}' for name in PACKAGES)}, cupy {_cupy()}",
        f"processor: {thread_count()} threads, {_blas()}, {_memory()}",
        f"NVRTC: {_nvrtc()}",
        f"GPU: {_gpu()}",
    ]
    sound = True
    for device in ["cpu", *(["cuda"] if find_device() == "cuda" else [])]:
        for precision in sorted({"fp32", find_precision("auto", device)}):
            network = brain_3d(channels=CHANNELS, dropout=0.1, dtype=precision_dtype(precision))
            right, findings = self_test(network.to(device))
            sound &= right
            lines.append(f"self-test on {device} in {precision}: {findings}")
    return "\n".join(lines), sound


def _cupy() -> str:
    """Its wheels have other names than the module."""
    try:
        return importlib.import_module("cupy").__version__
    except ImportError:
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
