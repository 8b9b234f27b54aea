"""From a .cu file to a kernel that runs: NVRTC, a cache on disk, CuPy.

Sources are compiled for the device at hand on first use (a few seconds in all) and kept in the
user's cache folder under the hash of everything that went into them. Compiling needs neither a
driver nor CuPy, only NVRTC, which comes with `pip install 'minibrain[cuda13]'`.
"""

import ctypes
import hashlib
import os
import re
import sys
import warnings
from functools import cache
from numbers import Integral, Real
from pathlib import Path

import numpy as np

from minibrain.errors import InputError
from minibrain.files import replacing

SOURCES = Path(__file__).parent
MOST_SHARED_BYTES = 8  # the driver's number of a kernel's attribute
INCLUDE = re.compile(r'^#include "(\w+\.cuh)"$', re.MULTILINE)
OPTIONS = ("-std=c++17", "-default-device")
DIGEST_SIZE = hashlib.sha256().digest_size


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

    device = cupy.cuda.Device()
    architecture = f"sm_{device.compute_capability}"
    function = _function(name, real_type(arguments), architecture, device.id)
    function(grid, block, tuple(map(packed, arguments)), shared_mem=shared_bytes)


def packed(argument):
    """An integer arrives as long long, a float as double, None as a null pointer, an array of the
    device as a pointer to its first element, and NumPy data of no dimension byte by byte."""
    if argument is None:
        return np.uint64(0)
    if isinstance(argument, Integral):
        return np.uint64(int(argument) % 2**64)
    return np.float64(argument) if isinstance(argument, Real) else argument


def real_type(arguments) -> str:
    """What Real stands for in the sources: bfloat16 if one of the arrays is that, else float."""
    dtypes = (getattr(argument, "dtype", None) for argument in arguments)
    return "bfloat16" if any(dtype and dtype.name == "bfloat16" for dtype in dtypes) else "float"


def address(array) -> int:
    """Where an array begins in the device's memory, for kernels that take tables of pointers."""
    return array.data.ptr


@cache
def _function(name: str, real: str, architecture: str, device: int):
    """A kernel on a device, as CuPy starts it. It may have all of a block's shared memory, from the
    start: a launch that is recorded must not find less when it is repeated."""
    import cupy

    file, _, kernel = name.partition(".")
    function = _module(file, real, architecture, device).get_function(kernel)
    most = cupy.cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"]
    cupy.cuda.driver.funcSetAttribute(function.ptr, MOST_SHARED_BYTES, most)
    return function


@cache
def _module(file: str, real: str, architecture: str, device: int):
    """All kernels of a file, loaded once for each device."""
    import cupy

    module, driver = cupy.cuda.Module(), cupy.cuda.driver
    try:
        module.load(cubin(file, real, architecture))
    except driver.CUDADriverError as error:
        compiler = ".".join(map(str, Compiler().version))
        version = cupy.cuda.runtime.driverGetVersion()
        raise InputError(
            f"the driver, for CUDA {version // 1000}.{version % 1000 // 10}, cannot load "
            f"what NVRTC {compiler} compiled ({error}); install a newer driver or an older NVRTC"
        ) from error
    return module


def cubin(file: str, real: str, architecture: str) -> bytes:
    """The machine code of file.cu, from the cache, where it is put if need be.

    Parameters
    ----------
    real : "float" or "bfloat16", what Real stands for
    architecture : such as "sm_90"

    Raises
    ------
    InputError : NVRTC cannot be found or does not know the architecture, or that is too old
    RuntimeError : with the compiler's log, if the source does not compile
    """
    compiler = Compiler()
    options = (*OPTIONS, f"-DREAL={real}", f"-arch={architecture}")
    key = "\n".join((source(file), *options, str(compiler.version)))
    digest = hashlib.sha256(key.encode()).hexdigest()[:24]
    path = _cache_folder() / f"{file}-{real}-{architecture}-{digest}.cubin"
    code = _read(path)
    if code is None:
        _require_architecture(architecture, compiler)
        code, _ = compiler.compile(source(file), f"{file}.cu", options)
        _keep(path, code)
    return code


def _require_architecture(architecture: str, compiler: "Compiler") -> None:
    number, known = int(architecture.removeprefix("sm_")), compiler.architectures
    if number not in known:
        version = ".".join(map(str, compiler.version))
        raise InputError(
            f"NVRTC {version} compiles for sm_{known[0]} to sm_{known[-1]}, this GPU is "
            f"{architecture}; install {'a newer' if number > known[-1] else 'an older'} one"
        )


def _read(path: Path) -> bytes | None:
    """Code from the cache, or None if it is not there or damaged: its hash comes before it."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:DIGEST_SIZE], content[DIGEST_SIZE:]
    return code if hashlib.sha256(code).digest() == digest else None


def _keep(path: Path, code: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as stream:
            stream.write(hashlib.sha256(code).digest() + code)
    except OSError as error:
        warnings.warn(
            f"compiled kernels cannot be kept in {path.parent} ({error.strerror}), so every start "
            "takes longer; set MINIBRAIN_CACHE to a folder that can be written",
            stacklevel=2,
        )


def source(file: str) -> str:
    """common.cuh and file.cu, with what it includes, as one text."""
    return f"{included('common.cuh')}\n{included(f'{file}.cu')}"


def included(name: str) -> str:
    """A file of the sources with its own includes in their places; the compiler's messages name
    the files and lines."""

    def put_in_place(include: re.Match) -> str:
        next_line = include.string.count("\n", 0, include.end()) + 2
        return f'{included(include[1])}\n#line {next_line} "{name}"'

    text = (SOURCES / name).read_text("utf-8")
    return f'#line 1 "{name}"\n{re.sub(INCLUDE, put_in_place, text)}'


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
        self._call("Version", *map(ctypes.byref, numbers))
        self.version = tuple(number.value for number in numbers)

    @property
    def architectures(self) -> list[int]:
        """The numbers of those that it compiles for, in ascending order."""
        count = ctypes.c_int()
        self._call("GetNumSupportedArchs", ctypes.byref(count))
        numbers = (ctypes.c_int * count.value)()
        self._call("GetSupportedArchs", numbers)
        return sorted(numbers)

    def compile(self, text: str, name: str, options) -> tuple[bytes, str]:
        """(cubin, log). Raises RuntimeError with the log if the text does not compile."""
        program = ctypes.c_void_p()
        names = text.encode(), name.encode()
        self._call("CreateProgram", ctypes.byref(program), *names, 0, None, None)
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

        path = Path(load_nvidia_dynamic_lib("nvrtc").abs_path)
        for part in path.parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(part))  # which NVRTC 13.0 does not look for beside itself
        return ctypes.CDLL(str(path))
    except (ImportError, RuntimeError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            "CUDA's runtime compiler NVRTC cannot be found; "
            f"pip install 'minibrain[cuda13]' or [cuda12] ({reason})"
        ) from error
