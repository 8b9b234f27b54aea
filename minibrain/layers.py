"""Layers own parameters and call the functional pairs; they keep nothing of a call.

All but the joins (Concat, GatedConcat) have the same two methods, so that they can be chained:

    y, saved = layer.forward(x, training=False, step=0)
    dx = layer.backward(dy, saved, input_gradient=True)

backward adds to the gradients of the layer's parameters. `training` and `step` matter to dropout
and batch norm alone; input_gradient=False spares the first layer of a network its dx.
`parameters` are learned; `buffers` are stored with them but not learned.
"""

import numpy as np

from minibrain.functional import (
    attention_gate_backward,
    attention_gate_forward,
    batch_norm_backward,
    batch_norm_forward,
    concat_backward,
    concat_forward,
    conv_backward,
    conv_forward,
    conv_transpose_backward,
    conv_transpose_forward,
    dropout_backward,
    dropout_forward,
    max_pool_backward,
    max_pool_forward,
    norm_relu_backward,
    norm_relu_forward,
    relu_backward,
    relu_forward,
    upsample_backward,
    upsample_forward,
)
from minibrain.functional.activation import require_rate
from minibrain.parameter import Parameter
from minibrain.saved import new_saved


class Layer:
    """What layers share: parameters by name, in the order in which their operation takes them."""

    def __init__(self, **parameters):
        self.parameters = {name: Parameter(value) for name, value in parameters.items()}
        self.buffers = {}

    def values(self):
        return [parameter.value for parameter in self.parameters.values()]

    def add_gradients(self, *gradients):
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parameter.grad += gradient


class Conv(Layer):
    """Stride-1 convolution that keeps the size. weight (*K, C, O), bias (O,)."""

    def __init__(self, weight):
        super().__init__(weight=weight, bias=np.zeros(weight.shape[-1], weight.dtype))

    def forward(self, x, training=False, step=0):
        weight, bias = self.values()
        return conv_forward(x, weight, bias, padding="same")

    def backward(self, dy, saved, input_gradient=True):
        dx, dweight, dbias = conv_backward(dy, saved, input_gradient=input_gradient)
        self.add_gradients(dweight, dbias)
        return dx


class ConvTranspose(Layer):
    """Transposed convolution whose stride is its kernel size. weight (*K, O, C), bias (O,)."""

    def __init__(self, weight):
        super().__init__(weight=weight, bias=np.zeros(weight.shape[-2], weight.dtype))

    def forward(self, x, training=False, step=0):
        weight, bias = self.values()
        return conv_transpose_forward(x, weight, bias, stride=weight.shape[:-2])

    def backward(self, dy, saved, input_gradient=True):
        dx, dweight, dbias = conv_transpose_backward(dy, saved, input_gradient=input_gradient)
        self.add_gradients(dweight, dbias)
        return dx


class InstanceNormReLU(Layer):
    """Instance normalisation with gamma and beta (C,), then ReLU, then dropout (see Dropout)."""

    def __init__(self, channels, dtype=np.float32, *, rate=0.0, seed=0, number=0):
        super().__init__(gamma=np.ones(channels, dtype), beta=np.zeros(channels, dtype))
        require_rate(rate)
        self.rate, self.seed, self.number = rate, seed, number

    def forward(self, x, training=False, step=0):
        rate = self.rate if training else 0.0
        return norm_relu_forward(x, *self.values(), rate=rate, key=(self.seed, step, self.number))

    def backward(self, dy, saved, input_gradient=True):
        dx, *gradients = norm_relu_backward(dy, saved)
        self.add_gradients(*gradients)
        return dx


class BatchNorm(Layer):
    """Batch normalisation with gamma, beta, running_mean and running_variance, all (C,).

    In training the running statistics move by 1 − momentum towards the batch's.
    """

    momentum = 0.9

    def __init__(self, channels, dtype=np.float32):
        super().__init__(gamma=np.ones(channels, dtype), beta=np.zeros(channels, dtype))
        self.buffers = {
            "running_mean": Parameter(np.zeros(channels, dtype)),
            "running_variance": Parameter(np.ones(channels, dtype)),
        }

    def forward(self, x, training=False, step=0):
        running = [buffer.value for buffer in self.buffers.values()]
        y, saved = batch_norm_forward(x, *self.values(), *running, training=training)
        if training:
            for value, batch in zip(running, (saved.mean, saved.variance), strict=True):
                value += (1 - self.momentum) * (batch.ravel() - value)
        return y, saved

    def backward(self, dy, saved, input_gradient=True):
        dx, *gradients = batch_norm_backward(dy, saved)
        self.add_gradients(*gradients)
        return dx


class ReLU(Layer):
    """max(x, 0)."""

    def forward(self, x, training=False, step=0):
        return relu_forward(x)

    def backward(self, dy, saved, input_gradient=True):
        return relu_backward(dy, saved)


class Dropout(Layer):
    """Dropout whose mask is drawn from (seed, step, number of this layer)."""

    def __init__(self, rate, seed, number):
        super().__init__()
        require_rate(rate)
        self.rate, self.seed, self.number = rate, seed, number

    def forward(self, x, training=False, step=0):
        rate = self.rate if training else 0.0
        return dropout_forward(x, rate, (self.seed, step, self.number))

    def backward(self, dy, saved, input_gradient=True):
        return dropout_backward(dy, saved)


class MaxPool(Layer):
    """Halve every axis: the largest of 2^rank voxels."""

    def forward(self, x, training=False, step=0):
        return max_pool_forward(x, 2)

    def backward(self, dy, saved, input_gradient=True):
        return max_pool_backward(dy, saved)


class Upsample(Layer):
    """Double every axis by repeating voxels."""

    def forward(self, x, training=False, step=0):
        return upsample_forward(x, 2)

    def backward(self, dy, saved, input_gradient=True):
        return upsample_backward(dy, saved)


class Concat(Layer):
    """Join what comes from below with its skip connection along the channels.

    forward takes the skip besides x, and backward returns (dx, dskip).
    """

    def forward(self, x, skip):
        return concat_forward(x, skip)

    def backward(self, dy, saved):
        return concat_backward(dy, saved)


class GatedConcat(Layer):
    """Concat of x and the skip that an attention gate lets through; x is the gate's signal.

    skip_weight (*1, C, F), signal_weight (*1, G, F), bias (F,); score_weight (*1, F, 1) and its
    bias (1,).
    """

    def __init__(self, skip_weight, signal_weight, score_weight):
        bias, score_bias = (np.zeros(w.shape[-1], w.dtype) for w in (skip_weight, score_weight))
        super().__init__(
            skip_weight=skip_weight,
            signal_weight=signal_weight,
            bias=bias,
            score_weight=score_weight,
            score_bias=score_bias,
        )

    def forward(self, x, skip):
        gated, gate_saved = attention_gate_forward(skip, x, *self.values())
        y, concat_saved = concat_forward(x, gated)
        return y, (gate_saved, concat_saved)

    def backward(self, dy, saved):
        gate_saved, concat_saved = saved
        dx, dgated = concat_backward(dy, concat_saved)
        dskip, dsignal, *gradients = attention_gate_backward(dgated, gate_saved)
        self.add_gradients(*gradients)
        return dx + dsignal, dskip  # x was used twice: its gradients add


class Chain:
    """Named layers one after the other; backward goes through them in reverse."""

    def __init__(self, **layers):
        self.layers = layers

    def forward(self, x, training=False, step=0):
        saved = new_saved(training)
        for layer in self.layers.values():
            x, kept = layer.forward(x, training, step)
            saved.append(kept)
            del kept  # how long it lives is for `saved` to say
        return x, saved

    def backward(self, dx, saved, input_gradient=True):
        first, *others = self.layers.values()
        for layer in reversed(others):
            dx = layer.backward(dx, saved.pop())
        return first.backward(dx, saved.pop(), input_gradient)

    @property
    def parameters(self):
        return self._named("parameters")

    @property
    def buffers(self):
        return self._named("buffers")

    def _named(self, kind):
        return {
            f"{layer_name}.{name}": parameter
            for layer_name, layer in self.layers.items()
            for name, parameter in getattr(layer, kind).items()
        }
