"""Sections of the GPU benchmark that describe the machine and take time."""

import platform
import subprocess
from collections.abc import Callable
from functools import partial
from itertools import count
from math import prod

import numpy as np
import torch

import minibrain.functional as F
from benchmarks.cpu_workloads import CHANNELS
from benchmarks.gpu_rivals import CONFIGURATIONS, time_convolution, time_step
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


def environment(setting: Setting) -> dict:
    """What decides the figures: device, driver, versions."""
    found = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
    }
    if setting.device == "cuda":
        import cupy

        query = "name,driver_version,memory.total,clocks.sm,clocks.mem,temperature.gpu,power.draw"
        smi = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        found |= {
            "cupy": cupy.__version__,
            "gpu": torch.cuda.get_device_name(),
            "compute capability": cupy.cuda.Device().compute_capability,
            "nvidia-smi": subprocess.run(smi, capture_output=True, text=True).stdout.strip(),
        }
    return found


def ceilings(setting: Setting) -> dict:
    """What this device can do at best: a large copy, and matrix products through PyTorch."""
    on_cuda = setting.device == "cuda"
    source = torch.randint(0, 255, (2**31 if on_cuda else 2**20,), dtype=torch.uint8)
    source = source.to(setting.device)
    target = torch.empty_like(source)
    copied = seconds_per_call(setting, lambda: target.copy_(source))[0]
    size = 8192 if on_cuda else 256
    found = {"copy TB/s": 2 * source.numel() / copied / 1e12}
    for name, dtype, tf32 in (
        ("bf16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("fp32", torch.float32, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = torch.randn(2, size, size, dtype=dtype, device=setting.device)
        product = partial(torch.matmul, a, b)
        found[f"{name} TFLOP/s"] = 2 * size**3 / seconds_per_call(setting, product)[0] / 1e12
    return found


def layers(setting: Setting) -> dict:
    """Each distinct 3x3x3 convolution, forward and backward, ours and PyTorch's in both layouts."""
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
        to_device(rng.standard_normal(s, np.float32), setting.device).astype(dtype)
        for s in (shape, (3, 3, 3, shape[-1], channels), (*shape[:-1], channels))
    )
    _, saved = F.conv_forward(x, weight, padding="same")
    forward, backward = (
        partial(F.conv_forward, x, weight, padding="same"),
        partial(F.conv_backward, dy, saved),
    )
    return [1e3 * seconds_per_call(setting, call)[0] for call in (forward, backward)]


def step(setting: Setting) -> dict:
    """The whole training step, ours in every precision and PyTorch's in every configuration."""
    found: dict = {"shape": setting.shape, "minibrain": {}, "PyTorch": {}, "wrong": []}
    for rival in CONFIGURATIONS[: setting.rivals]:
        found["PyTorch"][rival.name] = _attempt(partial(time_step, rival, setting))
    for precision in PRECISIONS:
        found["minibrain"][precision] = _attempt(partial(_time_step, setting, precision))
    for engine in ("minibrain", "PyTorch"):
        done = {name: r for name, r in found[engine].items() if "milliseconds" in r}
        if not done:
            found["wrong"].append(f"{engine}: no configuration ran")
            return found
        found[f"fastest {engine}"] = min(done, key=lambda name: done[name]["milliseconds"][0])
    ours, theirs = (found[e][found[f"fastest {e}"]] for e in ("minibrain", "PyTorch"))
    found["step_ratio"] = theirs["milliseconds"][0] / ours["milliseconds"][0]
    if ours["peak_GB"]:
        found["memory_ratio"] = ours["peak_GB"] / theirs["peak_GB"]
    return found


def _attempt(call: Callable) -> dict:
    """One configuration that fails must not cost the others."""
    try:
        return call()
    except Exception as error:
        return {"error": repr(error)[:500]}


def _time_step(setting: Setting, precision: str) -> dict:
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
    peak = sum(pool.total_bytes() for pool in pools) / 1e9
    pools[0].free_all_blocks()
    return peak
