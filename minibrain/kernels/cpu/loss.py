"""Softmax, cross-entropy and Dice in one pass forward and one backward.

Blocks of voxels are turned to (C, voxels), so that the inner loops are long. Forward keeps p;
the sums over all voxels that Dice needs are float64, added in the order of the blocks.
"""

import numpy as np

from minibrain.arrays import is_number
from minibrain.kernels.cpu.buffers import empty
from minibrain.kernels.cpu.threads import each
from minibrain.saved import CceDiceSaved, CrossEntropySaved, DiceSaved

BLOCK_VOXELS = 8192


def cce_dice_loss_forward(
    logits, labels, *, cce_weight=0.5, dice_weight=0.5, smooth=1.0, per_sample=False
):
    if logits.dtype != np.float32 or not _valid(logits, labels):
        return NotImplemented
    n, classes = len(logits), logits.shape[-1]
    p = empty(logits.shape)
    inputs, outputs, targets = (_by_sample(array) for array in (logits, p, labels))

    def work(block):
        z = inputs[block].T.copy(order="C")
        z -= z.max(axis=0)
        q = np.exp(z)
        total = q.sum(axis=0)
        z -= np.log(total)
        q /= total
        outputs[block] = q.T
        t = _one_hot(targets[block], classes)
        chosen = np.where(t > 0, z, 0).sum(axis=1)  # z may be −∞, where a product were NaN
        return chosen, np.einsum("cv,cv->c", q, t), q.sum(axis=1), t.sum(axis=1)

    sums = np.array(each(work, _blocks(inputs)), np.float64).reshape(n, -1, 4, classes).sum(axis=1)
    cce = -sums[:, 0].sum() / labels.size
    if not per_sample:
        sums = sums.sum(axis=0, keepdims=True)
    shape = (len(sums), *(1,) * (logits.ndim - 2), classes)
    overlap = (2 * sums[:, 1] + smooth).reshape(shape)
    volumes = (sums[:, 2] + sums[:, 3] + smooth).reshape(shape)
    loss = cce_weight * cce + dice_weight * (1 - (overlap / volumes).mean())
    saved = CrossEntropySaved(p, labels), DiceSaved(p, labels, overlap, volumes)
    return loss, CceDiceSaved(*saved, cce_weight, dice_weight)


def cce_dice_loss_backward(dloss, saved: CceDiceSaved):
    """With a = w/voxels and, per class, b = −2·share/total, c = share·overlap/total²,
    dz = p · (g − Σ_j g_j·p_j) + a·(p − t) for g = b·t + c, share = dloss·dice_weight/terms."""
    p, labels, overlap, total = saved.dice
    if p.dtype != np.float32 or not is_number(dloss):
        return NotImplemented
    classes = p.shape[-1]
    share = dloss * saved.dice_weight / overlap.size
    toward_label = (-2 * share / total).astype(np.float32).reshape(-1, classes, 1)
    toward_all = (share * overlap / total**2).astype(np.float32).reshape(-1, classes, 1)
    scale = np.float32(dloss * saved.cce_weight / labels.size)
    dlogits = empty(p.shape)
    inputs, outputs, targets = (_by_sample(array) for array in (p, dlogits, labels))

    def work(block):
        n = block[0] if len(toward_all) > 1 else 0
        q = inputs[block].T.copy(order="C")
        t = _one_hot(targets[block], classes)
        g = t * toward_label[n]
        g += toward_all[n]
        g -= np.einsum("cv,cv->v", g, q)
        g += scale
        g *= q
        t *= scale
        g -= t
        outputs[block] = g.T

    each(work, _blocks(inputs))
    return dlogits


def _by_sample(array):
    """(N, *S, C) floats -> (N, voxels, C), (N, *S) integers -> (N, voxels)."""
    channels = array.shape[-1:] if array.dtype.kind == "f" else ()
    return array.reshape(len(array), -1, *channels)


def _blocks(samples):
    return [
        (n, slice(start, start + BLOCK_VOXELS))
        for n in range(len(samples))
        for start in range(0, samples.shape[1], BLOCK_VOXELS)
    ]


def _one_hot(labels, classes):
    """(voxels,) -> (C, voxels) float32."""
    return np.equal(labels, np.arange(classes)[:, None]).astype(np.float32)


def _valid(logits, labels):
    """Whether the labels fit; what does not is left to the reference, which says why."""
    if labels.dtype.kind not in "iu" or labels.shape != logits.shape[:-1] or not labels.size:
        return False
    return labels.min() >= 0 and labels.max() < logits.shape[-1]
