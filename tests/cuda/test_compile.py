"""Every kernel's source compiles for the architectures it serves; skipped without NVRTC."""

import re
import struct
from functools import cache

import numpy as np
import pytest

from minibrain.errors import InputError
from minibrain.kernels.cuda import loader

FILES = sorted(path.stem for path in loader.SOURCES.glob("*.cu"))
NAMED = re.compile(r"Architectures:[\s/]*(sm_\w+(?:, sm_\w+)*)\.")
ARCHITECTURES = {
    file: NAMED.findall((loader.SOURCES / f"{file}.cu").read_text("utf-8")) for file in FILES
}
VARIANTS = [
    (file, real, architecture)
    for file in FILES
    for real in (("float", "bfloat16") if "Real" in loader.included(f"{file}.cu") else ("float",))
    for architecture in ", ".join(ARCHITECTURES[file]).split(", ")
]


@pytest.fixture(scope="module")
def compiler():
    try:
        return loader.Compiler()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def compiled(compiler):
    """The machine code of a file and the compiler's log; every file is compiled once."""

    @cache
    def compile(file, real, architecture):
        options = [*loader.OPTIONS, f"-DREAL={real}", f"-arch={architecture}"]
        source = loader.source(file)
        return compiler.compile(source, f"{file}.cu", [*options, "--ptxas-options=-v"])

    return compile


@pytest.mark.parametrize("file", FILES)
def test_it_names_the_architectures_that_it_serves(file):
    (names,) = ARCHITECTURES[file]
    assert {"sm_80", "sm_90"} <= {*names.split(", ")}


@pytest.mark.parametrize(("file", "real", "architecture"), VARIANTS)
def test_it_compiles_for_them_and_spills_nothing(compiled, file, real, architecture):
    cubin, log = compiled(file, real, architecture)
    assert cubin.startswith(b"\x7fELF")
    spills = re.findall(r"(\d+) bytes spill stores", log)
    kernels = loader.source(file).count('extern "C" __global__')
    assert log.count("Compiling entry function") == kernels <= len(spills)
    assert set(spills) == {"0"}


DOUBLES, CALL = {0x28, 0x29, 0x2A, 0x2B}, 0x144  # the lower 9 bits of an instruction of 16 bytes


@pytest.mark.parametrize("file", ["normalization", "pooling"])
def test_memory_does_not_wait_for_doubles_and_long_divisions(compiled, file):
    """Which would take longer than memory does, in kernels that go over voxels and add nothing up.
    On sm_90 a division of 64 bits is a call."""
    code, _ = compiled(file, "bfloat16", "sm_90")
    slow = {
        kernel: {*DOUBLES, CALL} & {*(np.frombuffer(text, "<u8")[::2] & 0x1FF)}
        for kernel, text in kernel_texts(code)
    }
    over_voxels = {kernel for kernel in slow if kernel.endswith(("_1", "_8"))}
    sums = {kernel for kernel in over_voxels if kernel.startswith("sum_")}
    assert len(over_voxels) == 10
    assert not any(slow[kernel] for kernel in over_voxels - sums), slow
    assert all(DOUBLES & slow[kernel] for kernel in sums)  # so these are the instructions


HMMA = 0x23C  # the lower 12 bits of the instruction of 16 bytes that multiplies on tensor cores


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize(
    ("file", "least"), [("conv_planes", 300), ("conv_planes_gradient", 200), ("conv_tiles", 100)]
)
def test_every_kernel_of_these_computes_on_tensor_cores(compiled, file, least, architecture):
    code, _ = compiled(file, "float", architecture)
    counts = {
        kernel: np.count_nonzero((np.frombuffer(text, "<u8")[::2] & 0xFFF) == HMMA)
        for kernel, text in kernel_texts(code)
    }
    assert len(counts) == loader.source(file).count('extern "C" __global__')
    assert all(counts.values()), counts
    assert sum(counts.values()) >= least


def test_what_does_not_compile_shows_the_compilers_log(compiler):
    with pytest.raises(RuntimeError, match=r"wrong\.cu does not compile(.|\n)*undefined"):
        compiler.compile("__global__ void k() { missing(); }", "wrong.cu", loader.OPTIONS)


def kernel_texts(cubin):
    """(name, machine code) of every kernel: the sections .text.NAME of an ELF file."""
    (start,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<3H", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, start + i * size) for i in range(count)]
    for name, *_, offset, length in sections:
        name = cubin[sections[names][4] + name :].partition(b"\0")[0].decode()
        if name.startswith(".text."):
            yield name.removeprefix(".text."), cubin[offset : offset + length]
