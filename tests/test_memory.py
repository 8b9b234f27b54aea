"""What a training step needs of memory is known before, and what would fit into less."""

import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from test_training import a_batch, tiny, weight_bytes

from minibrain import experiment
from minibrain.memory import WORKSPACE, available_memory, estimate_memory, fitting_patch
from minibrain.models import brain_2d_small, brain_3d, brain_3d_small
from minibrain.optimizers import Adam
from minibrain.runs.config import SMALL_3D
from minibrain.training import train_step


@pytest.mark.parametrize(
    ("preset", "shape"),
    [
        (brain_3d, (2, 32, 32, 32, 4)),
        (brain_3d_small, (2, 32, 32, 32, 4)),
        (brain_2d_small, (8, 96, 96, 2)),
    ],
)
def test_the_memory_estimate_is_not_below_the_peak_of_a_step_and_not_far_above(preset, shape):
    estimate = estimate_memory(preset(), shape)
    # in a new process: here, earlier tests have left buffers that are used again unseen
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        peak = process.submit(peak_of_training, preset, shape).result()
    assert peak < estimate < 1.5 * peak


def peak_of_training(preset, shape):
    """Most bytes that two steps hold at a time, with the network and its batch."""
    images, labels = a_batch(shape)
    tracemalloc.start()
    network = preset()
    optimizer = Adam(network.named_parameters())
    for step in range(2):
        train_step(network, optimizer, images, labels, step)
    return tracemalloc.get_traced_memory()[1]


@pytest.mark.parametrize("norm", ["none", "instance", "batch"])
def test_estimating_leaves_the_network_alone_and_grows_with_the_batch(norm):
    network = tiny(norm=norm)
    before = weight_bytes(network)
    one, two = (estimate_memory(network, (n, 64, 64, 2)) - WORKSPACE for n in (1, 2))
    assert weight_bytes(network) == before
    assert not any(p.grad.any() for p in network.named_parameters().values())
    assert one < two < 2 * one + 1
    assert two > 1.9 * one  # with so few parameters the activations are nearly all


@pytest.mark.parametrize("limit", [3e8, 6e8, 1.5e9])
def test_the_patch_that_is_suggested_fits_and_the_next_larger_does_not(limit):
    shape = (2, 96, 80, 72, 4)
    model = brain_3d_small()
    patch = fitting_patch(model, shape, limit)
    assert all(n % 4 == 0 and n <= most for n, most in zip(patch, shape[1:-1], strict=True))
    assert estimate_memory(model, (2, *patch, 4)) <= limit
    longest = max(range(3), key=lambda axis: (patch[axis], -axis))
    larger = [n + 4 * (axis == longest) for axis, n in enumerate(patch)]
    assert estimate_memory(model, (2, *larger, 4)) > limit or patch == shape[1:-1]


@pytest.mark.parametrize("shape", [(96, 80, 72), (8, 100, 4), (64, 64, 64), (4, 4, 4)])
@pytest.mark.parametrize("limit", [4e7, 1e8, 3e8, 1e12])
def test_it_is_what_shortening_the_longest_axis_step_by_step_comes_to(shape, limit):
    model = brain_3d_small()
    size = [n // 4 * 4 for n in shape]
    while min(size) >= 4 and estimate_memory(model, (2, *size, 4)) > limit:
        size[size.index(max(size))] -= 4
    expected = tuple(size) if min(size) >= 4 else None
    assert fitting_patch(model, (2, *shape, 4), limit) == expected


def test_an_axis_of_a_billion_voxels_is_shortened_at_once():
    patch = fitting_patch(brain_3d_small(), (2, 16, 16, 10**9, 4), 1e9)
    assert patch[:2] == (16, 16)
    assert patch[2] > 1000


def test_no_patch_fits_where_the_parameters_do_not():
    assert fitting_patch(brain_3d_small(), (2, 32, 32, 32, 4), 1e6) is None


def test_too_little_memory_is_said_with_what_would_fit(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(experiment, "available_memory", lambda device: 4 * 10**7)
    config = experiment.replace(
        SMALL_3D,
        **{"output": str(tmp_path / "run"), "device": "cpu", "epochs": 1},
        **{"phantom_cases": 10, "phantom_size": (32, 32, 24), "batch_size": 2},
    )
    with pytest.warns(UserWarning, match=r"40 MB of it are free on cpu; try --patch-size \d+ \d"):
        experiment.run(config)


def test_what_is_free_is_known_on_linux():
    free = available_memory("cpu")
    assert free is None or 10**6 < free < 10**14


@pytest.mark.parametrize("shape", [(2, 32, 32, 4), (32, 32, 32), (2, 1, 32, 32, 32, 4)])
def test_a_batch_of_another_rank_is_refused(shape):
    with pytest.raises(ValueError, match=r"batch_shape must be \(N, 3 axes, C\), got") as error:
        estimate_memory(brain_3d_small(), shape)
    assert str(shape) in str(error.value)
