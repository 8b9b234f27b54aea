"""The training step in the open, and recorded where it repeats."""

from contextlib import contextmanager
from math import nan

import numpy as np

from minibrain.arrays import array_module, like
from minibrain.errors import InputError
from minibrain.functional import cce_dice_loss_backward, cce_dice_loss_forward
from minibrain.kernels.cuda import loader
from minibrain.kernels.cuda.graph import Recording
from minibrain.models import UNet
from minibrain.optimizers import Adam, gradient_norm, scale_inplace


def train_step(
    model: UNet, optimizer: Adam, images, labels, step: int, *, clip_norm: float | None = None
) -> float:
    """One step of gradient descent on one batch.

    Where the loss or a gradient is not finite, the step is skipped: parameters, running statistics
    and optimizer stay as they are.

    Parameters
    ----------
    images : (N, *S, C) NumPy array, brought to the model's device and dtype
    labels : (N, *S) integer classes
    step : number of this step, a part of the dropout key; on a GPU it may be there, in a uint32
        array of no dimension
    clip_norm : largest norm of all gradients together, above 0; longer ones are scaled down to it

    Returns
    -------
    loss : 0.5 · cross-entropy + 0.5 · Dice loss, before the step; NaN if it was skipped

    Raises
    ------
    InputError : the memory does not suffice
    ValueError : images or labels do not fit the model; clip_norm is not above 0
    """
    with _memory_error_explained(images.shape):
        images, labels = to_model(images, model), to_model(labels, model, labels.dtype)
        return float(take_step(model, optimizer, images, labels, step, clip_norm))


def take_step(model: UNet, optimizer: Adam, images, labels, step, clip_norm: float | None):
    """`train_step` with arrays on the model's device. Nothing here waits for a GPU: whether the
    step is taken is decided there. Returns the loss as an array of no dimension."""
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm must be above 0, got {clip_norm}")
    buffers = _running(model)
    before = [buffer.copy() for buffer in buffers]
    logits, saved = model.forward(images, training=True, step=step)
    loss, loss_saved = cce_dice_loss_forward(logits, labels)
    optimizer.zero_grad()
    dlogits = cce_dice_loss_backward(1.0, loss_saved)
    model.backward(dlogits, saved, input_gradient=False)

    xp, gradients = array_module(logits), [parameter.grad for parameter in optimizer.parameters]
    norm = gradient_norm(gradients)
    finite = xp.isfinite(loss + norm)
    if clip_norm is not None:
        scale_inplace(gradients, clip_norm / xp.maximum(norm, clip_norm))
    for buffer, value in zip(buffers, before, strict=True):
        buffer[...] = xp.where(finite, buffer, value)
    optimizer.step(finite)
    return xp.where(finite, loss, nan)


class RepeatedStep:
    """`train_step`, on a GPU recorded as soon as the shape of the batches repeats."""

    def __init__(self):
        self.recording: Recording | None = None

    def __call__(
        self, model: UNet, optimizer: Adam, images, labels, step, *, clip_norm: float | None = None
    ) -> float:
        arrays = optimizer.arrays() + _running(model)
        if array_module(arrays[0]) is np:
            return train_step(model, optimizer, images, labels, step, clip_norm=clip_norm)
        self.recording = self.recording or Recording(array_module(arrays[0]))
        inputs = (images, model.dtype), (labels, labels.dtype), (step, np.uint32)
        memory = [loader.address(array) for array in arrays]
        with _memory_error_explained(images.shape):
            loss = self.recording(
                lambda *inputs: take_step(model, optimizer, *inputs, clip_norm),
                inputs,
                key=(id(model), clip_norm, memory),
            )
            return float(loss)


def _running(model: UNet) -> list:
    """Batch norm's statistics, which a forward in training changes."""
    return [buffer.value for buffer in model.named_buffers().values()]


@contextmanager
def _memory_error_explained(shape: tuple[int, ...]):
    """CuPy's error is a MemoryError like NumPy's."""
    try:
        yield
    except MemoryError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"a training step on a batch of shape {shape} needs more memory than there is "
            f"({reason}); choose a smaller batch size or patch size"
        ) from error


def to_model(x, model: UNet, dtype=None):
    """A NumPy array on the device of a model, in the dtype of its activations or the given one."""
    weight = next(iter(model.named_parameters().values())).value
    return like(x, weight[:0].astype(dtype or model.dtype))
