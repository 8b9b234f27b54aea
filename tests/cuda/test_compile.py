"""Every kernel's source compiles for the architectures it serves; skipped without NVRTC."""

import re

import pytest

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


def test_what_does_not_compile_shows_the_compilers_log(compiler):
    with pytest.raises(RuntimeError, match=r"wrong\.cu does not compile(.|\n)*undefined"):
        compiler.compile("__global__ void k() { missing(); }", "wrong.cu", loader.OPTIONS)
