"""A parameter with its gradient, and the distributions that parameters start from."""

from math import prod, sqrt

import numpy as np

from minibrain.arrays import array_module


class Parameter:
    """An array that is learned, and the gradient of the loss with respect to it.

    Backward adds to `grad`. Assigning `value` (another dtype or device included, the same shape)
    begins a new gradient of zeros beside it.
    """

    def __init__(self, value):
        self._value = None
        self.value = value

    @property
    def value(self):
        return self._value

    @value.setter
    def value(self, value):
        if self._value is not None and value.shape != self._value.shape:
            raise ValueError(f"value must keep its shape {self._value.shape}, got {value.shape}")
        self._value = value
        self.grad = array_module(value).zeros_like(value)


def he_uniform(rng: np.random.Generator, shape: tuple[int, ...], dtype=np.float32) -> np.ndarray:
    """Uniform in ±√(6 / fan_in) for a weight (*K, C_in, C_out), which keeps the variance of
    activations through a ReLU. Source: He et al., arXiv:1502.01852."""
    fan_in = prod(shape[:-1])
    return _uniform(rng, shape, sqrt(6 / fan_in), dtype)


def glorot_uniform(
    rng: np.random.Generator, shape: tuple[int, ...], dtype=np.float32
) -> np.ndarray:
    """Uniform in ±√(6 / (fan_in + fan_out)) for a weight with two channel axes at the end, which
    keeps the variance in both directions. Source: Glorot & Bengio, AISTATS 2010."""
    fans = prod(shape[:-2]) * (shape[-2] + shape[-1])
    return _uniform(rng, shape, sqrt(6 / fans), dtype)


def _uniform(rng, shape, limit, dtype):
    return rng.uniform(-limit, limit, shape).astype(dtype)
