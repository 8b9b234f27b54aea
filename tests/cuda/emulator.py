"""Runs kernels on the CPU in place of `minibrain.kernels.cuda.loader.launch`.

The .cu sources are compiled as they are, behind `emulation.h`; only the header with the inline PTX
has `emulated_tensor_core.h` in its place. The launchers are untouched: their grids, shared memory
and arguments are what runs here. Every array is handed over as a copy, right before memory that
nobody may touch, or right behind it in schedules with bit 1, and with NaN in the rest of its pages:
what is read there poisons the result, and what is written is found. Where arrays are too large to
copy, only the first and last blocks run, on the arrays themselves.
"""

import ctypes
import hashlib
import mmap
import os
import re
import subprocess
import tempfile
import threading
from collections import Counter
from contextlib import contextmanager
from functools import cache
from math import prod
from pathlib import Path

import numpy as np
import pytest
import standin

from minibrain import kernels
from minibrain.kernels.cuda import loader

HERE = Path(__file__).parent
CACHE = Path(tempfile.gettempdir()) / f"minibrain-emulation-{os.getuid()}"
COMPILER = ["g++", "-std=c++17", "-O1", "-march=native", "-ffp-contract=off", "-fPIC", "-w"]
COMPILER += ["-fsanitize=alignment"]
COMPILER += ["-fno-strict-aliasing", "-U_FORTIFY_SOURCE"]  # its longjmp knows no fibers
LIBC, PAGE = ctypes.CDLL(None), mmap.PAGESIZE
WHOLE = 16  # bytes, the most that a thread reads at once
# NaN that any arithmetic changes: it is seen even where a kernel reads it and writes it back
POISON = {1: np.uint8(0xBF), 2: np.uint16(0x7FBF), 4: np.uint32(0x7FBFBFBF)}
POISON[8] = np.uint64(0x7FF7FFFFFFFFFFFF)
KINDS = str.maketrans("uVb", "ifi")  # of dtypes, as kernels tell them apart
SCHEDULES = range(4)
LATE_COPIES, COUNT_BANKS = 4, 8  # to be added to a schedule
HEADERS = [HERE / name for name in ("emulation.h", "emulated_tensor_core.h")]
LARGE = 2**30  # bytes
END_BLOCKS = 2
DEVICE = threading.Lock()  # who runs a kernel holds it: the headers' variables are there once


class EmulationError(AssertionError):
    """A kernel did what no kernel may do."""


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_longlong),
        ("first_block", ctypes.c_longlong),
        ("end_block", ctypes.c_longlong),
        ("schedule", ctypes.c_int),
        ("conflicts", ctypes.c_longlong),
    )


class Emulator:
    """Launches kernels in one schedule, see emulation.h; `edit` (old, new) plants a fault in the
    sources."""

    def __init__(self, schedule=0, edit=None):
        self.schedule, self.edit, self.launches = schedule, edit, []
        self.conflicts = Counter()

    def launch(self, name, grid, block, arguments, shared_bytes=0):
        """`loader.launch`."""
        arguments = [loader.packed(argument) for argument in arguments]
        real = loader.real_type(arguments)
        standin.do(lambda: self._run(name, grid, block, arguments, real, shared_bytes))

    def _run(self, name, grid, block, values, real, shared_bytes):
        grid, block = ((*size, 1, 1)[:3] for size in (grid, block))
        arrays = [value._host for value in values if _is_on_device(value)]
        large = any(array.nbytes > LARGE for array in arrays)
        behind = not self.schedule & 1
        guarded = {_place(array): _Guarded(array, behind) for array in arrays if not large}
        pointers = [_parameter(value, guarded) for value in values]
        array = (ctypes.c_void_p * len(pointers))(*map(ctypes.addressof, pointers))
        run, signature = self._kernel(name, real)
        _check_types(name, signature, values)
        self.launches.append(name)
        for first, end in _ends(prod(grid)) if large else [(0, prod(grid))]:
            launch = _Launch(grid, block, shared_bytes, first, end, self.schedule)
            with DEVICE:
                error = run(ctypes.byref(launch), array, len(pointers))
            if error:
                raise EmulationError(f"{name}: {error.decode()}")
            self.conflicts[name] += launch.conflicts
        for copy in guarded.values():
            copy.give_back(name)

    def _kernel(self, name, real):
        """The function that runs a kernel, and what its parameters take."""
        file, _, kernel = name.partition(".")
        library = _compiled(_source(loader.included, file, real, self.edit))
        run, signature = library[f"emulate_{kernel}"], library[f"signature_{kernel}"]
        run.restype = signature.restype = ctypes.c_char_p
        run.argtypes = (ctypes.POINTER(_Launch), ctypes.POINTER(ctypes.c_void_p), ctypes.c_int)
        return run, signature().decode().split()


def _ends(blocks):
    if blocks <= 2 * END_BLOCKS:
        return [(0, blocks)]
    return [(0, END_BLOCKS), (blocks - END_BLOCKS, blocks)]


class _Guarded:
    """A copy of an array in pages of its own, with a protected one right behind it or before it;
    there is poison in the rest and, of channels of a larger array, between its voxels."""

    def __init__(self, array, behind):
        self.array, poison = array, POISON[array.itemsize]
        self.channels = array.shape[-1] if array.ndim > 1 else array.size
        self.pitch = self.channels if array.flags.c_contiguous else _pitch(array)
        voxels = array.size // max(1, self.channels)
        count, odd = voxels * self.pitch, array.ctypes.data % WHOLE // array.itemsize
        pages = _pages(count * array.itemsize + WHOLE).view(poison.dtype)
        spare = (len(pages) - count - odd) // (WHOLE // array.itemsize) * (WHOLE // array.itemsize)
        first = odd + (spare if behind else 0)  # as odd a place as the array's
        pages[:] = self.poison = poison
        self.inside = pages[first : first + count]
        self.voxels = self.inside.reshape(voxels, self.pitch)
        self.voxels[:, : self.channels] = self._bits()
        self.beside = pages[:first], pages[first + count :], self.voxels[:, self.channels :]

    def give_back(self, name):
        if not all((strip == self.poison).all() for strip in self.beside):
            raise EmulationError(f"{name} wrote beside an array {self.array.shape}")
        self._bits()[:] = self.voxels[:, : self.channels]

    def _bits(self):
        """(voxels, channels), a view of the array."""
        step = self.pitch * self.array.itemsize
        return np.lib.stride_tricks.as_strided(
            self.array.view(self.inside.dtype),
            (len(self.voxels), self.channels),
            (step, self.array.itemsize),
        )


def _pages(size):
    """So many bytes and what is left of their last page, between two pages that are protected."""
    size = -(-size // PAGE) * PAGE
    pages = np.frombuffer(mmap.mmap(-1, size + 2 * PAGE), np.uint8)
    for first in (0, PAGE + size):
        address = ctypes.c_void_p(pages.ctypes.data + first)
        assert not LIBC.mprotect(address, ctypes.c_size_t(PAGE), 0)
    return pages[PAGE:-PAGE]


def _pitch(array):
    """Elements from a voxel to the next, where all of them lie one after the other."""
    step = array.strides[-2] if array.ndim > 1 else 0
    steps = [step * prod(array.shape[axis:-1]) for axis in range(1, array.ndim)]
    if array.strides != (*steps, array.itemsize) or step < array.itemsize * array.shape[-1]:
        raise EmulationError("a kernel was given an array that is not contiguous")
    return step // array.itemsize


def _check_types(name, signature, values):
    """Each argument must be what the kernel declares: CuPy hands over bytes, unseen."""
    if len(signature) != len(values):
        raise EmulationError(f"{name}: the kernel takes another number of arguments")
    for number, (declared, value) in enumerate(zip(signature, values, strict=True)):
        kind = value.dtype.kind.translate(KINDS)
        given = f"{'s' if value.dtype.names else kind}{value.dtype.itemsize}"
        null = declared.endswith("*") and isinstance(value, np.uint64) and not value
        if not null and declared != (f"{given}*" if _is_on_device(value) else given):
            raise EmulationError(f"{name}: argument {number} is {given}, declared {declared}")


def _is_on_device(value):
    return isinstance(value, standin.ndarray)


def _place(array):
    return array.ctypes.data, array.nbytes


def _parameter(value, guarded):
    """What a kernel's parameter is read from: a pointer for an array of the device, else bytes."""
    if not _is_on_device(value):
        return ctypes.create_string_buffer(value.tobytes(), value.nbytes)
    copy = guarded.get(_place(value._host))
    return ctypes.c_void_p((copy.inside if copy else value._host).ctypes.data)


def _address(array):
    """`loader.address` for arrays of the stand-in."""
    return array._host.ctypes.data


@cache
def _source(included, file, real, edit):
    """What is compiled of a file; `included` is loader.included, which may plant a fault."""
    source = f"#define REAL {real}\n{loader.source(file)}".replace(included("tensor_core.cuh"), "")
    return source.replace(*edit) if edit else source


@cache
def _compiled(source):
    kernels = re.findall(r"__global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(", source)
    exports = "".join(f"EMULATE({kernel})\n" for kernel in kernels)
    options = ["-shared", "-include", _headers()]
    return ctypes.CDLL(str(_built(f"{source}\n{exports}", options, ".so")))


@cache
def _headers():
    """Both headers as one, compiled in advance: it takes as long as what comes after them."""
    text = "".join(map(Path.read_text, HEADERS)).replace("#pragma once", "")
    return _built(text, ["-xc++-header"], ".h.gch").with_suffix("")


def _built(text, options, suffix):
    """The path of what the compiler makes of a text, which is beside it; made once on a machine."""
    command = [*COMPILER, *options]
    key = hashlib.sha256(f"{text} {command}".encode()).hexdigest()[:24]
    path = CACHE / f"{key}{suffix}"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            file = Path(folder) / "text.cpp"
            file.write_text(text)
            subprocess.run([*command, file, "-o", file.with_suffix(suffix)], check=True)
            os.replace(file, path.with_suffix(""))
            os.replace(file.with_suffix(suffix), path)
    return path


@contextmanager
def emulated(schedule=0, edit=None, empty=None):
    """Meanwhile arrays of `standin` are a device's: their operations go to the CUDA launchers, and
    the kernels these launch run here. What the launchers allocate is `poisoned`, or `empty`."""
    emulator = Emulator(schedule, edit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(kernels.DEVICES, "standin", "cuda")
        patch.setattr(loader, "launch", emulator.launch)
        patch.setattr(loader, "address", _address)
        patch.setattr(standin, "empty", empty or poisoned, raising=False)
        kernels._find_twin.cache_clear()
        yield emulator
    kernels._find_twin.cache_clear()


def poisoned(shape, dtype, byte=0xFF):
    """An array full of the byte: of NaN, unless it is another."""
    array = standin.ndarray(np.empty(shape, dtype))
    standin.do(lambda: array._host.reshape(-1).view(np.uint8).fill(byte))
    return array
