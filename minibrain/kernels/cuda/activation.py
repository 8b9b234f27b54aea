"""ReLU, sigmoid, softmax and dropout; see activation.cu."""

from minibrain.arrays import array_module
from minibrain.kernels.cuda import loader
from minibrain.kernels.cuda.arguments import (
    THREADS,
    alike,
    blocks_for,
    ceil_divide,
    contiguous,
    is_key,
    packed_dropout,
    supported,
)
from minibrain.saved import DropoutSaved, ReluSaved, SigmoidSaved, SoftmaxSaved


def relu_forward(x):
    if not supported(x):
        return NotImplemented
    y = _elementwise("relu_forward", x)
    return y, ReluSaved(y)


def relu_backward(dy, saved: ReluSaved):
    return _elementwise("relu_backward", dy, saved.y) if alike(dy, saved.y) else NotImplemented


def sigmoid_forward(x):
    if not supported(x):
        return NotImplemented
    y = _elementwise("sigmoid_forward", x)
    return y, SigmoidSaved(y)


def sigmoid_backward(dy, saved: SigmoidSaved):
    return _elementwise("sigmoid_backward", dy, saved.y) if alike(dy, saved.y) else NotImplemented


def softmax_forward(x):
    if not supported(x):
        return NotImplemented
    y = _rows("softmax_forward", x)
    return y, SoftmaxSaved(y)


def softmax_backward(dy, saved: SoftmaxSaved):
    return _rows("softmax_backward", dy, saved.y) if alike(dy, saved.y) else NotImplemented


def dropout_forward(x, rate: float, key: tuple):
    if not (supported(x) and 0 <= rate < 1 and is_key(key)):
        return NotImplemented
    saved = DropoutSaved(rate, key, x.shape)
    return _dropout(x, saved), saved


def dropout_backward(dy, saved: DropoutSaved):
    fits = supported(dy) and dy.shape == saved.shape
    return _dropout(dy, saved) if fits else NotImplemented


def _dropout(x, saved: DropoutSaved):
    (x,) = contiguous(x)
    y = array_module(x).empty(x.shape, x.dtype)
    grid = blocks_for(ceil_divide(x.size, 8))
    arguments = [x, y, x.size, packed_dropout(saved)]
    loader.launch("activation.dropout", grid, (THREADS,), arguments)
    return y


def _elementwise(kernel, *arrays):
    arrays = contiguous(*arrays)
    y = array_module(arrays[0]).empty(arrays[0].shape, arrays[0].dtype)
    loader.launch(f"activation.{kernel}", blocks_for(y.size), (THREADS,), [*arrays, y, y.size])
    return y


def _rows(kernel, *arrays):
    """One thread for each voxel, with its channels."""
    arrays = contiguous(*arrays)
    y = array_module(arrays[0]).empty(arrays[0].shape, arrays[0].dtype)
    channels = y.shape[-1]
    voxels = y.size // channels
    arguments = [*arrays, y, voxels, channels]
    loader.launch(f"activation.{kernel}", blocks_for(voxels), (THREADS,), arguments)
    return y
