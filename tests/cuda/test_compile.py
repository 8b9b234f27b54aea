"""Every kernel's source compiles for the architectures it serves; skipped without NVRTC."""

import re

import numpy as np
import pytest
from test_tensor_core import kernel_texts

from minibrain.errors import InputError
from minibrain.kernels.cuda import loader

FILES = sorted(path.stem for path in loader.SOURCES.glob("*.cu"))
VARIANTS = [
    (file, real)
    for file in FILES
    for real in (("float", "bfloat16") if "Real" in loader.included(f"{file}.cu") else ("float",))
]


@pytest.fixture(scope="module")
def compiler():
    try:
        return loader.Compiler()
    except InputError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize(("file", "real"), VARIANTS)
def test_it_compiles_and_spills_nothing(compiler, file, architecture, real):
    options = [*loader.OPTIONS, f"-DREAL={real}", f"-arch={architecture}", "--ptxas-options=-v"]
    cubin, log = compiler.compile(loader.source(file), f"{file}.cu", options)
    assert cubin.startswith(b"\x7fELF")
    spills = re.findall(r"(\d+) bytes spill stores", log)
    kernels = loader.source(file).count('extern "C" __global__')
    assert log.count("Compiling entry function") == kernels <= len(spills)
    assert set(spills) == {"0"}


DOUBLES, CALL = {0x28, 0x29, 0x2A, 0x2B}, 0x144  # the lower 9 bits of an instruction of 16 bytes


@pytest.mark.parametrize("file", ["normalization", "pooling"])
def test_memory_does_not_wait_for_doubles_and_long_divisions(compiler, file):
    """Which would take longer than memory does, in kernels that go over voxels and add nothing up.
    On sm_90 a division of 64 bits is a call."""
    options = (*loader.OPTIONS, "-DREAL=bfloat16", "-arch=sm_90")
    code, _ = compiler.compile(loader.source(file), f"{file}.cu", options)
    slow = {
        kernel: {*DOUBLES, CALL} & {*(np.frombuffer(text, "<u8")[::2] & 0x1FF)}
        for kernel, text in kernel_texts(code)
    }
    over_voxels = {kernel for kernel in slow if kernel.endswith(("_1", "_8"))}
    sums = {kernel for kernel in over_voxels if kernel.startswith("sum_")}
    assert len(over_voxels) == 10
    assert not any(slow[kernel] for kernel in over_voxels - sums), slow
    assert all(DOUBLES & slow[kernel] for kernel in sums)  # so these are the instructions


def test_what_does_not_compile_shows_the_compilers_log(compiler):
    with pytest.raises(RuntimeError, match=r"wrong\.cu does not compile(.|\n)*undefined"):
        compiler.compile("__global__ void k() { missing(); }", "wrong.cu", loader.OPTIONS)
