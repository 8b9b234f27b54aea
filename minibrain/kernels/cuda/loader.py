"""From a .cu file to a kernel that runs: NVRTC, a cache on disk, CuPy.

Sources are compiled for the device at hand on first use (a few seconds in all) and kept in the
user's cache folder under the hash of everything that went into them. Compiling needs neither a
driver nor CuPy, only NVRTC, which comes with `pip install 'minibrain[cuda13]'`.
"""

import ctypes
import hashlib
import os
import sys
from functools import cache
from pathlib import Path

import numpy as np

from minibrain.errors import InputError
from minibrain.files import replacing

SOURCES = Path(__file__).parent
UNASKED_BYTES = 48 * 1024  # of shared memory; beyond, a kernel must be allowed to have more
OPTIONS = ("-std=c++17", "-default-device")


def launch(name: str, grid, block, arguments, shared_bytes: int = 0):
    """Start a kernel on the current device and stream, without waiting for it.

    Parameters
    ----------
    name : "file.kernel", for the kernel of that name in file.cu
    grid, block : numbers of blocks, and of threads in each, along x, y and z
    arguments : as the kernel declares them, see `packed`
    shared_bytes : of shared memory for each block
    """
    import cupy

    capability = cupy.cuda.Device().compute_capability
    kernel = _kernel(name, f"sm_{capability}", cupy.cuda.Device().id)
    if shared_bytes > UNASKED_BYTES:
        kernel.max_dynamic_shared_size_bytes = shared_bytes
    kernel(grid, block, tuple(map(packed, arguments)), shared_mem=shared_bytes)


def packed(argument):
    """An int arrives as long long, a float as double, None as a null pointer, an array of the
    device as a pointer to its first element, and NumPy data of no dimension byte by byte."""
    if argument is None:
        return np.uint64(0)
    if isinstance(argument, int):
        return np.int64(argument)
    return np.float64(argument) if isinstance(argument, float) else argument


def address(array) -> int:
    """Where an array begins in the device's memory, for kernels that take tables of pointers."""
    return array.data.ptr


@cache
def _kernel(name: str, architecture: str, device: int):
    """A CuPy kernel; modules are loaded once for each device."""
    import cupy

    file, _, kernel = name.partition(".")
    return cupy.RawModule(path=str(cubin_path(file, architecture))).get_function(kernel)


def cubin_path(file: str, architecture: str) -> Path:
    """The compiled file.cu in the cache, where it is put if need be.

    Raises
    ------
    InputError : NVRTC cannot be found, or the cache folder cannot be written
    RuntimeError : with the compiler's log, if the source does not compile
    """
    compiler = Compiler()
    options = (*OPTIONS, f"-arch={architecture}")
    key = "\n".join((source(file), *options, str(compiler.version)))
    digest = hashlib.sha256(key.encode()).hexdigest()[:24]
    path = _cache_folder() / f"{file}-{architecture}-{digest}.cubin"
    if not path.exists():
        cubin, _ = compiler.compile(source(file), f"{file}.cu", options)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as stream:
                stream.write(cubin)
        except OSError as error:
            raise InputError(
                f"compiled kernels cannot be kept in {path.parent} ({error.strerror}); "
                "set MINIBRAIN_CACHE to a folder that can be written"
            ) from error
    return path


def source(file: str) -> str:
    """The headers and file.cu, as one text."""
    return "\n".join(map(header, ("common.cuh", "tensor_core.cuh", f"{file}.cu")))


def header(name: str) -> str:
    """One file of the sources; the compiler's messages give its name."""
    return f'#line 1 "{name}"\n{(SOURCES / name).read_text("utf-8")}'


def _cache_folder() -> Path:
    """MINIBRAIN_CACHE, or the folder that the platform keeps for such things."""
    if folder := os.environ.get("MINIBRAIN_CACHE"):
        return Path(folder)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "minibrain" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minibrain"


class Compiler:
    """NVIDIA's runtime compiler, through its C interface."""

    def __init__(self):
        self._library = _nvrtc()
        numbers = ctypes.c_int(), ctypes.c_int()
        self._library.nvrtcVersion(*map(ctypes.byref, numbers))
        self.version = tuple(number.value for number in numbers)

    def compile(self, text: str, name: str, options) -> tuple[bytes, str]:
        """(cubin, log). Raises RuntimeError with the log if the text does not compile."""
        program = ctypes.c_void_p()
        self._call("CreateProgram", ctypes.byref(program), text.encode(), name.encode(), 0, 0, 0)
        try:
            encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            failed = self._library.nvrtcCompileProgram(program, len(options), encoded)
            log = self._read("ProgramLog", program).rstrip(b"\0").decode(errors="replace")
            if failed:
                raise RuntimeError(f"{name} does not compile with {' '.join(options)}:\n{log}")
            return self._read("CUBIN", program), log
        finally:
            self._call("DestroyProgram", ctypes.byref(program))

    def _read(self, what: str, program) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"Get{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"Get{what}", program, buffer)
        return buffer.raw

    def _call(self, function: str, *arguments):
        if code := self._library[f"nvrtc{function}"](*arguments):
            raise RuntimeError(f"nvrtc{function} failed with code {code}")


@cache
def _nvrtc():
    """The library, wherever pip, conda, CUDA_PATH or the system put it."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        return ctypes.CDLL(load_nvidia_dynamic_lib("nvrtc").abs_path)
    except (ImportError, RuntimeError, OSError) as error:
        raise InputError(
            "CUDA's runtime compiler NVRTC cannot be found; "
            f"pip install 'minibrain[cuda13]' or [cuda12] ({str(error).splitlines()[0]})"
        ) from error
