"""Checkpoints that are cut, flipped, forged, or written to a disk that is full."""

import io
import json
import multiprocessing
import os
import pickle
import struct
import sys
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibrain.errors import InputError
from minibrain.models import UNet
from minibrain.optimizers import Adam
from minibrain.runs import checkpoint
from minibrain.runs.checkpoint import DamagedError, describe, load_training
from minibrain.training import train_step

ABOUT = {"progress": {"epoch": 3}, "data": "§"}


def a_network(seed=0):
    """Adam's state is longer than the 4,096 bytes that zipfile reads, and so checks, at once."""
    network = UNet(2, 1, 2, channels=(2, 10), norm="batch", seed=seed)
    return network, Adam(network.named_parameters(), learning_rate=0.01)


def trained(steps=1):
    network, optimizer = a_network()
    random = np.random.default_rng(0)
    for step in range(steps):
        images = random.standard_normal((2, 4, 4, 1), np.float32)
        train_step(network, optimizer, images, random.integers(0, 2, (2, 4, 4)), step)
    return network, optimizer


def state(network, optimizer):
    arrays = [p.value for p in (network.named_parameters() | network.named_buffers()).values()]
    arrays += [optimizer.mean, optimizer.square]
    return [a.tobytes() for a in arrays], optimizer.steps, optimizer.learning_rate


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "last.npz"
    checkpoint.save(path, *trained(), ABOUT)
    return path.read_bytes()


def loaded(path):
    """The state that a file leads to, or None where it is refused; then nothing has changed."""
    network, optimizer = a_network(seed=1)
    before = state(network, optimizer)
    try:
        about = load_training(path, network, optimizer)
        return state(network, optimizer), about
    except InputError as error:
        message = str(error)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert state(network, optimizer) == before
    return None


def tally(path, damaged_files, truth):
    """How many files were refused, and how many lead to the truth (a bit that nothing reads)."""
    refused = harmless = 0
    for data in damaged_files:
        path.write_bytes(data)
        found = loaded(path)
        assert found in (None, truth), "silently wrong"
        refused += found is None
        harmless += found is not None
    return f"{refused + harmless}: {refused} refused, {harmless} read right, 0 silent"


@pytest.fixture
def truth(written, tmp_path):
    (tmp_path / "whole.npz").write_bytes(written)
    found = loaded(tmp_path / "whole.npz")
    assert found == (state(*trained()), ABOUT)
    return found


def test_flipped_bits(written, truth, tmp_path, record_property):
    def flipped():
        for bit in np.random.default_rng(0).choice(8 * len(written), 1000, replace=False):
            data = bytearray(written)
            data[bit // 8] ^= 1 << bit % 8
            yield bytes(data)

    record_property("figure", tally(tmp_path / "last.npz", flipped(), truth))


def test_truncations(written, truth, tmp_path, record_property):
    lengths = np.random.default_rng(0).choice(len(written), 1000, replace=False)
    found = tally(tmp_path / "last.npz", (written[:length] for length in lengths), truth)
    assert found.startswith("1000: 1000 refused")
    record_property("figure", found)


@given(st.data())
@settings(max_examples=200)
def test_fuzz(tmp_path_factory, written, data):
    path = tmp_path_factory.getbasetemp() / "fuzzed.npz"
    forged = bytearray(written)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(forged)))
        stop = data.draw(st.integers(start, min(len(forged), start + 50)))
        forged[start:stop] = data.draw(st.binary(max_size=50))
    path.write_bytes(forged)
    assert loaded(path) in (None, (state(*trained()), ABOUT))
    with suppress(DamagedError):
        describe(path)


# Forged files


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def npy(array, **options):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asanyarray(array), **options)
    return buffer.getvalue()


def npy_header(text, data=b""):
    header = text.encode() + b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def declared(descr="'<f4'", shape="(2,)", data=b"\0" * 8):
    return npy_header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}", data)


def forged(written, *, drop=(), compression=zipfile.ZIP_STORED, **members):
    """The checkpoint with some members left out, replaced or added."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(written)) as old, zipfile.ZipFile(buffer, "w") as new:
        contents = {name.removesuffix(".npy"): old.read(name) for name in old.namelist()}
        for name, content in (contents | members).items():
            if name not in drop:
                new.writestr(f"{name}.npy", content, compression)
    return buffer.getvalue()


def patched(written, signature, offset, value, which=0):
    """With a field of one of the headers of a kind changed."""
    position = -1
    for _ in range(which + 1):
        position = written.index(signature, position + 1)
    position += offset
    return written[:position] + value + written[position + len(value) :]


WEIGHT = "network/encoder0.conv1.weight"
DIRECTORY, LOCAL = b"PK\x01\x02", b"PK\x03\x04"
HOSTILE = {
    "pickle": lambda w, b: pickle.dumps(b),
    "pickle inside": lambda w, b: forged(w, **{WEIGHT: npy(np.array([b]), allow_pickle=True)}),
    "pickle as about": lambda w, b: forged(w, about=npy(np.array(b), allow_pickle=True)),
    "code in a header": lambda w, b: forged(
        w, **{WEIGHT: npy_header(f"__import__('os').mkdir({str(b.path)!r})")}
    ),
    "zip bomb": lambda w, b: forged(w, **{WEIGHT: bytes(2**28)}, compression=zipfile.ZIP_DEFLATED),
    "about as a bomb": lambda w, b: forged(w, about=b"[" * 2**28, compression=zipfile.ZIP_DEFLATED),
    "4 TB declared": lambda w, b: forged(w, **{WEIGHT: declared(shape="(1099511627776,)")}),
    "4 GB in the directory": lambda w, b: patched(w, DIRECTORY, 20, b"\xf0\xff\xff\xff" * 2),
    "overflowing product": lambda w, b: forged(
        w, **{WEIGHT: declared(shape="(4294967296, 4294967296)")}
    ),
    "negative shape": lambda w, b: forged(w, **{WEIGHT: declared(shape="(-1, -2)")}),
    "object dtype": lambda w, b: forged(w, **{WEIGHT: declared(descr="'|O'")}),
    "structured dtype": lambda w, b: forged(w, **{WEIGHT: declared(descr="[('a', '<f4')]")}),
    "deep header": lambda w, b: forged(w, **{WEIGHT: npy_header("(" * 9000)}),
    "missing key": lambda w, b: forged(w, drop=[WEIGHT]),
    "no about": lambda w, b: forged(w, drop=["about"]),
    "extra key": lambda w, b: forged(w, more=npy(np.zeros(3))),
    "path outside": lambda w, b: forged(w, **{"../../outside": npy(np.zeros(3))}),
    "wrong shape": lambda w, b: forged(w, **{WEIGHT: npy(np.zeros((3, 3, 1, 3), np.float32))}),
    "transposed shape": lambda w, b: forged(w, **{WEIGHT: npy(np.zeros((2, 1, 3, 3), "f4"))}),
    "Fortran order": lambda w, b: forged(
        w, **{WEIGHT: npy(np.asfortranarray(np.zeros((3, 3, 1, 2), "f4")))}
    ),
    "integers": lambda w, b: forged(w, **{WEIGHT: npy(np.zeros((3, 3, 1, 2), np.int32))}),
    "steps of 2.5": lambda w, b: forged(w, **{"adam/steps": npy(np.array(2.5))}),
    "a longer tail": lambda w, b: forged(
        w, **{WEIGHT: npy(np.zeros((3, 3, 1, 2), "f4")) + b"hidden"}
    ),
    "deep JSON": lambda w, b: forged(w, about=npy(np.frombuffer(b"[" * 10**6, np.uint8))),
    "no JSON": lambda w, b: forged(w, about=npy(np.frombuffer(b"\xff\xfe{", np.uint8))),
    "encrypted": lambda w, b: patched(w, DIRECTORY, 8, b"\x01"),
    "another name inside": lambda w, b: patched(w, LOCAL, 30, b"NETWORK"),
    "overlapping": lambda w, b: patched(w, DIRECTORY, 42, bytes(4), which=1),
    "about is a list": lambda w, b: forged(w, about=npy(np.frombuffer(b"[1]", np.uint8))),
    "a name of control characters": lambda w, b: forged(w, **{"\x1b[31m\n": npy(np.zeros(3))}),
    "20,000 members": lambda w, b: forged(w, **{f"m{i}": b"" for i in range(20_000)}),
    "twice": lambda w, b: forged(w, **{WEIGHT + ".npy": npy(np.zeros(3))}),
}


@pytest.fixture(params=HOSTILE)
def hostile(request, written, tmp_path):
    path = tmp_path / "hostile.npz"
    path.write_bytes(HOSTILE[request.param](written, Bomb(tmp_path / "executed")))
    return path


def test_a_forged_file_is_refused(hostile, tmp_path, record_property):
    tracemalloc.start()
    try:
        assert loaded(hostile) is None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200e6
    assert not (tmp_path / "executed").exists()
    record_property("figure", f"{peak / 1e6:.0f} MB")


def test_describing_a_forged_file_executes_nothing(hostile, tmp_path):
    with suppress(DamagedError):
        describe(hostile)
    assert not (tmp_path / "executed").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "nothing"):
        assert loaded(path) is None


def test_a_description_obeys_nothing_that_a_file_says(tmp_path):
    about = {"progress": {"best": "\x1b[31mred\nepoch 9"}, "\x1b]0;title": 1}
    checkpoint.save(tmp_path / "last.npz", *trained(), about)
    assert all(line.isprintable() for line in describe(tmp_path / "last.npz").splitlines())


def test_a_description_says_what_is_inside(written, tmp_path):
    (tmp_path / "last.npz").write_bytes(written)
    text = describe(tmp_path / "last.npz")
    for words in ("last.npz", "epoch", "§", WEIGHT, "(3, 3, 1, 2)", "float32"):
        assert words in text


# A full disk


def save_with_limits(folder, sizes, answers):
    """For a process of its own: save again under limits on the size of a file."""
    import resource

    path = Path(folder, "last.npz")
    for size in sizes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            checkpoint.save(path, *trained(2), {}, keep=Path(folder, "previous.npz"))
            answers.send("saved")
        except InputError as error:
            answers.send(str(error))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of file size as Linux has them")
def test_full_disk_at_50_offsets(written, truth, tmp_path, record_property):
    path = tmp_path / "last.npz"
    path.write_bytes(written)
    sizes = np.linspace(0, len(written) - 100, 50).astype(int).tolist()
    receiving, sending = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=save_with_limits, args=(tmp_path, sizes, sending))
    process.start()
    for size in sizes:
        assert receiving.poll(60)
        answer = receiving.recv()
        assert answer == f"{path}: cannot be written: File too large", f"after {size} bytes"
        assert loaded(path) == truth
    process.join(60)
    assert process.exitcode == 0
    assert [p.name for p in tmp_path.iterdir() if p != tmp_path / "whole.npz"] == ["last.npz"]
    record_property("figure", f"{len(sizes)} offsets: 0 lost, the error names the path")


def test_the_file_before_is_kept(written, truth, tmp_path):
    path, previous = tmp_path / "last.npz", tmp_path / "previous.npz"
    for steps in (1, 2, 3):
        checkpoint.save(path, *trained(steps), ABOUT, keep=previous)
    assert loaded(path)[0] == state(*trained(3))
    assert loaded(previous)[0] == state(*trained(2))
    assert json.loads(json.dumps(loaded(path)[1])) == ABOUT
