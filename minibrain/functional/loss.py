"""Losses of a segmentation, as functions of the logits z, with p = softmax(z) and t the one-hot
labels. Every forward returns (loss, saved), the loss a float64 scalar; every backward takes the
gradient of the loss (1.0 at the end of a network) and returns dz in the shape of z, in float32
where z is bfloat16.

Soft Dice: Milletari et al., "V-Net", arXiv:1606.04797.
"""

import numpy as np

from minibrain.arrays import array_module, require_number, widened
from minibrain.functional.activation import softmax_backward, softmax_forward
from minibrain.kernels import fast_twin
from minibrain.saved import CceDiceSaved, CrossEntropySaved, DiceSaved, SoftmaxSaved


@fast_twin
def cross_entropy_forward(logits, labels):
    """Categorical cross-entropy, the mean over voxels of −log p[label].

    log p[c] = z[c] − log Σ_j exp(z[j]) is taken directly: p itself may round to 0.

    Parameters
    ----------
    logits : (N, *S, C) float array
    labels : (N, *S) integers in [0, C)

    Returns
    -------
    loss : float64 scalar
    saved : CrossEntropySaved

    Raises
    ------
    ValueError : labels are not integers in [0, C) in the shape of the logits
    """
    _check(logits, labels)
    xp, logits = array_module(logits), widened(logits)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_p = shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))
    chosen = xp.take_along_axis(log_p, labels[..., None].astype(np.int64), axis=-1)
    return -chosen.mean(dtype=np.float64), CrossEntropySaved(xp.exp(log_p), labels)


@fast_twin
def cross_entropy_backward(dloss, saved: CrossEntropySaved):
    """dz = dloss · (p − t) / voxels."""
    require_number("dloss", dloss)
    p, labels = saved
    dlogits = p - _one_hot(labels, p)
    dlogits *= dloss / labels.size
    return dlogits


@fast_twin
def dice_loss_forward(logits, labels, *, smooth=1.0, per_sample=False):
    """Soft Dice loss, 1 − mean over classes of (2 Σ p·t + smooth) / (Σ p + Σ t + smooth).

    The sums run over all voxels of the batch, so a class that is absent from one sample is judged
    with the others; per_sample=True sums over each sample and averages over them too.

    Parameters
    ----------
    logits : (N, *S, C) float array
    labels : (N, *S) integers in [0, C)
    smooth : in numerator and denominator: nothing predicted where nothing is costs nothing

    Returns
    -------
    loss : float64 scalar
    saved : DiceSaved

    Raises
    ------
    ValueError : labels are not integers in [0, C) in the shape of the logits
    """
    _check(logits, labels)
    p, _ = softmax_forward(widened(logits))
    t = _one_hot(labels, p)
    axes = tuple(range(1 if per_sample else 0, p.ndim - 1))

    def total(values):
        return values.sum(axis=axes, keepdims=True, dtype=np.float64)

    overlap = 2 * total(p * t) + smooth
    volumes = total(p) + total(t) + smooth
    return 1 - (overlap / volumes).mean(), DiceSaved(p, labels, overlap, volumes)


@fast_twin
def dice_loss_backward(dloss, saved: DiceSaved):
    """dp = −dloss/classes · (2t/total − overlap/total²), then through the softmax."""
    require_number("dloss", dloss)
    p, labels, overlap, total = saved
    share = dloss / overlap.size
    toward_label = (2 * share / total).astype(p.dtype)
    toward_none = (share * overlap / total**2).astype(p.dtype)
    dp = toward_none - toward_label * _one_hot(labels, p)
    return softmax_backward(dp, SoftmaxSaved(p))


@fast_twin
def cce_dice_loss_forward(
    logits, labels, *, cce_weight=0.5, dice_weight=0.5, smooth=1.0, per_sample=False
):
    """cce_weight · cross-entropy + dice_weight · Dice loss, as defined above.

    Parameters
    ----------
    logits : (N, *S, C) float array
    labels : (N, *S) integers in [0, C)
    smooth, per_sample : as in dice_loss_forward

    Returns
    -------
    loss : float64 scalar
    saved : CceDiceSaved

    Raises
    ------
    ValueError : labels are not integers in [0, C) in the shape of the logits
    """
    cce, cce_saved = cross_entropy_forward(logits, labels)
    dice, dice_saved = dice_loss_forward(logits, labels, smooth=smooth, per_sample=per_sample)
    saved = CceDiceSaved(cce_saved, dice_saved, cce_weight, dice_weight)
    return cce_weight * cce + dice_weight * dice, saved


@fast_twin
def cce_dice_loss_backward(dloss, saved: CceDiceSaved):
    """The logits were used twice: the two gradients add."""
    require_number("dloss", dloss)
    dlogits = cross_entropy_backward(dloss * saved.cce_weight, saved.cross_entropy)
    dlogits += dice_loss_backward(dloss * saved.dice_weight, saved.dice)
    return dlogits


def _one_hot(labels, like):
    """t[..., c] = 1 where the label is c, in the dtype of `like`."""
    classes = array_module(like).arange(like.shape[-1])
    return (labels[..., None] == classes).astype(like.dtype)


def _check(logits, labels):
    if labels.shape != logits.shape[:-1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels must be integers of shape {logits.shape[:-1]} for logits {logits.shape}, "
            f"got {labels.dtype} of shape {labels.shape}"
        )
    if not labels.size:
        raise ValueError(f"labels {labels.shape} must not be empty")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[-1]:
        raise ValueError(f"labels must be in [0, {logits.shape[-1]}), got {low} to {high}")
