"""From source to kernel: the cache on disk, the compiler's errors, and what arrives in a launch."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import standin
from compare import BFLOAT16

from minibrain.errors import InputError
from minibrain.geometry import conv_geometry
from minibrain.kernels.cuda import loader
from minibrain.kernels.cuda.arguments import packed_dropout, packed_geometry
from minibrain.saved import DropoutSaved


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """The options of every compilation; the cache is empty and the compiler a pretence."""
    calls = []

    class Pretence:
        version = (13, 1)
        architectures = (75, 80, 90)

        def compile(self, text, name, options):
            calls.append(options)
            return f"{name} {options} {hash(text)}".encode(), ""

    monkeypatch.setattr(loader, "Compiler", Pretence)
    monkeypatch.setenv("MINIBRAIN_CACHE", str(tmp_path / "cache"))
    return calls


def in_cache(tmp_path):
    return sorted((tmp_path / "cache").iterdir())


def test_what_was_compiled_once_is_read_from_the_cache(compiled, tmp_path):
    code = loader.cubin("conv", "float", "sm_90")
    assert loader.cubin("conv", "float", "sm_90") == code
    assert len(compiled) == len(in_cache(tmp_path)) == 1


def test_everything_that_goes_into_a_kernel_has_its_own_entry(compiled, monkeypatch):
    codes = [loader.cubin("conv", "float", "sm_90")]
    codes += [loader.cubin(*key) for key in (("conv", "bfloat16", "sm_90"),
                                             ("conv", "float", "sm_80"),
                                             ("loss", "float", "sm_90"))]  # fmt: skip
    source = loader.source
    monkeypatch.setattr(loader, "source", lambda file: source(file) + "// another line")
    codes.append(loader.cubin("conv", "float", "sm_90"))
    assert len(set(codes)) == len(compiled) == 5
    monkeypatch.setattr(loader.Compiler, "version", (13, 2))
    loader.cubin("conv", "float", "sm_90")
    assert len(compiled) == 6


def test_common_code_is_a_part_of_every_source():
    header = loader.included("common.cuh")
    assert all(header in loader.source(path.stem) for path in loader.SOURCES.glob("*.cu"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:10],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content[:40] + bytes([content[40] ^ 1]) + content[41:],
        lambda content: bytes([content[0] ^ 128]) + content[1:],
    ],
)
def test_a_damaged_entry_is_compiled_again(compiled, tmp_path, damage):
    code = loader.cubin("conv", "float", "sm_90")
    (path,) = in_cache(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert loader.cubin("conv", "float", "sm_90") == code
    assert len(compiled) == 2
    assert loader.cubin("conv", "float", "sm_90") == code
    assert len(compiled) == 2


def test_without_a_place_for_the_cache_it_works_and_says_so(compiled, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINIBRAIN_CACHE", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        with pytest.warns(UserWarning, match="set MINIBRAIN_CACHE to a folder that can be written"):
            assert loader.cubin("conv", "float", "sm_90")
    assert len(compiled) == 2


@pytest.mark.parametrize("missing", ["pathfinder", "library"])
def test_a_missing_compiler_is_one_clear_error(monkeypatch, missing):
    def load(name):
        raise RuntimeError("Failure finding libnvrtc.so\n  listdir: ...")

    module = None if missing == "pathfinder" else SimpleNamespace(load_nvidia_dynamic_lib=load)
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", module)
    loader._nvrtc.cache_clear()
    with pytest.raises(InputError, match=r"NVRTC cannot be found; pip install") as error:
        loader.cubin("conv", "float", "sm_90")
    assert "\n" not in str(error.value)


SCRIPT = """
import hashlib
from minibrain.kernels.cuda import loader
print(hashlib.sha256(loader.cubin("reduce", "float", "sm_90")).hexdigest())
"""


def test_two_processes_at_once_fill_one_cache(monkeypatch, tmp_path):
    pytest.importorskip("cuda.pathfinder")
    monkeypatch.setenv("MINIBRAIN_CACHE", str(tmp_path / "cache"))
    command = [sys.executable, "-W", "error", "-c", SCRIPT]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    first, second = (process.communicate()[0] for process in processes)
    assert len(first) > 60
    assert first == second
    (path,) = in_cache(tmp_path)
    content = path.read_bytes()
    assert loader._read(path) == content[loader.DIGEST_SIZE :]
    assert content[loader.DIGEST_SIZE :].startswith(b"\x7fELF")


@pytest.mark.parametrize(
    ("argument", "arrives"),
    [
        (None, bytes(8)),
        (7, np.int64(7)),
        (-7, np.int64(-7)),
        (True, np.int64(1)),
        (np.int32(-7), np.int64(-7)),
        (np.uint8(200), np.int64(200)),
        (2**64 - 1, np.uint64(2**64 - 1)),
        (0.5, np.float64(0.5)),
        (np.float32(0.5), np.float64(0.5)),
    ],
)
def test_numbers_arrive_in_eight_bytes(argument, arrives):
    packed = loader.packed(argument)
    assert isinstance(packed, np.generic)
    assert packed.tobytes() == (arrives if isinstance(arrives, bytes) else arrives.tobytes())


def test_arrays_and_structs_arrive_as_they_are():
    array = standin.asarray(np.zeros(3))
    assert loader.packed(array) is array
    geometry = packed_geometry(conv_geometry((5, 6), (3, 2), (2, 1), ((1, 0), (2, 1)), (1, 3)))
    assert loader.packed(geometry) is geometry
    assert geometry.shape == ()
    numbers = np.frombuffer(geometry.tobytes(), np.int32).reshape(6, 3)
    assert numbers.tolist() == [
        [1, 5, 6], [1, 2, 6], [1, 3, 2], [1, 2, 1], [0, 1, 2], [1, 1, 3]
    ]  # fmt: skip
    dropout = packed_dropout(DropoutSaved(0.5, (2**64 - 1, 2**32 - 1, 3), (1,)))
    assert dropout.nbytes == 32  # as in C: no padding is needed
    assert dropout.tolist() == (2**64 - 1, 0, 2**32 - 1, 3, 2**15, 2)


@pytest.mark.parametrize(
    ("file", "architecture", "why"),
    [
        ("conv", "sm_70", "NVRTC 13.1 compiles for sm_75 to sm_90.*sm_70; install an older one"),
        ("conv", "sm_121", "NVRTC 13.1 compiles for sm_75 to sm_90.*sm_121; install a newer one"),
    ],
)
def test_a_gpu_too_old_or_too_new_is_one_clear_error(compiled, file, architecture, why):
    with pytest.raises(InputError, match=why):
        loader.cubin(file, "float", architecture)
    assert not compiled


def test_the_compiler_knows_what_it_compiles_for():
    pytest.importorskip("cuda.pathfinder")
    known = loader.Compiler().architectures
    assert {80, 90} < set(known)
    assert known == sorted(known)


def test_the_compilers_other_half_is_loaded_first(monkeypatch, tmp_path):
    """NVRTC 13.0 does not find it, where something else has loaded NVRTC before."""
    names = ["libnvrtc-builtins.alt.so.13.0", "libnvrtc-builtins.so.13.0", "libnvrtc.so.13"]
    for name in names:
        (tmp_path / name).touch()
    found = SimpleNamespace(abs_path=str(tmp_path / names[-1]))
    pathfinder = SimpleNamespace(load_nvidia_dynamic_lib=lambda name: found)
    loads = []
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", pathfinder)
    monkeypatch.setattr(loader.ctypes, "CDLL", lambda path: loads.append(Path(path).name))
    loader._nvrtc.__wrapped__()
    assert loads == names[1:]


@pytest.fixture
def pretended(monkeypatch):
    """A pretence of CuPy and of its device; what is loaded, allowed and launched."""
    seen = SimpleNamespace(loads=[], allowed=[], launches=[], obstacle=None)

    class CUDADriverError(RuntimeError):
        pass

    class Module:
        def load(self, code):
            if seen.obstacle:
                raise CUDADriverError(seen.obstacle)
            seen.loads.append(code)

        def get_function(self, kernel):
            def function(*arguments, **options):
                seen.launches.append((kernel, arguments, options))

            function.ptr = kernel
            return function

    seen.device = SimpleNamespace(
        compute_capability="90", id=0, attributes={"MaxSharedMemoryPerBlockOptin": 232448}
    )
    driver = SimpleNamespace(
        CUDADriverError=CUDADriverError,
        funcSetAttribute=lambda *arguments: seen.allowed.append(arguments),
    )
    runtime = SimpleNamespace(driverGetVersion=lambda: 12040)
    cuda = SimpleNamespace(
        Device=lambda number=0: seen.device, Module=Module, driver=driver, runtime=runtime
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    loader._function.cache_clear(), loader._module.cache_clear()
    yield seen
    loader._function.cache_clear(), loader._module.cache_clear()


def test_a_launch_loads_a_file_once_and_in_the_type_of_its_arrays(compiled, pretended):
    loads, launches = pretended.loads, pretended.launches
    x = standin.asarray(np.zeros(3, np.float32))
    short = x.astype(BFLOAT16)
    for array in (x, x, short):
        loader.launch("loss.softmax_sums_1", (2, 3), (32,), [array, 5, 0.5, None], shared_bytes=64)
    loader.launch("loss.finish_loss", (1,), (1,), [x])
    assert [code.split(b" ")[0] for code in loads] == [b"loss.cu"] * 2
    assert [options[2] for options in compiled] == ["-DREAL=float", "-DREAL=bfloat16"]
    assert all(options[3] == "-arch=sm_90" for options in compiled)
    kernel, (grid, block, arguments), options = launches[0]
    assert (kernel, grid, block, options) == ("softmax_sums_1", (2, 3), (32,), {"shared_mem": 64})
    assert arguments == (x, 5, 0.5, 0)
    pretended.device.id = 1
    loader.launch("loss.finish_loss", (1,), (1,), [x])
    assert len(loads) == 3


def test_a_kernel_may_have_all_shared_memory_from_its_first_launch_on(compiled, pretended):
    """What is allowed never shrinks: a graph goes on launching with what it was recorded with."""
    x = standin.asarray(np.zeros(3, np.float32))
    for shared_bytes in (0, 97536, 66048):
        loader.launch("conv.correlate", (1,), (32,), [x], shared_bytes)
    assert pretended.allowed == [("correlate", 8, 232448)]


def test_a_driver_older_than_the_compiler_is_one_clear_error(compiled, pretended):
    pretended.obstacle = "CUDA_ERROR_NO_BINARY_FOR_GPU"
    expected = (
        r"driver, for CUDA 12\.4, cannot load what NVRTC 13\.1 compiled.*NO_BINARY.*newer driver"
    )
    with pytest.raises(InputError, match=expected):
        loader.launch("loss.finish_loss", (1,), (1,), [standin.asarray(np.zeros(3, np.float32))])
