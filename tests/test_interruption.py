"""Signals that are held back."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minibrain import cli
from minibrain.files import replacing
from minibrain.runs.interruption import Interrupted, Interruption
from minibrain.verbs import checks

REPOSITORY = Path(__file__).parents[1]


def test_a_signal_waits_for_the_next_check(capfd):
    before, done = signal.getsignal(signal.SIGTERM), []

    def work():
        with Interruption() as held:
            for item in held.between(range(3)):
                if item == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                done.append(item)

    with pytest.raises(Interrupted, match="interrupted by SIGTERM") as error:
        work()
    assert done == [0, 1]
    assert error.value.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert "a second signal ends at once" in capfd.readouterr().err


def test_a_signal_after_the_last_check_is_not_forgotten():
    with pytest.raises(Interrupted), Interruption():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_error_is_not_hidden():
    def work():
        with Interruption():
            os.kill(os.getpid(), signal.SIGINT)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()


def test_a_signal_that_is_ignored_stays_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as held:
            os.kill(os.getpid(), signal.SIGINT)
            held.check()
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_can_train_too():
    def train():
        with Interruption() as held:
            held.check()
        done.append(True)

    done = []
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert done


def test_a_program_that_is_told_to_end_cleans_up_and_says_so(monkeypatch, capsys, tmp_path):
    """At any time, not in training alone."""
    before, path = signal.getsignal(signal.SIGTERM), tmp_path / "file"

    def work(**_):
        with replacing(path):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(checks, "doctor", work)
    assert cli.main(["doctor"]) == 143
    assert capsys.readouterr().err == "interrupted by SIGTERM\n"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    "program", ["run_module('minibrain', ", "run_path('examples/train_3d.py', "]
)
def test_a_signal_while_modules_are_imported_is_no_traceback(program):
    text = f"""
import os, runpy, signal, sys

class Finder:
    def find_spec(name, path, target):
        if name == "numpy":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder)
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.{program}run_name="__main__")
"""
    found = subprocess.run(
        [sys.executable, "-c", text], cwd=REPOSITORY, capture_output=True, timeout=60
    )
    assert (found.returncode, found.stdout, found.stderr) == (130, b"", b"")


def test_other_threads_can_call_programs_too():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(cli.main, ["doctor", "/nowhere"]).result() == 2
