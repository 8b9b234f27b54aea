"""Batches: what is in them, in which order, and what the reading thread leaves behind."""

import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import standin
from hypothesis import given
from hypothesis import strategies as st

from minibrain import arrays
from minibrain.data import loader
from minibrain.data.augment import NOISE_STD, add_noise_inplace, flip
from minibrain.data.loader import SliceSamples, VolumeSamples, batches
from minibrain.data.patches import PatchSamples
from minibrain.errors import InputError


def case(number, *shape, channels=4):
    random = np.random.default_rng(number)
    image = random.standard_normal((*shape, channels)).astype(np.float32)
    label = random.integers(1, 4, shape, dtype=np.uint8)
    image.flags.writeable = label.flags.writeable = False  # as mapped arrays are
    geometry = SimpleNamespace(prepared_shape=shape)
    return SimpleNamespace(name=f"CASE_{number}", image=image, label=label, geometry=geometry)


def volumes(count, shape=(4, 3, 5)):
    return VolumeSamples([case(i, *shape) for i in range(count)])


class BrokenSamples(VolumeSamples):
    """The case CASE_2 cannot be read."""

    def read(self, index):
        if index == 2:
            raise OSError("disk on fire")
        return super().read(index)


def augmented(image, label, **key):
    image, label = flip(image, label, **key)
    image = image.copy()
    add_noise_inplace(image, NOISE_STD, **key)
    return image, label


def joined(threads):
    for thread in threads:
        thread.join(timeout=10)
    return not any(thread.is_alive() for thread in threads)


def reading_threads():
    return [t for t in threading.enumerate() if t.name.startswith("minibrain-batch")]


def test_no_two_draws_of_a_run_share_a_key(monkeypatch):
    """Order, patches, flips and noise: what two of them shared would be correlated."""
    samples = PatchSamples([case(i, 8, 8, 8) for i in range(3)], (4, 4, 4))
    first_bytes, default, philox = [], np.random.default_rng, np.random.Philox

    def noted_default(key):
        first_bytes.append(default(key).bytes(16))
        return default(key)

    def noted_philox(**key):
        first_bytes.append(philox(**key).random_raw(2).tobytes())
        return philox(**key)

    monkeypatch.setattr(np.random, "default_rng", noted_default)
    monkeypatch.setattr(np.random, "Philox", noted_philox)
    for epoch in range(3):
        list(batches(samples, 2, seed=0, epoch=epoch, training=True))
    assert len(set(first_bytes)) == len(first_bytes) == 3 * (1 + 3 * len(samples))


def test_volumes_are_the_cases_themselves():
    cases = [case(0, 4, 3, 5), case(1, 2, 2, 2)]
    samples = VolumeSamples(cases)
    assert len(samples) == 2
    image, label, name = samples.read(1)
    assert image is cases[1].image
    assert label is cases[1].label
    assert name == samples.name(1) == "CASE_1"


def test_slices_are_every_kth_of_each_case_with_the_chosen_channels():
    cases = [case(0, 4, 3, 17), case(1, 4, 3, 8), case(2, 4, 3, 1)]
    samples = SliceSamples(cases, 8, (0, 2))
    chosen = [(0, 0), (0, 8), (0, 16), (1, 0), (2, 0)]
    assert len(samples) == len(chosen)
    for index, (number, z) in enumerate(chosen):
        image, label, name = samples.read(index)
        np.testing.assert_array_equal(image, cases[number].image[:, :, z, [0, 2]])
        np.testing.assert_array_equal(label, cases[number].label[:, :, z])
        assert name == samples.name(index) == f"CASE_{number}"


def test_the_largest_shape_is_known_without_reading_a_voxel():
    cases = [case(0, 4, 3, 17), case(1, 5, 2, 8)]
    volumes, slices = VolumeSamples(cases), SliceSamples(cases, 8, (0, 2))
    for unread in cases:
        del unread.image, unread.label
    assert volumes.largest_shape == (5, 3, 17)
    assert slices.largest_shape == (5, 3)


def test_slice_choices_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="every: got 0"):
        SliceSamples([case(0, 2, 2, 2)], 0, (0, 2))
    with pytest.raises(InputError, match="case CASE_0 has only 2"):
        SliceSamples([case(0, 2, 2, 2, channels=2)], 8, (0, 2))
    with pytest.raises(InputError, match="channels"):
        SliceSamples([case(0, 2, 2, 2)], 8, (-1,))


def test_evaluation_takes_the_samples_as_they_are_in_their_order():
    samples = volumes(5)
    got = list(batches(samples, 2, seed=1, epoch=9, training=False))
    assert [batch.names for batch in got] == [
        ("CASE_0", "CASE_1"),
        ("CASE_2", "CASE_3"),
        ("CASE_4",),
    ]
    expected = np.stack([case.image for case in samples.cases])
    np.testing.assert_array_equal(np.concatenate([batch.images for batch in got]), expected)
    expected = np.stack([case.label for case in samples.cases])
    np.testing.assert_array_equal(np.concatenate([batch.labels for batch in got]), expected)
    assert got[0].images.dtype == np.float32
    assert got[0].labels.dtype == np.uint8


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**32), st.integers(0, 100))
def test_training_shows_every_sample_once_in_batches_of_the_right_size(count, size, seed, epoch):
    epoch_batches = batches(volumes(count, (1, 2, 1)), size, seed=seed, epoch=epoch, training=True)
    assert len(epoch_batches) == -(-count // size)
    names = [batch.names for batch in epoch_batches]
    assert [len(group) for group in names[:-1]] == [size] * (len(names) - 1)
    assert sorted(sum(names, ())) == sorted(f"CASE_{i}" for i in range(count))


def test_the_order_depends_on_seed_and_epoch_alone():
    samples = volumes(20, (1, 1, 1))

    def order(seed, epoch, size=4):
        return sum(
            (b.names for b in batches(samples, size, seed=seed, epoch=epoch, training=True)), ()
        )

    assert order(0, 0) == order(0, 0) == order(0, 0, size=7)
    assert len({order(0, 0), order(0, 1), order(1, 0), order(1, 1)}) == 4


def test_a_training_sample_is_augmented_by_its_own_index_wherever_it_comes_in_the_order():
    samples = volumes(7)
    for batch in batches(samples, 3, seed=4, epoch=2, training=True):
        for n, name in enumerate(batch.names):
            index = int(name.removeprefix("CASE_"))
            image, label, _ = samples.read(index)
            image, label = augmented(image, label, seed=4, epoch=2, index=index)
            np.testing.assert_array_equal(batch.images[n], image)
            np.testing.assert_array_equal(batch.labels[n], label)


def test_of_what_is_padded_the_sample_alone_is_augmented():
    cases = [case(0, 4, 3, 5), case(1, 2, 6, 1)]
    samples, key = VolumeSamples(cases), {"seed": 1, "epoch": 2}
    (batch,) = batches(samples, 2, training=True, **key)
    for n, name in enumerate(batch.names):
        index = int(name.removeprefix("CASE_"))
        image, label = augmented(cases[index].image, cases[index].label, index=index, **key)
        x, y, z = label.shape
        inside, outside = batch.images[n, :x, :y, :z].copy(), batch.images[n]
        np.testing.assert_array_equal(inside, image)
        outside[:x, :y, :z] = 0
        assert not outside.any()


def test_the_same_epoch_twice_is_the_same_bits():
    samples = SliceSamples([case(i, 5, 4, 9) for i in range(3)], 2, (0, 2))

    def epoch():
        drawn = batches(samples, 4, seed=3, epoch=1, training=True)
        return [(b.images.tobytes(), b.labels.tobytes(), b.names) for b in drawn]

    assert epoch() == epoch()


def test_interleaved_epochs_do_not_disturb_each_other():
    samples = volumes(6)
    alone = [b.images.tobytes() for b in batches(samples, 2, seed=0, epoch=0, training=True)]
    first = batches(samples, 2, seed=0, epoch=0, training=True)
    second = batches(samples, 2, seed=0, epoch=0, training=True)
    both = [(a.images.tobytes(), b.images.tobytes()) for a, b in zip(first, second, strict=True)]
    assert both == list(zip(alone, alone, strict=True))


def test_unequal_shapes_are_zero_padded_at_the_end_to_the_largest_of_the_batch():
    cases = [case(0, 4, 3, 5), case(1, 2, 6, 1), case(2, 1, 1, 1)]
    first, last = batches(VolumeSamples(cases), 2, seed=0, epoch=0, training=False)
    assert first.images.shape == (2, 4, 6, 5, 4)
    assert first.labels.shape == (2, 4, 6, 5)
    assert last.images.shape == (1, 1, 1, 1, 4)
    for n in range(2):
        x, y, z = cases[n].label.shape
        np.testing.assert_array_equal(first.images[n, :x, :y, :z], cases[n].image)
        np.testing.assert_array_equal(first.labels[n, :x, :y, :z], cases[n].label)
        outside = np.ones((4, 6, 5), bool)
        outside[:x, :y, :z] = False
        assert not first.images[n][outside].any()
        assert not first.labels[n][outside].any()


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_can_be_changed_without_touching_the_cases(training):
    samples = volumes(2)
    before = [(case.image.copy(), case.label.copy()) for case in samples.cases]
    for epoch in range(8):  # whatever is flipped
        (batch,) = batches(samples, 2, seed=0, epoch=epoch, training=training)
        batch.images[...], batch.labels[...] = 0, 9
    for case, (image, label) in zip(samples.cases, before, strict=True):
        np.testing.assert_array_equal(case.image, image)
        np.testing.assert_array_equal(case.label, label)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i2"])
def test_images_are_float32_whatever_they_are_read_as(dtype):
    volume = case(0, 4, 3, 5)
    volume.image = (9 * volume.image).astype(dtype)
    for training in (True, False):
        (batch,) = batches(VolumeSamples([volume]), 1, seed=0, epoch=0, training=training)
        assert batch.images.dtype == np.float32
        np.testing.assert_allclose(
            np.sort(batch.images, axis=None), np.sort(volume.image, axis=None), atol=0.15
        )


def test_no_samples_give_no_batches_and_a_batch_needs_a_sample():
    assert list(batches(VolumeSamples([]), 2, seed=0, epoch=0, training=True)) == []
    with pytest.raises(InputError, match="batch_size: got 0"):
        batches(volumes(1), 0, seed=0, epoch=0, training=True)


def test_an_error_on_the_thread_reaches_the_consumer_with_the_case_and_ends_the_iteration():
    epoch = batches(BrokenSamples(volumes(6).cases), 2, seed=0, epoch=0, training=False)
    assert next(epoch).names == ("CASE_0", "CASE_1")
    with pytest.raises(OSError, match="disk on fire") as caught:
        next(epoch)
    assert caught.value.__notes__ == ["while reading sample 2, case CASE_2"]
    assert next(epoch, None) is None


def test_the_next_batch_is_read_while_the_first_is_used():
    samples, read = volumes(6), threading.Event()

    class Watched(VolumeSamples):
        def read(self, index):
            if index == 1:
                read.set()
            return super().read(index)

    epoch = batches(Watched(samples.cases), 1, seed=0, epoch=0, training=False)
    next(epoch)
    assert read.wait(timeout=10)  # though nobody asked for the second batch


def test_reading_happens_off_the_consumers_thread_and_waiting_is_measured(monkeypatch):
    clock = iter([100.0, 103.0, 200.0, 200.5])
    monkeypatch.setattr(loader.time, "perf_counter", lambda: next(clock))
    readers = set()

    class Watched(VolumeSamples):
        def read(self, index):
            readers.add(threading.current_thread())
            return super().read(index)

    epoch = batches(Watched(volumes(2).cases), 1, seed=0, epoch=0, training=False)
    assert epoch.waited == 0
    next(epoch)
    assert epoch.waited == 3
    next(epoch)
    assert epoch.waited == 3.5
    assert threading.current_thread() not in readers


@pytest.fixture
def cupy(monkeypatch):
    """A stand-in that notes who brings what."""
    brought = []

    def asarray(x):
        brought.append((threading.current_thread(), x.shape))
        return standin.asarray(x)

    cuda = SimpleNamespace(Stream=standin.Stream)
    monkeypatch.setitem(
        sys.modules, "cupy", SimpleNamespace(cuda=cuda, asarray=asarray, brought=brought)
    )
    arrays._stream_aside.cache_clear()
    yield sys.modules["cupy"]
    arrays._stream_aside.cache_clear()


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_is_brought_to_the_device_by_another_thread(training, cupy):
    samples = volumes(3)
    options = {"seed": 0, "epoch": 0, "training": training}
    want = list(batches(samples, 2, **options))
    for got, expected in zip(batches(samples, 2, **options, device="cuda"), want, strict=True):
        for array, on_host in zip(got[:2], expected[:2], strict=True):
            assert isinstance(array, standin.ndarray)
            assert np.array_equal(array.get(), on_host)
        assert got.names == expected.names
    assert threading.current_thread() not in [thread for thread, _ in cupy.brought]


def test_too_little_memory_on_the_device_is_an_error_where_the_batch_is_asked_for(cupy):
    def asarray(x):
        raise MemoryError("Out of memory allocating 1,024 bytes")

    cupy.asarray = asarray
    epoch = batches(volumes(3), 2, seed=0, epoch=0, training=True, device="cuda")
    with pytest.raises(InputError, match=r"\(2, 4, 3, 5, 4\).*1,024 bytes.*smaller batch size"):
        next(epoch)
    assert next(epoch, None) is None


def test_for_a_gpu_as_many_batches_are_read_at_once_as_there_are_cores(monkeypatch, cupy):
    """But one at a time lies there."""
    cores = 3
    reading_at_once = threading.Barrier(cores)

    class Slow(VolumeSamples):
        def read(self, index, **key):
            if index < cores:
                reading_at_once.wait(timeout=10)
            return super().read(index, **key)

    monkeypatch.setattr(loader.os, "cpu_count", lambda: cores)
    options = {"seed": 0, "epoch": 0, "training": False}
    epoch = batches(Slow(volumes(8).cases), 1, **options, device="cuda")
    for number in range(8):
        assert next(epoch).names == (f"CASE_{number}",)
        assert len(cupy.brought) <= 2 * (number + 2)
    assert next(epoch, None) is None
    assert joined(reading_threads())


def test_a_gpu_goes_on_while_something_is_done_aside(cupy):
    """It is done on a stream that waits for no other, and is done when the block ends."""
    seen = []

    class Stream(standin.Stream):
        def __init__(self, non_blocking=False):
            super().__init__()
            seen.append(non_blocking)

        def synchronize(self):
            seen.append("all is done")

    cupy.cuda.Stream = Stream
    with arrays.aside("cuda"):
        seen.append(type(standin.thread.stream))
    assert seen == [True, Stream, "all is done"]
    assert standin.thread.stream is standin.NULL


@pytest.mark.parametrize("taken", [0, 1, 2, 4])
def test_no_thread_outlives_an_iterator_abandoned_or_finished(taken):
    epoch = batches(volumes(4), 1, seed=0, epoch=0, training=True)
    for _ in range(taken):
        next(epoch)
    assert len(reading_threads()) <= 4  # one reads, one waits for it; two may be about to end
    del epoch
    assert joined(reading_threads())
