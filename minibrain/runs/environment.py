"""What the last bits of a result depend on besides code, configuration and data."""

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info

PACKAGE = Path(__file__).parents[1]


def describe_environment(device: str) -> dict[str, str]:
    """Versions and hardware by name.

    The numbers of a matrix product change in the last bits with the kind of processor (which
    decides on the instructions that NumPy and BLAS choose), the number of BLAS threads and the
    library; our own threads change nothing.
    """
    simd = np.show_config(mode="dicts")["SIMD Extensions"]
    blas = [
        f"{library['internal_api']} {library['version']}, {library.get('architecture', '?')}, "
        f"{library['num_threads']} threads"
        for library in threadpool_info()
        if library["user_api"] == "blas"
    ]
    return {
        "minibrain": f"{version_of('minibrain')}, code {_code()}",
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "processor": " ".join([platform.machine(), *simd["baseline"], *simd.get("found", [])]),
        "BLAS": "; ".join(sorted(set(blas))),
        "device": _describe_gpu() if device == "cuda" else "cpu",
    }


def _describe_gpu() -> str:
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    return f"{properties['name'].decode()}, CuPy {cupy.__version__}"


def _code() -> str:
    """A hash of the library itself: between two releases its arithmetic changes, too."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in (".py", ".cu", ".cuh"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def version_of(package: str) -> str:
    """Its version, or "not installed": so is what is imported from a folder."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
