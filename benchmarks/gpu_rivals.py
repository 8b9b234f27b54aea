"""Sections of the GPU benchmark that PyTorch computes alone, and its part of the others."""

import platform
import subprocess
from functools import partial

import numpy as np
import torch
from torch import nn

from benchmarks.gpu_setting import CONFIGURATIONS, seconds_per_call
from benchmarks.torch_unet import DROPOUT_3D, NO_DROPOUT, cce_dice_loss, peer_3d


def environment(setting) -> dict:
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


def ceilings(setting) -> dict:
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


def step(setting, name: str) -> dict:
    """Milliseconds of a step in one of the configurations, peak memory, and the loss."""
    rival = next(rival for rival in CONFIGURATIONS if rival.name == name)
    dtype = getattr(torch, rival.dtype)
    _allow_tf32(rival.tf32)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    device, shape = setting.device, setting.shape
    layout = torch.channels_last_3d if rival.channels_last else torch.contiguous_format
    network = peer_3d(DROPOUT_3D).to(device).to(memory_format=layout)
    images = torch.randn(shape[0], shape[-1], *shape[1:-1], device=device)
    images = images.to(memory_format=layout)
    labels = torch.randint(0, 4, shape[:-1], device=device)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4, fused=device == "cuda")
    scaler = torch.amp.GradScaler(device, enabled=rival.dtype == "float16")

    def loss_of(images, labels):
        with torch.autocast(device, dtype, enabled=rival.dtype != "float32"):
            logits = network(images)
        return cce_dice_loss(logits.float(), labels)

    if rival.compiled and device == "cuda":
        loss_of = torch.compile(loss_of, mode=rival.compiled)

    def take_step():
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(images, labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    times = seconds_per_call(setting, take_step, calls=5)
    peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0
    return {"milliseconds": [1e3 * t for t in times], "peak_GB": peak, "loss": take_step().item()}


def time_convolution(setting, shape, channels) -> dict[str, list[float]]:
    """{configuration: [forward, backward] in ms} of a 3x3x3 convolution in bf16, both layouts."""
    torch.backends.cudnn.benchmark = True
    times = {}
    for name, layout in (("last", torch.channels_last_3d), ("first", torch.contiguous_format)):
        x, weight, dy = (
            torch.randn(s, device=setting.device, dtype=torch.bfloat16).to(memory_format=layout)
            for s in (
                (shape[0], shape[-1], *shape[1:-1]),
                (channels, shape[-1], 3, 3, 3),
                (shape[0], channels, *shape[1:-1]),
            )
        )
        forward = partial(nn.functional.conv3d, x, weight, padding=1)
        backward = partial(_convolution_backward, dy, x, weight)
        ms = [1e3 * seconds_per_call(setting, call)[0] for call in (forward, backward)]
        times[f"PyTorch bf16, channels {name}"] = ms
    return times


def _convolution_backward(dy, x, weight):
    """(dx, dweight) of a 3x3x3 convolution with padding 1."""
    ones, wanted = [1, 1, 1], [True, True, False]
    return torch.ops.aten.convolution_backward(
        dy, x, weight, None, ones, ones, ones, False, [0, 0, 0], 1, wanted
    )


def losses_of_torch(model, images, labels, setting) -> list[float]:
    """Losses of `setting.steps` steps of Adam at 1e-3 in float32, from a network's weights."""
    _allow_tf32(False)
    network = peer_3d(NO_DROPOUT)
    values = [parameter.value for parameter in model.named_parameters().values()]
    with torch.no_grad():
        for theirs, ours in zip(network.parameters(), values, strict=True):
            if ours.ndim > 1:  # (*K, A, B) -> (B, A, *K), for either convolution
                ours = np.moveaxis(ours, [-1, -2], [0, 1])
            theirs.copy_(torch.from_numpy(np.ascontiguousarray(ours)))
    network.to(setting.device)
    images = torch.from_numpy(np.moveaxis(images, -1, 1).copy()).to(setting.device)
    labels = torch.from_numpy(labels.astype(np.int64)).to(setting.device)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    losses = []
    for _ in range(setting.steps):
        optimizer.zero_grad()
        loss = cce_dice_loss(network(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


def _allow_tf32(allowed: bool) -> None:
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed
