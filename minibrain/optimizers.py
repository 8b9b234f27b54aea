"""Adam, and a learning rate that is halved when progress stops."""

from collections.abc import Iterable, Mapping

import numpy as np

from minibrain.arrays import array_module, like
from minibrain.kernels import fast_twin
from minibrain.parameter import Parameter


def adam_update(gradient, mean, square, step, *, learning_rate, beta1, beta2, epsilon):
    """One step of Adam as a function of its state.

    m ← β₁m + (1 − β₁)g,    v ← β₂v + (1 − β₂)g²,
    update = −learning_rate · m/(1 − β₁ᵗ) / (√(v/(1 − β₂ᵗ)) + ε)

    Parameters
    ----------
    gradient, mean, square : arrays of one shape: g, m and v
    step : t, counted from 1

    Returns
    -------
    update, mean, square : what to add to the parameters, and the new m and v

    References
    ----------
    Kingma & Ba, arXiv:1412.6980
    """
    mean = beta1 * mean + (1 - beta1) * gradient
    square = beta2 * square + (1 - beta2) * gradient * gradient
    root = array_module(gradient).sqrt(square / (1 - beta2**step)) + epsilon
    return -learning_rate / (1 - beta1**step) * mean / root, mean, square


@fast_twin
def adam_inplace(mean, square, values, gradients, step, *, learning_rate, taken=True, **constants):
    """One step of Adam over many parameters: changes their values, and mean and square.

    Step, learning rate and `taken` may be arrays of no dimension: on a GPU they are read there.

    Parameters
    ----------
    mean, square : (size of all parameters,), their moments end to end
    values, gradients : lists of arrays, one per parameter
    step : t, counted from 1
    taken : where it is false nothing changes
    learning_rate, constants : as in `adam_update`
    """
    if not taken:
        return
    constants |= {"learning_rate": float(learning_rate)}  # a float64 array would widen the update
    gradient = array_module(mean).concatenate([gradient.ravel() for gradient in gradients])
    update, mean[:], square[:] = adam_update(gradient, mean, square, int(step), **constants)
    start = 0
    for value in values:
        value += update[start : start + value.size].reshape(value.shape)
        start += value.size


@fast_twin
def gradient_norm(gradients):
    """Square root of the sum of all squares, in float64: float32 overflows at 1e19."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = [(gradient.astype(np.float64) ** 2).sum() for gradient in gradients]
        return array_module(gradients[0]).sqrt(sum(squares))


@fast_twin
def clear_inplace(arrays):
    """Set every array to 0."""
    for array in arrays:
        array.fill(0)


@fast_twin
def scale_inplace(arrays, factor):
    """Multiply every array with a number, which may be an array of no dimension."""
    factor = float(factor)  # a float64 array would widen the products
    with np.errstate(invalid="ignore"):
        for array in arrays:
            array *= factor


class Adam:
    """Adam over all parameters at once: they are laid end to end, so that a step is a handful of
    array operations however many parameters there are.

    Its numbers lie where its moments do, in arrays of no dimension, so that on a GPU a step that
    is recorded once and repeated finds them as they are by then.

    Parameters
    ----------
    parameters : Parameters, or a mapping from names to them
    learning_rate : may be changed between steps

    Raises
    ------
    ValueError : there are no parameters
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter] | Iterable[Parameter],
        learning_rate: float = 1e-3,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
    ):
        if isinstance(parameters, Mapping):
            parameters = parameters.values()
        self.parameters = list(parameters)
        if not self.parameters:
            raise ValueError("parameters must hold one Parameter or more, got none")
        self.constants = {"beta1": beta1, "beta2": beta2, "epsilon": epsilon}
        self._steps, self._learning_rate = np.array(0, np.uint32), np.array(learning_rate, float)
        gradients = [parameter.grad for parameter in self.parameters]
        size = sum(gradient.size for gradient in gradients)
        self.mean, self.square = (array_module(gradients[0]).zeros(size) for _ in range(2))
        self._follow(gradients)

    @property
    def steps(self) -> int:
        """How many were taken. Asking for it waits for the device."""
        return int(self._steps)

    @steps.setter
    def steps(self, number: int):
        self._steps[...] = number

    @property
    def learning_rate(self) -> float:
        return float(self._learning_rate)

    @learning_rate.setter
    def learning_rate(self, value: float):
        self._learning_rate[...] = value

    def arrays(self) -> list:
        """All that a step reads and changes, where the gradients are."""
        self._follow([parameter.grad for parameter in self.parameters])
        both = [array for p in self.parameters for array in (p.value, p.grad)]
        return [*both, self.mean, self.square, self._steps, self._learning_rate]

    def step(self, taken=True):
        """Change every parameter in place, against its gradient; nothing unless `taken`, a bool or
        an array of no dimension."""
        values = [parameter.value for parameter in self.parameters]
        gradients = [parameter.grad for parameter in self.parameters]
        self._follow(gradients)
        self._steps += taken
        adam_inplace(
            self.mean,
            self.square,
            values,
            gradients,
            self._steps,
            learning_rate=self._learning_rate,
            taken=taken,
            **self.constants,
        )

    def _follow(self, gradients):
        """Keep moments and numbers where the gradients are, the moments in the widest of their
        dtypes."""
        empty, widest = gradients[0].ravel()[:0], np.result_type(*(g.dtype for g in gradients))
        self.mean, self.square = (like(m, empty.astype(widest)) for m in (self.mean, self.square))
        self._steps, self._learning_rate = (
            like(number, empty.astype(number.dtype))
            for number in (self._steps, self._learning_rate)
        )

    def zero_grad(self):
        clear_inplace([parameter.grad for parameter in self.parameters])


class HalveOnPlateau:
    """Halve an optimizer's learning rate after `patience` epochs without a lower loss.

    Parameters
    ----------
    optimizer : has a learning_rate
    patience : epochs to wait
    minimum : the learning rate is not halved below it; one that is lower already stays
    """

    def __init__(self, optimizer: Adam, patience: int = 5, minimum: float = 1e-6):
        self.optimizer, self.patience, self.minimum = optimizer, patience, minimum
        self.best, self.waited = float("inf"), 0

    def update(self, loss: float):
        """Call once an epoch with the validation loss."""
        if loss < self.best:
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            rate = self.optimizer.learning_rate
            self.optimizer.learning_rate = min(rate, max(self.minimum, rate / 2))
            self.waited = 0
