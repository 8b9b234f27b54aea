"""The folder of a run belongs to one run."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from minibrain.data.decathlon import Task
from minibrain.data.split import Split
from minibrain.errors import InputError
from minibrain.runs.run_folder import RunFolder

PARTS = Split(("a",), ("b",), ("c",))


def test_runs_that_start_at_once_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool, ExitStack() as claimed:
        folders = list(pool.map(lambda _: RunFolder.claim(None, "net"), range(8)))
        for folder in folders:
            claimed.enter_context(folder)
    names = sorted(str(folder.path) for folder in folders)
    assert names == [os.path.join("runs", f"net-{number}") for number in range(1, 9)]


def test_a_named_folder_goes_to_the_first_who_claims_it(tmp_path):
    (tmp_path / "run").mkdir()  # an empty one may be there
    with RunFolder.claim(str(tmp_path / "run"), "net") as folder:
        for started in (False, True):
            if started:
                folder.start({}, PARTS)
            with pytest.raises(InputError, match=rf"run: in use by process {os.getpid()}$"):
                RunFolder.claim(str(tmp_path / "run"), "net")
        folder.last.touch()
    with pytest.raises(InputError, match="expected a new or empty folder"):
        RunFolder.claim(str(tmp_path / "run"), "net")


def test_a_used_folder_is_refused_and_not_touched(tmp_path):
    (tmp_path / "precious.txt").write_text("data")
    with pytest.raises(InputError, match="already there, expected a new or empty folder"):
        RunFolder.claim(str(tmp_path), "net")
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize("started", [False, True])
def test_a_run_without_a_checkpoint_leaves_no_folder(started, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for output in (str(tmp_path / "a" / "b" / "run"), None):
        with RunFolder.claim(output, "net") as folder:
            assert folder.path.is_dir()
            if started:
                folder.start({"seed": 1}, PARTS)
                folder.write_task(Task(tmp_path, "a", ("b",), ("c", "d"), (), ()))
                folder.cost.write_text("{}")
        assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["checkpoints/best.npz", "precious.txt"])
def test_a_run_leaves_its_folder_where_there_is_more(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with RunFolder.claim(None, "net") as beside, RunFolder.claim(None, "net") as folder:
        beside.start({}, PARTS)
        folder.start({}, PARTS)
        (folder.path / name).touch()
    left = {"config.json", "splits.json", ".lock", "checkpoints", "predictions", "background"}
    assert {path.name for path in folder.path.iterdir()} == left | {Path(name).parts[0]}
    assert not beside.path.exists()


def test_a_run_that_was_killed_before_it_had_a_checkpoint_can_be_resumed(tmp_path):
    folder = RunFolder.claim(str(tmp_path / "run"), "net")
    folder.start({}, PARTS)
    folder._lock.release()  # as a process that is killed does
    with RunFolder.reopen(str(folder.path)):
        pass
    assert folder.config.is_file()


def test_the_lock_goes_with_the_process_however_it_ends(tmp_path):
    program = (
        "import os, signal, sys; from minibrain.runs.run_folder import RunFolder\n"
        "folder = RunFolder.claim(sys.argv[1], 'net')\n"
        "print(os.getpid(), flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.readline()
        with pytest.raises(InputError, match=f"in use by process {process.pid}$"):
            RunFolder.claim(str(tmp_path / "run"), "net")
        process.kill()
    with RunFolder.claim(str(tmp_path / "run"), "net"):
        pass


@pytest.mark.parametrize("output", ["afile", "afile/x", "/proc/x", "/proc/x/y"])
def test_a_folder_that_cannot_be_is_an_input_error(output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").write_text("")
    with pytest.raises(InputError, match=r"^(afile|/proc/x).*: cannot be (made|written)"):
        RunFolder.claim(output, "net")


def test_a_runs_folder_that_cannot_be_is_an_input_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(tmp_path / "nowhere" / "deeper")
    with pytest.raises(InputError, match="cannot be made"):
        RunFolder.claim(None, "net")
