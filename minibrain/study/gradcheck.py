"""Is a hand-written gradient the derivative of its forward?

Along a direction u, the slope of ⟨dy, forward(x)⟩ is known twice: from backward, as ⟨dx, u⟩, and
from forward alone, as a central difference,

    ⟨dx, u⟩ = ⟨dy, forward(x + ε·u) − forward(x − ε·u)⟩ / 2ε + O(ε²)

Why it is done just so:

- dy is random. Under a dy of ones, batch norm and softmax have a dx of 0, and a backward that
  returns 0 would pass.
- One random u tests every element at once: a wrong gradient agrees along it by chance only.
- u has length one. A longer one leaves the range in which forward is close to its tangent.
- float64 and ε = 1e-6. Smaller, and the rounding of forward, divided by ε, is all that is left;
  larger, and the curvature shows. In float32 no ε is good at both.
- At a kink of ReLU or max-pool there is no slope. The differences of two ε then disagree with each
  other too, and another u is drawn. A point on the very kink cannot be told from a wrong gradient,
  so x is random as well: zeros before a ReLU, or equal values before a max-pool, are "wrong".
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import NamedTuple

import numpy as np

DIRECTIONS = 20  # drawn before a kink in each of them is believed


class GradientCheck(NamedTuple):
    """One gradient, held against the slope of its forward along one direction."""

    argument: str
    analytic: float  # ⟨gradient, u⟩
    numeric: float  # the central difference
    error: float  # their difference, relative to the length of the gradient
    verdict: str  # "ok", "wrong", or "kink" where no direction had a slope

    @property
    def passed(self) -> bool:
        return self.verdict == "ok"


def gradcheck(
    forward: Callable, backward: Callable, arrays: Mapping[str, np.ndarray], *, seed=0
) -> list[GradientCheck]:
    """Check a pair of functions, one argument after the other.

    Parameters
    ----------
    forward : (*arrays) -> (y, saved), y an array or a number
    backward : (dy, saved) -> the gradients of all arrays in their order, or the gradient of one
    arrays : float64 arrays by name, where the derivative is taken; random, to lie on no kink
    seed : of dy and the directions

    Raises
    ------
    ValueError : an array is not float64, or the gradients do not fit the arrays
    """
    rng = _generator(seed)
    names, values = list(arrays), list(arrays.values())
    y, saved = forward(*values)
    dy = rng.standard_normal(np.shape(y))
    gradients = backward(dy, saved)
    gradients = gradients if isinstance(gradients, tuple | list) else (gradients,)
    if len(gradients) != len(arrays):
        raise ValueError(f"backward gave {len(gradients)} gradients of {', '.join(names)}")

    checks = []
    for i, (name, gradient) in enumerate(zip(names, gradients, strict=True)):

        def along(value, i=i):
            return forward(*values[:i], value, *values[i + 1 :])[0]

        checks.append(check_gradient(along, values[i], gradient, dy, rng, name=name))
    return checks


def gradcheck_layer(layer, x, *, step=0, seed=0) -> list[GradientCheck]:
    """Check a layer, a chain of them or a network: the gradients of x and of every parameter.

    A copy of it is checked, in float64 and in training. Biases, gammas and betas, which start at
    0 and 1, are moved from there: a gradient that forgets a factor of 1 would pass.

    Parameters
    ----------
    layer : has forward(x, training, step) -> (y, saved), backward(dy, saved) -> dx, and
        `parameters` or `named_parameters()`, a dict of Parameter on the CPU
    x : (N, *S, C)
    step : a part of the dropout key
    seed : as in gradcheck
    """
    layer, rng = deepcopy(layer), _generator(seed)
    parameters = _parameters(layer)
    for parameter in parameters.values():
        parameter.value = parameter.value.astype(np.float64)
        if parameter.value.ndim == 1:
            parameter.value += rng.uniform(-0.3, 0.3, parameter.value.shape)

    def forward(x, *values):
        for parameter, value in zip(parameters.values(), values, strict=True):
            parameter.value = value
        return layer.forward(x, training=True, step=step)

    def backward(dy, saved):
        dx = layer.backward(dy, saved)
        return dx, *(parameter.grad for parameter in parameters.values())

    arrays = {name: parameter.value for name, parameter in parameters.items()}
    return gradcheck(forward, backward, {"x": x.astype(np.float64), **arrays}, seed=seed)


def check_gradient(
    function: Callable, x, gradient, dy, rng, *, name="x", eps=1e-6, rtol=1e-6
) -> GradientCheck:
    """Hold one gradient against the slope of its function along a random direction.

    Parameters
    ----------
    function : float64 array -> float64 array, or a number
    x : where the derivative is taken
    gradient : what backward returned for it, given dy
    dy : upstream gradient, random, shaped like the result
    rng : numpy.random.Generator that draws the direction
    rtol : allowed error, relative to the length of the gradient (rounding is added to it)
    """
    if np.shape(gradient) != x.shape:
        raise ValueError(f"{name} has shape {x.shape}, its gradient {np.shape(gradient)}")
    for _ in range(DIRECTIONS):
        u = rng.standard_normal(x.shape)
        u /= np.linalg.norm(u)
        numeric, rounding = _slope(function, x, u, dy, eps)
        analytic = np.vdot(gradient, u)
        length = np.linalg.norm(gradient) + rounding / rtol or 1.0  # a ReLU of negatives: all is 0
        error = abs(analytic - numeric) / length
        if error <= rtol:
            verdict = "ok"
            break
        nearer, rounding = _slope(function, x, u, dy, eps / 8)
        kink = abs(numeric - nearer) > rtol * length + rounding
        verdict = "kink" if kink else "wrong"
        if not kink:
            break
    return GradientCheck(name, float(analytic), float(numeric), float(error), verdict)


def _slope(function, x, u, dy, eps):
    """The central difference of ⟨dy, function⟩ along u, and how far rounding may have moved it."""
    ahead, behind = (np.asarray(function(x + step * u)) for step in (eps, -eps))
    if not ahead.dtype == x.dtype == np.float64:
        raise ValueError(f"gradients are checked in float64, got {x.dtype} and {ahead.dtype}")
    rounding = 64 * np.finfo(np.float64).eps * np.sum(np.abs(dy * ahead)) / eps
    return np.sum(dy * (ahead - behind)) / (2 * eps), rounding


def _generator(seed) -> np.random.Generator:
    """A stream of its own: from the seed that the caller drew x with, dy would be x again."""
    return np.random.default_rng(seed).spawn(1)[0]


def _parameters(layer) -> dict:
    return layer.named_parameters() if hasattr(layer, "named_parameters") else layer.parameters
