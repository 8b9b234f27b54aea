"""PyTorch on the GPU, in every configuration that might be its fastest."""

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from benchmarks.gpu_setting import seconds_per_call
from benchmarks.torch_unet import DROPOUT_3D, NO_DROPOUT, cce_dice_loss, peer_3d


class Rival(NamedTuple):
    name: str
    dtype: torch.dtype  # of autocast
    channels_last: bool
    compiled: str | None  # torch.compile's mode
    tf32: bool = False


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
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


def time_step(rival: Rival, setting) -> dict:
    """Milliseconds of a step, peak memory, and whether its loss is near what it must be."""
    _clear(setting)
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
    scaler = torch.amp.GradScaler(device, enabled=rival.dtype is FP16)

    def loss_of(images, labels):
        with torch.autocast(device, rival.dtype, enabled=rival.dtype is not FP32):
            logits = network(images)
        return cce_dice_loss(logits.float(), labels)

    if rival.compiled and device == "cuda":
        loss_of = torch.compile(loss_of, mode=rival.compiled)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(images, labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    times = seconds_per_call(setting, step, calls=5)
    peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0
    return {"milliseconds": [1e3 * t for t in times], "peak_GB": peak, "loss": step().item()}


def time_convolution(setting, shape, channels) -> dict[str, list[float]]:
    """{configuration: [forward, backward] in ms} of a 3x3x3 convolution in bf16, both layouts."""
    torch.backends.cudnn.benchmark = True
    times = {}
    for name, layout in (("last", torch.channels_last_3d), ("first", torch.contiguous_format)):
        x, weight, dy = (
            torch.randn(s, device=setting.device, dtype=BF16).to(memory_format=layout)
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


def _clear(setting) -> None:
    """Begin without the last configuration's memory and compiled graphs."""
    if setting.device == "cuda":
        torch._dynamo.reset()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
