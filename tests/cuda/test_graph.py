"""A training step as a CUDA graph: recorded by the stand-in, its kernels run on the CPU."""

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import standin
from compare import BFLOAT16, on_device, random
from emulator import emulated
from test_cuda_training import to_numpy

from minibrain import kernels, training
from minibrain.errors import InputError
from minibrain.kernels.cuda import optimizers
from minibrain.kernels.cuda.graph import Recording
from minibrain.models import UNet
from minibrain.optimizers import Adam
from minibrain.runs.cost import measured, read_cost
from minibrain.runs.fitting import Trainer
from minibrain.training import RepeatedStep, train_step

LEARNING_RATES = (1e-2, 1e-2, 1e-2, 3e-3, 3e-3, 3e-3, 1e-3)


NETWORKS = {
    "small": {"rank": 1, "channels": (4, 6), "norm": "instance", "dropout": 0.3},
    "batch norm": {"rank": 2, "channels": (4, 6), "norm": "batch", "dropout": 0.1},
    "bfloat16": {"rank": 2, "channels": (16, 16), "dropout": 0.3},
}
SIZES = {"small": (8,), "batch norm": (8, 6), "bfloat16": (4, 2)}


def network(name):
    dtype = BFLOAT16 if name == "bfloat16" else np.float32
    return UNet(in_channels=4, classes=3, seed=5, dtype=dtype, **NETWORKS[name])


def batch(name="small"):
    rng = np.random.default_rng(2)
    size = 2, *SIZES[name]
    return random(rng, (*size, 4)), rng.integers(0, 3, size).astype(np.uint8)


class Run:
    """A network on the stand-in's device, and what its training steps need."""

    def __init__(self, step, name="small"):
        self.step, self.name = step, name
        self.model = network(name)
        for parameter in (self.model.named_parameters() | self.model.named_buffers()).values():
            parameter.value = on_device(parameter.value)
        self.optimizer = Adam(self.model.named_parameters())

    def take(self, images, labels, **options):
        count = self.optimizer.steps
        return self.step(self.model, self.optimizer, images, labels, count, **options)

    def steps(self, clip_norm=None):
        """One batch has a voxel that is no number, one is smaller than the others."""
        losses = []
        for number, learning_rate in enumerate(LEARNING_RATES):
            images, labels = batch(self.name)
            images = images + number
            if number == 2:
                images[0, 0, 0] = np.nan
            if number == 4:
                images, labels = images[:1], labels[:1]
            self.optimizer.learning_rate = learning_rate
            losses.append(self.take(images, labels, clip_norm=clip_norm))
        return losses

    def bits(self):
        """Of all that a step changes."""
        buffers = [buffer.value for buffer in self.model.named_buffers().values()]
        return [to_numpy(array).tobytes() for array in (*self.optimizer.arrays(), *buffers)]


def check_repeated(name="small", clip_norm=None, schedule=0, edit=None):
    """Steps that are replayed have the bits of steps that are not."""
    plain, repeated = Run(train_step, name), Run(RepeatedStep(), name)
    with emulated(schedule):
        losses = plain.steps(clip_norm)
    with emulated(schedule, edit):
        assert np.array_equal(losses, repeated.steps(clip_norm), equal_nan=True)
    assert plain.bits() == repeated.bits()
    assert np.isnan(losses[2])
    assert np.isfinite(losses[:2] + losses[3:]).all()
    assert plain.optimizer.steps == len(losses) - 1
    assert repeated.step.recording.graph.work


@pytest.mark.parametrize(
    ("name", "clip_norm"), [("small", None), ("batch norm", 0.05), ("bfloat16", 0.05)]
)
def test_replays_have_the_bits_of_plain_steps(monkeypatch, name, clip_norm):
    calls = []
    take_step = training.take_step
    monkeypatch.setattr(
        training, "take_step", lambda *arguments: calls.append(1) or take_step(*arguments)
    )
    check_repeated(name, clip_norm)
    assert len(calls) == len(LEARNING_RATES) + 3  # to run, to record, and for the smaller batch


def test_the_mask_of_dropout_differs_from_replay_to_replay():
    run = Run(RepeatedStep())
    with emulated():
        run.optimizer.learning_rate = 0.0
        losses = [run.take(*batch()) for _ in range(4)]
    assert len(set(losses)) == 4


@pytest.mark.parametrize("given", ["int", "on the device"])
def test_the_batch_and_its_number_may_lie_on_the_device(given):
    plain, repeated = Run(train_step), Run(RepeatedStep())
    images, labels = batch()
    with emulated():
        for step in (7, 8, 9):
            number = step if given == "int" else standin.asarray(np.uint32(step))
            want = train_step(plain.model, plain.optimizer, images, labels, step)
            moved = on_device(images), on_device(labels)
            assert repeated.step(repeated.model, repeated.optimizer, *moved, number) == want
    assert plain.bits() == repeated.bits()


def test_a_run_on_a_gpu_repeats_its_steps():
    plain, run = Run(train_step), Run(None)
    images, labels = batch()
    config = {"learning_rate": 1e-3, "clip_norm": 0.1, "halve_on_plateau": False, "device": "cpu"}
    trainer = Trainer(config, "", run.model, None, None, None, None)
    with emulated():
        for _ in range(3):
            trainer._step(SimpleNamespace(images=images, labels=labels, names=["a", "b"]))
        losses = [plain.take(images, labels, clip_norm=0.1) for _ in range(3)]
    assert trainer.progress.losses == losses
    assert trainer.repeated_step.recording.graph


def test_on_the_host_nothing_is_recorded():
    images, labels = batch()
    losses = []
    for step in (train_step, RepeatedStep()):
        model = network("small")
        optimizer = Adam(model.named_parameters())
        losses.append([step(model, optimizer, images, labels, number) for number in range(3)])
    assert losses[0] == losses[1]
    assert step.recording is None


def test_what_waits_for_the_device_is_not_recorded_and_one_warning_says_why(monkeypatch):
    plain, repeated = Run(train_step), Run(RepeatedStep())
    take_step = training.take_step

    def waiting(*arguments):
        loss = take_step(*arguments)
        float(loss)
        return loss

    with emulated():
        want = plain.steps()
        monkeypatch.setattr(training, "take_step", waiting)
        with pytest.warns(UserWarning, match=r"CUDA graph \(the stream is capturing") as caught:
            losses = repeated.steps()
    assert len(caught) == 1
    assert np.array_equal(losses, want, equal_nan=True)
    assert plain.bits() == repeated.bits()
    assert standin.thread.recorded is None


def test_who_listens_to_operations_hears_all_of_them(monkeypatch):
    heard = []
    run = Run(RepeatedStep())
    with emulated():
        run.take(*batch())
        monkeypatch.setattr(kernels, "listeners", [heard.append])
        for _ in range(2):
            heard.clear()
            run.take(*batch())
            assert sum(call.name == "adam_inplace" for call in heard) == 1
        assert not run.step.recording.graph
        monkeypatch.setattr(kernels, "listeners", [])
        run.take(*batch())
        assert run.step.recording.graph


def test_arrays_that_take_the_place_of_others_are_recorded_anew():
    plain, repeated = Run(train_step), Run(RepeatedStep())
    with emulated():
        for step in range(6):
            assert plain.take(*batch()) == repeated.take(*batch())
            if step == 2:
                for run in (plain, repeated):
                    for parameter in run.optimizer.parameters:
                        parameter.value = parameter.value.copy()
    assert plain.bits() == repeated.bits()


def test_memory_of_a_recording_is_its_own_but_for_tables_that_outlive_it():
    run, pools, streams = Run(RepeatedStep()), [], []
    optimizers._table.cache_clear()
    with emulated(), pytest.MonkeyPatch.context() as patch:
        empty, asarray = standin.empty, standin.asarray

        def asked(function):
            def ask(*arguments):
                pools.append(standin.thread.allocator.__self__)
                streams.append(standin.thread.stream)
                return function(*arguments)

            return ask

        patch.setattr(standin, "empty", asked(empty))
        for _ in range(3):
            run.take(*batch())
        assert {*pools} == {run.step.recording.pool}
        assert {*streams} == {run.step.recording.stream}
        pools.clear()
        optimizers._table.cache_clear()
        patch.setattr(standin, "asarray", asked(asarray))
        with standin.using_allocator(run.step.recording.pool.malloc):
            optimizers._table_of(*[[p.grad for p in run.optimizer.parameters]] * 2)
        assert pools == [standin.get_default_memory_pool()]
    assert standin.thread.stream is standin.NULL


def test_its_pool_gives_no_memory_back():
    """What a graph uses is free, as far as the pool knows."""
    freed = []

    class Memory:
        def __init__(self, size):
            self.size = size

        def __del__(self):
            freed.append(self.size)

    cuda = SimpleNamespace(
        Memory=Memory,
        MemoryPointer=lambda memory, offset: memory,
        MemoryPool=standin.MemoryPool,
        Stream=standin.Stream,
    )
    recording = Recording(SimpleNamespace(cuda=cuda))
    for size in (512, 1024):
        assert recording.pool.malloc(size).size == size
    assert not freed
    del recording
    assert sorted(freed) == [512, 1024]


def test_what_recordings_keep_counts_as_memory_that_a_run_took(tmp_path, monkeypatch):
    cupy = SimpleNamespace(get_default_memory_pool=standin.get_default_memory_pool)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(standin.MemoryPool, "total_bytes", lambda pool: 3_000)
    with measured(tmp_path / "cost.json", "cuda"):
        recordings = [Recording(standin) for _ in range(2)]
    assert read_cost(tmp_path / "cost.json")["peak_memory_bytes"] == 9_000
    del recordings


def test_it_runs_out_only_when_the_other_pool_has_nothing_left():
    """CuPy's allocation fails with the error of CUDA; its pools make a MemoryError of that."""
    taken = {"by others": 3, "by recordings": 0}

    class CUDARuntimeError(RuntimeError):
        pass

    def memory(size):
        if sum(taken.values()) + size > 4:
            raise CUDARuntimeError
        taken["by recordings"] += size

    others = SimpleNamespace(free_all_blocks=lambda: taken.update({"by others": 0}))
    cuda = SimpleNamespace(
        Memory=memory,
        MemoryPointer=lambda memory, offset: memory,
        MemoryPool=standin.MemoryPool,
        Stream=standin.Stream,
        runtime=SimpleNamespace(CUDARuntimeError=CUDARuntimeError),
    )
    xp = SimpleNamespace(cuda=cuda, get_default_memory_pool=lambda: others)
    pool = Recording(xp).pool
    pool.malloc(1)
    assert taken["by others"]
    pool.malloc(3)
    assert taken == {"by others": 0, "by recordings": 4}
    with pytest.raises(CUDARuntimeError):
        pool.malloc(1)


@pytest.mark.parametrize("lasting", [False, True])
def test_too_little_memory_while_recording(lasting):
    """The step is taken without; if that fails too, one error says what to change."""
    plain, repeated = Run(train_step), Run(RepeatedStep())
    with emulated(), pytest.MonkeyPatch.context() as patch:
        enough = standin.empty

        def empty(shape, dtype):
            if standin.thread.recorded or (lasting and repeated.step.recording.obstacle):
                raise MemoryError("Out of memory allocating 1,024 bytes (allocated so far: 2 GB).")
            return enough(shape, dtype)

        want = [plain.take(*batch()) for _ in range(2)]
        patch.setattr(standin, "empty", empty)
        assert repeated.take(*batch()) == want[0]
        expected = pytest.raises(InputError, match=r"\(2, 8, 4\).*1,024 bytes.*smaller")
        with expected if lasting else nullcontext(), pytest.warns(UserWarning, match="1,024 bytes"):
            assert repeated.take(*batch()) == want[1]
