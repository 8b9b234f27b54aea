"""Cross-entropy, soft Dice and their sum; see loss.cu.

To ask whether all labels are in [0, classes) would be to wait for the device. They are counted
instead: if one is not, the loss is NaN.
"""

import numpy as np

from minibrain.arrays import array_module, is_number
from minibrain.kernels.cuda import loader
from minibrain.kernels.cuda.arguments import (
    THREADS,
    blocks_for,
    contiguous,
    launch_over_voxels,
    supported,
)
from minibrain.kernels.cuda.reduce import sums_over_voxels
from minibrain.saved import CceDiceSaved, CrossEntropySaved, DiceSaved

NO_CLASS = 255  # a label


def cross_entropy_forward(logits, labels):
    if not _fit(logits, labels):
        return NotImplemented
    loss, p, *_ = _forward(logits, labels, 1.0, 0.0)
    return loss, CrossEntropySaved(p, labels)


def cross_entropy_backward(dloss, saved: CrossEntropySaved):
    p, labels = saved
    if not (supported(p) and is_number(dloss)):
        return NotImplemented
    p, labels = contiguous(p, _bytes(labels))
    dz = array_module(p).empty(p.shape, np.float32)
    sizes, arguments = (1, labels.size, p.shape[-1]), [p, labels, dz, float(dloss) / labels.size]
    launch_over_voxels("loss.cross_entropy_backward", *sizes, 1, arguments)
    return dz


def dice_loss_forward(logits, labels, *, smooth=1.0, per_sample=False):
    if not _fit(logits, labels):
        return NotImplemented
    loss, p, overlap, total = _forward(logits, labels, 0.0, 1.0, smooth, per_sample)
    return loss, DiceSaved(p, labels, overlap, total)


def dice_loss_backward(dloss, saved: DiceSaved):
    return _dice_backward(0.0, float(dloss), saved) if is_number(dloss) else NotImplemented


def cce_dice_loss_forward(
    logits, labels, *, cce_weight=0.5, dice_weight=0.5, smooth=1.0, per_sample=False
):
    if not (_fit(logits, labels) and cce_weight and dice_weight):
        return NotImplemented
    weights = float(cce_weight), float(dice_weight)
    loss, p, overlap, total = _forward(logits, labels, *weights, smooth, per_sample)
    cce_saved, dice_saved = CrossEntropySaved(p, labels), DiceSaved(p, labels, overlap, total)
    return loss, CceDiceSaved(cce_saved, dice_saved, *weights)


def cce_dice_loss_backward(dloss, saved: CceDiceSaved):
    if not is_number(dloss):
        return NotImplemented
    dloss = float(dloss)
    return _dice_backward(dloss * saved.cce_weight, dloss * saved.dice_weight, saved.dice)


def _forward(logits, labels, cce_weight, dice_weight, smooth=1.0, per_sample=False):
    """(loss, p, overlap, total)."""
    xp = array_module(logits)
    logits, labels = contiguous(logits, _bytes(labels))
    groups, channels = len(logits) if per_sample else 1, logits.shape[-1]
    p, width = xp.empty(logits.shape, np.float32), _in_one_go(channels)
    kernel, arguments = f"loss.softmax_sums_{width}", [logits, labels, p]
    sizes = groups, labels.size // groups, channels
    sums = sums_over_voxels(kernel, logits, 4, *sizes, arguments, width)
    shape = (groups, *(1,) * (logits.ndim - 2), channels)
    overlap, total, loss = (xp.empty(s, np.float64) for s in (shape, shape, ()))
    numbers = [overlap.size, labels.size, float(smooth), cce_weight, dice_weight]
    loader.launch("loss.finish_loss", (1,), (1,), [sums, overlap, total, loss, *numbers])
    return loss, p, overlap, total


def _dice_backward(cce_weight, dice_weight, saved: DiceSaved):
    """cce_weight · (p − t) / voxels, and dice_weight times the gradient of the Dice loss."""
    p, labels, overlap, total = saved
    if not supported(p):
        return NotImplemented
    p, labels, overlap, total = contiguous(p, _bytes(labels), overlap, total)
    xp, channels = array_module(p), p.shape[-1]
    slopes, dz = xp.empty((overlap.size, 2), np.float32), xp.empty(p.shape, np.float32)
    arguments = [overlap, total, slopes, overlap.size, dice_weight / overlap.size]
    loader.launch("loss.dice_slopes", blocks_for(overlap.size), (THREADS,), arguments)
    groups = overlap.size // channels
    width, arguments = _in_one_go(channels), [p, labels, slopes, dz, cce_weight / labels.size]
    sizes = groups, labels.size // groups, channels
    launch_over_voxels(f"loss.cce_dice_backward_{width}", *sizes, width, arguments)
    return dz


def _in_one_go(channels):
    """How many channels of a voxel a thread takes."""
    return 4 if channels == 4 else 1


def _fit(logits, labels):
    """Whether the labels suit the logits; the reference says what is wrong if they do not."""
    return (
        logits.ndim > 1
        and supported(logits)
        and logits.shape[-1] <= NO_CLASS
        and labels.shape == logits.shape[:-1]
        and labels.dtype.kind in "iu"
    )


def _bytes(labels):
    """Labels as kernels take them; what is no class's number in a byte becomes NO_CLASS."""
    if labels.dtype == np.uint8:
        return labels
    wide = labels.astype(np.int64, copy=False)
    named = (wide >= 0) & (wide < NO_CLASS)
    return array_module(wide).where(named, wide, NO_CLASS).astype(np.uint8)
