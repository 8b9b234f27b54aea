"""ReLU, sigmoid, softmax and dropout; see activation.cu."""

import numpy as np

from minibrain.arrays import array_module
from minibrain.kernels.cuda import loader
from minibrain.kernels.cuda.arguments import THREADS, blocks_for, ceil_divide, contiguous, supported
from minibrain.saved import DropoutSaved, ReluSaved, SigmoidSaved, SoftmaxSaved


def relu_forward(x):
    if not supported(x):
        return NotImplemented
    y = _elementwise("relu_forward", x)
    return y, ReluSaved(y)


def relu_backward(dy, saved: ReluSaved):
    return _elementwise("relu_backward", dy, saved.y) if supported(dy, saved.y) else NotImplemented


def sigmoid_forward(x):
    if not supported(x):
        return NotImplemented
    y = _elementwise("sigmoid_forward", x)
    return y, SigmoidSaved(y)


def sigmoid_backward(dy, saved: SigmoidSaved):
    if not supported(dy, saved.y):
        return NotImplemented
    return _elementwise("sigmoid_backward", dy, saved.y)


def softmax_forward(x):
    if not supported(x):
        return NotImplemented
    y = _rows("softmax_forward", x)
    return y, SoftmaxSaved(y)


def softmax_backward(dy, saved: SoftmaxSaved):
    return _rows("softmax_backward", dy, saved.y) if supported(dy, saved.y) else NotImplemented


def dropout_forward(x, rate: float, key: tuple[int, int, int]):
    if not (supported(x) and 0 <= rate < 1 and _is_key(key)):
        return NotImplemented
    saved = DropoutSaved(rate, key)
    return _dropout(x, saved), saved


def dropout_backward(dy, saved: DropoutSaved):
    return _dropout(dy, saved) if supported(dy) else NotImplemented


def _dropout(x, saved: DropoutSaved):
    (x,) = contiguous(x)
    y = array_module(x).empty(x.shape, x.dtype)
    seed, step, layer = saved.key
    numbers = [np.uint64(seed), int(step), int(layer), saved.threshold, saved.scale]
    grid = blocks_for(ceil_divide(x.size, 8))
    loader.launch("activation.dropout", grid, (THREADS,), [x, y, x.size, *numbers])
    return y


def _is_key(key):
    return all(0 <= number < 2**bits for number, bits in zip(key, (64, 32, 32), strict=True))


def _elementwise(kernel, *arrays):
    arrays = contiguous(*arrays)
    y = array_module(arrays[0]).empty(arrays[0].shape, np.float32)
    loader.launch(f"activation.{kernel}", blocks_for(y.size), (THREADS,), [*arrays, y, y.size])
    return y


def _rows(kernel, *arrays):
    """One thread for each voxel, with its channels."""
    arrays = contiguous(*arrays)
    y = array_module(arrays[0]).empty(arrays[0].shape, np.float32)
    channels = y.shape[-1]
    voxels = y.size // channels
    arguments = [*arrays, y, voxels, channels]
    loader.launch(f"activation.{kernel}", blocks_for(voxels), (THREADS,), arguments)
    return y
