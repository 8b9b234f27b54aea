"""What this installation can do: versions, processor, GPU, and a short test of the arithmetic."""

import importlib
import importlib.metadata
import os
import platform

import numpy as np
from threadpoolctl import threadpool_info

from minibrain import functional
from minibrain.arrays import find_device, to_device, to_host
from minibrain.errors import InputError
from minibrain.kernels.cpu.threads import thread_count

PACKAGES = ("numpy", "scipy", "scikit-learn", "nibabel", "matplotlib", "cupy")
AGREEMENT = 1e-4  # of float32 with float64, relative


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
        lines.append(f"self-test on {device}: off by {error:.1e}, {verdict}")
    return "\n".join(lines), sound


def self_test(device: str) -> float:
    """The largest relative difference between what operations give in float32, as computed on a
    device, and in float64 by their readable bodies, over results and gradients.

    Operation by operation: through a network, a rounding that carries a value across ReLU's kink
    would look like a wrong gradient.
    """
    rng = np.random.default_rng(0)
    return max(_error(device, rng, *case) for case in _cases(rng))


def _cases(rng):
    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    x = draw(2, 12, 10, 8, 16)
    yield "conv", (x, draw(3, 3, 3, 16, 16), draw(16)), {"padding": "same"}
    yield "conv", (x, draw(1, 1, 1, 16, 4), draw(4)), {}
    yield "conv_transpose", (x, draw(2, 2, 2, 8, 16), draw(8)), {"stride": 2}
    yield "norm_relu", (x, draw(16), draw(16)), {"rate": 0.2, "key": (1, 2, 3)}
    yield "max_pool", (x,), {}
    yield "cce_dice_loss", (draw(2, 6, 5, 4, 4), rng.integers(0, 4, (2, 6, 5, 4))), {}


def _error(device: str, rng, name: str, arguments: tuple, options: dict) -> float:
    forward = getattr(functional, f"{name}_forward")
    backward = getattr(functional, f"{name}_backward")
    y, saved = forward.reference(*map(_wide, arguments), **options)
    dy = np.float32(1) if np.ndim(y) == 0 else rng.standard_normal(y.shape).astype(np.float32)
    exact = _flat(y, backward.reference(_wide(dy), saved))
    y, saved = forward(*(to_device(argument, device) for argument in arguments), **options)
    found = _flat(y, backward(to_device(dy, device) if dy.ndim else 1.0, saved))
    return max(
        float(np.linalg.norm(to_host(a) - b) / np.linalg.norm(b))
        for a, b in zip(found, exact, strict=True)
    )


def _wide(value):
    return value.astype(np.float64) if value.dtype == np.float32 else value


def _flat(y, gradients) -> list:
    return [y, *gradients] if isinstance(gradients, tuple) else [y, gradients]


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
