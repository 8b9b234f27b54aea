"""What RELIABILITY promises of a run: it is killed, stopped, starved and fooled, and loses nothing.

A test marked slow repeats another with the full count. Figures go through record_property to
tests/RELIABILITY.md, see reliability_table.py.
"""

import errno
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
import warnings
from dataclasses import asdict, replace
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_run
from tiny_run import CONFIG, result

from minibrain import cli, experiment, files
from minibrain.data.loader import SliceSamples, VolumeSamples, batches
from minibrain.data.patches import PatchSamples
from minibrain.data.split import Split
from minibrain.errors import InputError
from minibrain.models import AttentionUNet, UNet
from minibrain.runs import checkpoint, fitting
from minibrain.runs.fitting import Trainer
from minibrain.runs.interruption import Interrupted, Interruption
from minibrain.runs.run_folder import RunFolder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and locks as POSIX has them")


@pytest.fixture(scope="module")
def cases():
    """Seven cases of noise."""
    random, shape = np.random.default_rng(0), (8, 8, 8)
    return [
        SimpleNamespace(
            name=f"CASE_{number}",
            image=random.standard_normal((*shape, 4), np.float32),
            label=random.integers(0, 4, shape, np.uint8),
            geometry=SimpleNamespace(prepared_shape=shape),
        )
        for number in range(7)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with the tiny task, prepared, and an uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs")
    tiny_run.write_data(folder / "task")
    with pytest.MonkeyPatch.context() as patch:
        tiny_run.install(patch.setattr)
        experiment.run(replace(CONFIG, data=str(folder / "task"), output=str(folder / "whole")))
    return folder


@pytest.fixture
def tiny(monkeypatch):
    tiny_run.install(monkeypatch.setattr)


class Stopping(Interruption):
    """Interrupts at the check with a given number; has nothing to do with signals."""

    def __init__(self, at):
        super().__init__()
        self.at, self.checks = at, 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def check(self):
        self.checks += 1
        if self.checks == self.at:
            raise Interrupted("interrupted by the test", signal.SIGTERM)


# Stop anywhere, go on

NETWORKS = {
    "3D": (partial(UNet, 3, 4, 4, norm="batch"), VolumeSamples, {}),
    "2D": (
        partial(UNet, 2, 2, 4, norm="batch"),
        partial(SliceSamples, every=5, channels=(0, 2)),
        {"channels": (0, 2)},
    ),
    "patches": (partial(UNet, 3, 4, 4), partial(PatchSamples, patch_size=(4, 8, 8)), {}),
    "attention": (partial(AttentionUNet, 3, 4, 4), VolumeSamples, {}),
}


def worse_and_worse(config, model, cases):
    """The validation loss with its sign changed: as training goes well, the schedule has work."""
    scores = experiment.validate(config, model, cases)
    return scores | {"validation_loss": -scores["validation_loss"]}


def train(kind, cases, path, interruption, monkeypatch, resume=False):
    """Train in the folder; returns how many checks there were."""
    make, samples, options = NETWORKS[kind]
    config = replace(CONFIG, **options)
    monkeypatch.setattr(fitting, "Interruption", lambda: interruption)
    model = make(channels=(2, 3), dropout=0.2, seed=1)
    with RunFolder.reopen(path) if resume else RunFolder.claim(str(path), "x") as folder:
        folder.start(asdict(config), Split(("a",), ("b",), ("c",)))
        trainer = Trainer(
            asdict(config),
            "data",
            model,
            samples(cases[:5]),
            partial(worse_and_worse, config, model),
            cases[5:7],
            folder,
        )
        trainer.restore()
        trainer.fit()
    return interruption.checks


@pytest.mark.parametrize("kind", NETWORKS)
def test_stopped_at_every_iteration_and_resumed(
    kind, cases, tmp_path, tiny, monkeypatch, record_property
):
    """Between any two steps, before validation and in it: nobody can tell that it was stopped."""
    checks = train(kind, cases, tmp_path / "whole", Stopping(0), monkeypatch)
    assert checks > 3 * 3 + 3 * 2
    expected = result(tmp_path / "whole")
    for at in range(1, checks + 1):
        path = tmp_path / f"stopped-{at}"
        with pytest.raises(Interrupted, match=f"--resume {path}"):
            train(kind, cases, path, Stopping(at), monkeypatch)
        train(kind, cases, path, Stopping(0), monkeypatch, resume=True)
        assert result(path) == expected, f"after a stop at check {at}"
        shutil.rmtree(path)
    record_property("figure", f"{kind}: {checks} of {checks} stops bit-equal")


def test_stopped_again_and_again(cases, tmp_path, tiny, monkeypatch):
    """Two steps at a time."""
    train("3D", cases, tmp_path / "whole", Stopping(0), monkeypatch)
    resume = False
    while True:
        try:
            train("3D", cases, tmp_path / "run", Stopping(3), monkeypatch, resume)
            break
        except Interrupted:
            resume = True
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_saving_by_the_clock_changes_nothing(cases, tmp_path, tiny, monkeypatch):
    train("3D", cases, tmp_path / "whole", Stopping(0), monkeypatch)
    saved, save = [], Trainer.save
    monkeypatch.setattr(fitting, "SECONDS_BETWEEN_SAVES", 0)
    monkeypatch.setattr(Trainer, "save", lambda self, **o: (saved.append(1), save(self, **o)))
    train("3D", cases, tmp_path / "often", Stopping(0), monkeypatch)
    assert len(saved) == 3 * 3 + 3
    assert result(tmp_path / "often") == result(tmp_path / "whole")


def test_more_epochs_later_are_as_more_epochs_at_once(data, tmp_path, tiny):
    task = str(data / "task")
    experiment.run(replace(CONFIG, data=task, output=str(tmp_path / "run"), epochs=1))
    experiment.resume(str(tmp_path / "run"), epochs=3)
    assert result(tmp_path / "run") == result(data / "whole")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["epochs"] == 3


@pytest.mark.parametrize("taken", [0, 1, 3, 4])
def test_an_epoch_goes_on_where_it_was(taken, cases):
    def drawn(first):
        options = {"seed": 1, "epoch": 2, "training": True, "first": first}
        return [(b.names, b.images.tobytes()) for b in batches(VolumeSamples(cases), 2, **options)]

    assert drawn(taken) == drawn(0)[taken:]


# Other data, another configuration, another machine


@pytest.fixture
def stopped(data, tmp_path, tiny, monkeypatch):
    """A run that was stopped in its second epoch."""
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "Interruption", lambda: Stopping(8))
        with pytest.raises(Interrupted):
            experiment.run(replace(CONFIG, data=str(data / "task"), output=str(path)))
    return path


def rewrite(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def test_a_resumed_run_is_the_whole_run(stopped, data, recwarn):
    experiment.resume(str(stopped))
    assert result(stopped) == result(data / "whole")
    assert not [str(w.message) for w in recwarn if "last bits" in str(w.message)]


@pytest.mark.parametrize(
    "change",
    [{"learning_rate": 0.1}, {"batch_size": 3}, {"network": "brain_3d_small"}, {"seed": 5}],
)
def test_another_configuration_is_refused(change, stopped):
    rewrite(stopped / "config.json", **change)
    (name,) = change
    with pytest.raises(InputError, match=f"{name} is|another network"):
        experiment.resume(str(stopped))


def test_a_run_that_did_not_know_an_option_yet_had_its_default(data, tmp_path, tiny, monkeypatch):
    path = tmp_path / "run"

    def older(config):
        return {name: value for name, value in asdict(config).items() if name != "repair_nonfinite"}

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "Interruption", lambda: Stopping(8))
        patch.setattr(experiment, "asdict", older)
        with pytest.raises(Interrupted):
            experiment.run(replace(CONFIG, data=str(data / "task"), output=str(path)))
    rewrite(path / "config.json", repair_nonfinite=True)
    with pytest.raises(InputError, match=r"repair_nonfinite is true, but .* trained with false"):
        experiment.resume(str(path))
    rewrite(path / "config.json", repair_nonfinite=False)
    experiment.resume(str(path))
    assert result(path) == result(data / "whole")


@pytest.mark.parametrize(
    "change",
    [{"epochs": "3"}, {"seed": None}, {"channels": ["a"]}, {"patch_size": "big"}, {"data": 5}],
)
def test_a_configuration_of_other_types_is_refused(change, stopped):
    rewrite(stopped / "config.json", **change)
    (name,) = change
    with pytest.raises(InputError, match=rf"config\.json: cannot be read .*: {name} .* not as exp"):
        experiment.resume(str(stopped))


def test_an_end_that_is_past_is_refused(stopped, capsys):
    """The network of two epochs would be called one of less."""
    experiment.resume(str(stopped), epochs=2)
    with pytest.raises(InputError, match="epochs: got 1, but the run has done 2 already"):
        experiment.resume(str(stopped), epochs=1)
    assert json.loads((stopped / "config.json").read_text())["epochs"] == 2
    experiment.resume(str(stopped), epochs=2)
    assert "trained already, all 2 epochs\n" in capsys.readouterr().out


def test_other_data_is_refused(stopped, data, tmp_path):
    other = shutil.copytree(data / "task", tmp_path / "task")
    shutil.copy(other / "imagesTr" / "BRATS_002.nii.gz", other / "imagesTr" / "BRATS_001.nii.gz")
    rewrite(stopped / "config.json", data=str(other))
    with pytest.raises(InputError, match="cases or their split are not those"):
        experiment.resume(str(stopped))


def test_another_split_is_refused(stopped):
    parts = json.loads((stopped / "splits.json").read_text())
    rewrite(stopped / "splits.json", test=parts["validation"], validation=parts["test"])
    with pytest.raises(InputError, match="cases or their split are not those"):
        experiment.resume(str(stopped))


def test_the_same_data_elsewhere_is_the_same(stopped, data, tmp_path):
    rewrite(stopped / "config.json", data=str(shutil.copytree(data / "task", tmp_path / "moved")))
    moved = stopped.rename(tmp_path / "moved-run")
    experiment.resume(str(moved))
    assert result(moved) == result(data / "whole")


def test_what_changes_the_last_bits_is_said(stopped, monkeypatch):
    describe = fitting.describe_environment
    monkeypatch.setattr(
        fitting, "describe_environment", lambda device: describe(device) | {"NumPy": "9.9"}
    )
    with pytest.warns(UserWarning, match=rf"NumPy is 9\.9, was {np.__version__}: the last bits"):
        experiment.resume(str(stopped))


def test_a_folder_that_is_no_run_is_refused(stopped, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="expected the folder of a run"):
        experiment.resume(str(tmp_path / "empty"))
    for content in ("{", "[]", '{"network": "tiny"}', '{"no": 1}'):
        (stopped / "config.json").write_text(content)
        with pytest.raises(InputError, match="cannot be read as a configuration"):
            experiment.resume(str(stopped))


# Damage on the disk


def test_the_checkpoint_before_is_taken_where_the_last_is_damaged(stopped, data):
    last = stopped / "checkpoints" / "last.npz"
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"last\.npz: cannot be read .* going on from .*previous"):
        experiment.resume(str(stopped))
    assert result(stopped) == result(data / "whole")


def test_what_is_damaged_never_takes_the_place_of_what_is_sound(stopped, monkeypatch):
    """Killed between the two renames of the next save, a run still has a sound checkpoint."""
    last = stopped / "checkpoints" / "last.npz"
    last.write_bytes(b"damaged")
    replace = os.replace

    def fail_after_the_first(source, target):
        if Path(target) == last:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", fail_after_the_first)
        with pytest.warns(UserWarning, match="going on"), pytest.raises(InputError, match="last"):
            experiment.resume(str(stopped))
    checkpoint.describe(stopped / "checkpoints" / "previous.npz")
    assert (stopped / "checkpoints" / "damaged.npz").read_bytes() == b"damaged"


def test_both_damaged_is_one_error(stopped):
    for name in ("last", "previous"):
        (stopped / "checkpoints" / f"{name}.npz").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="going on from"),
        pytest.raises(InputError, match=r"previous\.npz: cannot be read"),
    ):
        experiment.resume(str(stopped))


def test_what_a_kill_leaves_behind_is_removed(stopped):
    leftovers = [stopped / ".metrics.csv.12ab34cd.tmp", stopped / "checkpoints/.last.npz.0.tmp"]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    experiment.resume(str(stopped))
    assert not [leftover for leftover in leftovers if leftover.exists()]


def test_nothing_is_lost_where_a_file_cannot_be_written(
    cases, tmp_path, tiny, monkeypatch, record_property
):
    """Each of the writes of a run fails once; the run goes on after it, or anew, and is whole."""
    fsync, writes = os.fsync, []

    def fail_at(number):
        def failing(descriptor):
            writes.append(descriptor)
            if len(writes) == number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        writes.clear()
        monkeypatch.setattr(files.os, "fsync", failing)

    fail_at(0)
    train("3D", cases, tmp_path / "whole", Stopping(0), monkeypatch)
    count = len(writes)
    for number in range(1, count + 1):
        path = tmp_path / f"run-{number}"
        fail_at(number)
        with pytest.raises(InputError, match=rf"^{path}/\S+: cannot be written: No space left"):
            train("3D", cases, path, Stopping(0), monkeypatch)
        fail_at(0)
        saved = path.exists()  # else it failed before its first checkpoint, and begins again
        train("3D", cases, path, Stopping(0), monkeypatch, resume=saved)
        assert result(path) == result(tmp_path / "whole"), f"write {number}"
    record_property("figure", f"{count} of {count} named, then bit-equal")


def test_a_case_that_vanishes_in_mid_run_is_named_and_training_is_kept(stopped, data, tmp_path):
    cache = stopped.parent / "prepared"
    moved = cache.rename(tmp_path / "elsewhere")
    shutil.copytree(moved, cache)

    def vanish(*_, **__):
        shutil.rmtree(cache, ignore_errors=True)  # the next batch may have been read already
        return train_step(*_, **__)

    train_step, fitting.train_step = fitting.train_step, vanish
    try:
        with pytest.raises(InputError, match=r"\.npy: cannot be read as a prepared array: No such"):
            experiment.resume(str(stopped))
    finally:
        fitting.train_step = train_step
    experiment.resume(str(stopped))
    assert result(stopped) == result(data / "whole")


# Signals, kills, locks: real processes


@pytest.fixture(scope="module")
def processes():
    """Children forked from a server that has everything imported, and no thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny_run", "pytest"])
    with pytest.MonkeyPatch.context() as patch:  # older servers do not see this sys.path
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        yield context


def start(processes, arguments, errors, change=None):
    options = (list(map(str, arguments)), str(errors), *([change] if change else []))
    process = processes.Process(target=tiny_run.run_program, args=options, daemon=True)
    process.start()
    return process


def signal_in_step(numbers, step):
    """Send signals to this process in the middle of a training step."""
    train_step = fitting.train_step

    def interrupted(*arguments, **options):
        loss = train_step(*arguments, **options)
        if arguments[4] == step:
            for number in numbers:
                os.kill(os.getpid(), number)
                time.sleep(0.01)
        return loss

    fitting.train_step = interrupted


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_within_one_step(number, code, processes, data, tmp_path, record_property):
    run, errors = tmp_path / "run", tmp_path / "errors"
    train = ["train", "--network", "tiny", "--data", data / "task", "--output", run]
    process = start(processes, train, errors, partial(signal_in_step, [number], 5))
    process.join(60)
    assert process.exitcode == code
    assert (
        f"interrupted by {number.name}; all is saved: --resume {run} goes on" in errors.read_text()
    )
    with np.load(run / "checkpoints" / "last.npz") as arrays:
        assert arrays["adam/steps"] == 6
    process = start(processes, ["train", "--resume", run], errors)
    process.join(60)
    assert process.exitcode == 0
    assert result(run) == result(data / "whole")
    record_property("figure", f"saved after 1 step, exit {code}, resumed bit-equal")


def test_a_second_signal_ends_at_once(processes, data, tmp_path, record_property):
    run = tmp_path / "run"
    train = ["train", "--network", "tiny", "--data", data / "task", "--output", run]
    both = partial(signal_in_step, [signal.SIGINT, signal.SIGTERM], 5)
    process = start(processes, train, tmp_path / "errors", both)
    process.join(60)
    assert process.exitcode == -signal.SIGTERM
    with np.load(run / "checkpoints" / "last.npz") as arrays:
        assert arrays["adam/steps"] == 4  # of the epoch before: nothing was saved any more
    record_property("figure", "ended in the same step")


def wait_in_step(step):
    train_step = fitting.train_step

    def waiting(*arguments, **options):
        if arguments[4] == step:
            time.sleep(600)
        return train_step(*arguments, **options)

    fitting.train_step = waiting


def test_a_second_run_is_refused_until_the_first_is_killed(
    processes, data, tmp_path, tiny, record_property
):
    run = tmp_path / "run"
    train = ["train", "--network", "tiny", "--data", data / "task", "--output", run]
    process = start(processes, train, tmp_path / "errors", partial(wait_in_step, 5))
    try:
        while not (run / "metrics.csv").exists():
            assert process.is_alive()
            time.sleep(0.01)
        for call in (
            lambda: experiment.resume(str(run)),
            lambda: experiment.run(replace(CONFIG, data=str(data / "task"), output=str(run))),
        ):
            with pytest.raises(InputError, match=rf"run: in use by process {process.pid}$"):
                call()
    finally:
        process.kill()
        process.join(60)
    experiment.resume(str(run))
    assert result(run) == result(data / "whole")
    record_property("figure", "refused naming the pid, lock free after kill -9")


def kill_and_resume(processes, data, tmp_path, kills, seed):
    """Kill runs at random moments until there were enough; each goes on until it is done."""
    chance, killed, runs, whole = random.Random(seed), 0, 0, None
    while killed < kills:
        run, errors = data / f"killed-{seed}-{runs}", tmp_path / "errors"
        train = ["--network", "tiny", "--data", data / "task", "--output", run]
        while True:
            begin, new = time.monotonic(), not (run / "config.json").exists()
            process = start(processes, ["train", *(train if new else ["--resume", run])], errors)
            process.join(chance.uniform(0, whole) if whole and killed < kills else None)
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            killed += 1
            for path in (run / "checkpoints").glob("*.npz"):
                checkpoint.describe(path)  # reads every byte of it
        assert process.exitcode == 0, errors.read_text()
        assert result(run) == result(data / "whole")
        runs += 1
        if new:  # from start to end: so long is a run at present
            whole = time.monotonic() - begin
    return killed, runs


def test_killed_at_random_times(processes, data, tmp_path, record_property):
    killed, runs = kill_and_resume(processes, data, tmp_path, kills=20, seed=0)
    record_property("figure", f"{killed} kills: 0 unreadable, {runs} of {runs} runs bit-equal")


@pytest.mark.slow
def test_killed_at_random_times_often(processes, data, tmp_path, record_property):
    killed, runs = kill_and_resume(processes, data, tmp_path, kills=200, seed=1)
    record_property("figure", f"{killed} kills: 0 unreadable, {runs} of {runs} bit-equal")


def kill_at(number):
    """End this process as kill -9 does, before it waits for the disk or renames for the nth time,
    of a file or a folder."""
    calls = count(1)

    def killed_before(call):
        def wrapper(*arguments):
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments)

        return wrapper

    files.os = SimpleNamespace(**vars(os))
    files.os.fsync, files.os.replace = killed_before(os.fsync), killed_before(os.replace)


def kill_in_writes(numbers, processes, data, tmp_path):
    """Kill runs at these of their writes, and go on; returns how many there were."""
    for done, number in enumerate(numbers):
        run, errors = data / f"{tmp_path.name}-{number}", tmp_path / "errors"
        train = ["train", "--network", "tiny", "--data", data / "task", "--output", run]
        process = start(processes, train, errors, partial(kill_at, number))
        process.join(60)
        if process.exitcode == 0:
            return done
        assert process.exitcode == -signal.SIGKILL
        again = ["train", "--resume", run] if (run / "config.json").exists() else train
        process = start(processes, again, errors)
        process.join(60)
        assert process.exitcode == 0, errors.read_text()
        assert result(run) == result(data / "whole"), f"killed at write {number}"
        assert not [*run.rglob("*.tmp")]
    return len(numbers)


def test_killed_while_the_first_checkpoint_is_written(processes, data, tmp_path, record_property):
    """Config, split and task come first: four calls each, of which the last is the folder's."""
    first = range(10, 18)
    killed = kill_in_writes(first[::3], processes, data, tmp_path)
    record_property("figure", f"{killed} kills around the first checkpoint: bit-equal")


@pytest.mark.slow
def test_killed_at_every_write(processes, data, tmp_path, record_property):
    killed = kill_in_writes(range(1, 1000), processes, data, tmp_path)
    record_property("figure", f"{killed} of {killed} kills: 0 unreadable, bit-equal")


# Numbers that are none


def poison(monkeypatch, steps, value=np.nan):
    """In these calls of train_step one voxel of the batch is no number."""
    train_step, calls = fitting.train_step, []

    def poisoned(model, optimizer, images, *rest, **options):
        calls.append(1)
        if len(calls) in steps:
            images = images.copy()
            images[0, 0] = value
        return train_step(model, optimizer, images, *rest, **options)

    monkeypatch.setattr(fitting, "train_step", poisoned)


@pytest.mark.parametrize("kind", ["3D", "attention"])
def test_a_step_without_finite_loss_is_skipped(kind, cases, tmp_path, tiny, monkeypatch, recwarn):
    warnings.simplefilter("always")
    with monkeypatch.context() as patch:
        poison(patch, {2, 3})
        train(kind, cases, tmp_path / "run", Stopping(0), monkeypatch)
    messages = [str(w.message) for w in recwarn if "step skipped" in str(w.message)]
    assert len(messages) == 2
    assert re.fullmatch(
        r"epoch 1, step 2: loss or gradient is not finite, step skipped: cases CASE_\d, CASE_\d",
        messages[0],
    )
    with np.load(tmp_path / "run" / "checkpoints" / "last.npz") as arrays:
        assert arrays["adam/steps"] == 9 - 2
        assert all(np.isfinite(arrays[name]).all() for name in arrays)


def test_many_in_a_row_are_an_error_and_the_weights_stay(cases, tmp_path, tiny, monkeypatch):
    warnings.simplefilter("ignore")
    poison(monkeypatch, range(4, 100))
    monkeypatch.setattr(fitting, "MOST_SKIPPED", 5)  # across the boundary of an epoch
    with pytest.raises(InputError, match=r"cases CASE.*; 5 in a row, expected a lower learning"):
        train("3D", cases, tmp_path / "run", Stopping(0), monkeypatch)
    with np.load(tmp_path / "run" / "checkpoints" / "last.npz") as arrays:
        assert arrays["adam/steps"] == 3
        assert all(np.isfinite(arrays[name]).all() for name in arrays)


def test_programs_say_it_in_one_line(data, tmp_path, tiny, capsys):
    assert cli.main(["train", "--resume", str(tmp_path / "nowhere")]) == 2
    assert cli.main(["train", "--resume", str(tmp_path), "--seed", "3"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"error: {tmp_path}/nowhere: holds no config.json, expected the folder of a run"
    expected = f"got 3, expected no such option: it stays as in {tmp_path}"
    assert second == f"error: argument --seed: {expected}"
