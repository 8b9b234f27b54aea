"""Is a hand-written gradient the derivative of its forward?

The upstream gradient is the caller's and must be random: under ones, batch norm and softmax have
gradients near 1e-16, and a backward that returns 0 would pass. The direction is random with
length one: a longer one leaves the range in which a function is close to its tangent.
"""

import numpy as np


def assert_gradient(function, x, gradient, dy, rng, *, eps=1e-6, rtol=1e-6):
    """Check ⟨gradient, u⟩ = ⟨dy, function(x + eps·u) − function(x − eps·u)⟩ / 2 eps.

    Parameters
    ----------
    function : float64 array -> float64 array, or a number
    x : where the derivative is taken
    gradient : what backward returned for it, given dy
    dy : upstream gradient, random, shaped like the result
    rng : numpy.random.Generator that draws the direction u
    rtol : allowed error, relative to the norm of the gradient (rounding is added to it)
    """
    assert gradient.shape == x.shape, f"gradient {gradient.shape} of an argument {x.shape}"
    y = np.asarray(function(x))
    assert y.dtype == x.dtype == np.float64, "gradients are checked in float64"
    rounding = 64 * np.finfo(np.float64).eps * np.sum(np.abs(dy * y)) / eps
    tolerance = rtol * np.linalg.norm(gradient) + rounding
    for _ in range(20):
        u = _unit_direction(x.shape, rng)
        slope = _slope(function, x, u, dy, eps)
        if abs(slope - _slope(function, x, u, dy, eps / 8)) > tolerance + 8 * rounding:
            continue  # a kink of ReLU or max-pool lies in between: no derivative to compare with
        error = abs(slope - np.vdot(gradient, u))
        assert error <= tolerance, f"off by {error:.3e} of {slope:.3e}, allowed {tolerance:.3e}"
        return
    raise AssertionError("a kink in each of 20 directions")


def _unit_direction(shape, rng):
    u = rng.standard_normal(shape)
    return u / np.linalg.norm(u)


def _slope(function, x, u, dy, eps):
    return np.sum(dy * (function(x + eps * u) - function(x - eps * u))) / (2 * eps)
