"""Where and at what size the GPU benchmark runs, beside whom, and how it takes time."""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import numpy as np

from minibrain import models
from minibrain.arrays import precision_dtype, to_device

PRECISIONS = ("bf16", "fp32")
# of a whole network's loss, and of losses during training, relative
LOSS_TOLERANCE = {"fp32": 5e-3, "bf16": 0.1}
GRADIENT_TOLERANCE = 5e-3  # of a whole network's gradients in fp32, relative


class Rival(NamedTuple):
    """PyTorch in a configuration that might be its fastest."""

    name: str
    dtype: str  # of autocast
    channels_last: bool
    compiled: str | None  # torch.compile's mode
    tf32: bool = False


BF16, FP16, FP32 = "bfloat16", "float16", "float32"
CONFIGURATIONS = (
    Rival("bf16, channels last, compiled", BF16, True, "default"),
    Rival("bf16, channels first, compiled", BF16, False, "default"),
    Rival("bf16, channels last", BF16, True, None),
    Rival("bf16, channels first", BF16, False, None),
    Rival("bf16, channels last, max-autotune", BF16, True, "max-autotune"),
    Rival("bf16, channels first, reduce-overhead", BF16, False, "reduce-overhead"),
    Rival("fp16, channels last, compiled", FP16, True, "default"),
    Rival("fp16, channels first, compiled", FP16, False, "default"),
    Rival("tf32, channels last, compiled", FP32, True, "default", True),
    Rival("tf32, channels first", FP32, False, None, True),
    Rival("fp32, channels first", FP32, False, None),
)


class Setting(NamedTuple):
    """Where and at what size a mode runs."""

    device: str
    shape: tuple[int, ...]  # of the batch that a step is timed on
    small: tuple[int, ...]  # of the batch that networks are checked on
    steps: int
    rounds: int
    rivals: int  # how many of PyTorch's configurations, the likely fastest first

    @classmethod
    def of(cls, mode: str) -> "Setting":
        return {
            "full": cls("cuda", (2, 160, 160, 128, 4), (2, 48, 32, 32, 4), 20, 7, 99),
            "quick": cls("cuda", (2, 160, 160, 128, 4), (2, 32, 32, 32, 4), 20, 3, 3),
            "smoke": cls("cpu", (1, 32, 16, 16, 4), (1, 32, 32, 16, 4), 2, 1, 2),
        }[mode]

    def synchronize(self) -> None:
        if self.device == "cuda":
            import cupy

            cupy.cuda.Device().synchronize()


def seconds_per_call(setting: Setting, call: Callable, calls: int = 10) -> list[float]:
    """Minimum and median over rounds of back-to-back calls, after two to warm up."""
    calls = 1 if setting.device == "cpu" else calls
    for _ in range(2):
        call()
    rounds = []
    for _ in range(setting.rounds):
        setting.synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        setting.synchronize()
        rounds.append((time.perf_counter() - begin) / calls)
    return [min(rounds), median(rounds)]


def new_network(precision: str, device: str, **options):
    return models.brain_3d(seed=1, dtype=precision_dtype(precision), **options).to(device)


def new_batch(shape, device):
    rng = np.random.default_rng(3)
    images = rng.standard_normal(shape).astype(np.float32)
    labels = rng.integers(0, 4, shape[:-1]).astype(np.uint8)
    return to_device(images, device), to_device(labels, device)
