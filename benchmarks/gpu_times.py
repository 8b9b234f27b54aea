"""Sections of the GPU benchmark that take time."""

from functools import partial
from itertools import count
from math import prod

import numpy as np

import minibrain.functional as F
from benchmarks.cpu_workloads import CHANNELS
from benchmarks.gpu_setting import (
    PRECISIONS,
    Setting,
    new_batch,
    new_network,
    seconds_per_call,
)
from minibrain.arrays import precision_dtype, to_device
from minibrain.optimizers import Adam
from minibrain.training import RepeatedStep


def layers(setting: Setting) -> dict:
    """Each distinct 3x3x3 convolution, forward and backward, ours and PyTorch's in both layouts."""
    from benchmarks.gpu_rivals import time_convolution

    found = {}
    for level, channels in enumerate(CHANNELS):
        size = tuple(max(1, n >> level) for n in setting.shape[1:-1])
        above = CHANNELS[level - 1] if level else setting.shape[-1]
        for incoming in dict.fromkeys((above, channels, 2 * channels)):
            shape = (setting.shape[0], *size, incoming)
            flops = 2 * 27 * incoming * channels * prod(shape[:-1])
            times = {
                f"minibrain {precision}": _time_convolution(setting, precision, shape, channels)
                for precision in PRECISIONS
            }
            times |= time_convolution(setting, shape, channels)
            found[f"{incoming}→{channels} at {'x'.join(map(str, size))}"] = {
                "forward GFLOP": flops / 1e9,
                "milliseconds": times,
            }
    return found


def _time_convolution(setting, precision, shape, channels) -> list[float]:
    """[forward, backward] in ms."""
    rng, dtype = np.random.default_rng(0), precision_dtype(precision)
    x, weight, dy = (
        to_device(rng.standard_normal(s, np.float32), setting.device)
        for s in (shape, (3, 3, 3, shape[-1], channels), (*shape[:-1], channels))
    )
    x, dy = x.astype(dtype), dy.astype(dtype)  # weights are float32, or no kernel takes them
    _, saved = F.conv_forward(x, weight, padding="same")
    forward, backward = (
        partial(F.conv_forward, x, weight, padding="same"),
        partial(F.conv_backward, dy, saved),
    )
    return [1e3 * seconds_per_call(setting, call)[0] for call in (forward, backward)]


def step(setting: Setting, precision: str) -> dict:
    """Milliseconds of the whole training step, peak memory, and whether it was recorded."""
    model = new_network(precision, setting.device)
    optimizer = Adam(model.named_parameters(), learning_rate=1e-4)
    images, labels = new_batch(setting.shape, setting.device)
    take_step, steps = RepeatedStep(), count()
    times = seconds_per_call(
        setting, lambda: take_step(model, optimizer, images, labels, next(steps)), calls=5
    )
    recording = take_step.recording
    return {
        "milliseconds": [1e3 * t for t in times],
        "peak_GB": _peak_of_pools(recording),
        "recorded": recording is not None and (recording.obstacle or "as a graph"),
    }


def _peak_of_pools(recording) -> float:
    """All that CuPy has asked the device for; it gives nothing back in between."""
    if recording is None:
        return 0.0
    pools = recording.xp.get_default_memory_pool(), recording.pool
    return sum(pool.total_bytes() for pool in pools) / 1e9
