"""Minimal filtering: several outputs of a short filter from fewer products than outputs · taps.

Both inputs and taps are first combined, then multiplied one by one, then combined once more:

    y = output · ((kernel · w) * (input · x))

F(4, 3) gives four outputs of three taps from six products, where they would take twelve. It is
polynomial multiplication by evaluation and interpolation: `kernel` evaluates the polynomial with
coefficients w at five points and at infinity, `output` does it for y's adjoint, and `input`
interpolates. A plain sum over taps is the same form: one output, a product for every tap.

Source: Winograd, "Arithmetic complexity of computations", 1980; Lavin & Gray, arXiv:1509.09308.
"""

from functools import cache
from typing import NamedTuple

import numpy as np

# Of a dozen sets tried these five lose least to rounding: 5e-6 of the largest value on two axes
POINTS = (0, 3 / 4, -3 / 4, 4 / 3, -4 / 3)
LEAST_SIZE = 6  # below it more is spent on the weights, which grow, than is saved


class Filter(NamedTuple):
    input: np.ndarray  # (products, outputs + taps − 1)
    kernel: np.ndarray  # (products, taps)
    output: np.ndarray  # (outputs, products)

    @property
    def outputs(self):
        return len(self.output)

    @property
    def products(self):
        return len(self.input)


@cache
def make_filter(taps: int, size: int) -> Filter:
    """F(4, 3) where it fits and pays along an axis of `size` outputs, else the plain sum."""
    if taps == 3 and size >= LEAST_SIZE:
        return _minimal(taps, POINTS)
    return Filter(*(np.asarray(m, np.float32) for m in (np.eye(taps), np.eye(taps), [[1] * taps])))


def _minimal(taps, points) -> Filter:
    products = len(points) + 1
    outputs = products - taps + 1
    input = np.zeros((products, products))
    kernel, output = np.zeros((products, taps)), np.zeros((outputs, products))
    for i, point in enumerate(points):
        others = np.delete(points, i)
        input[i, :-1] = np.poly(others)[::-1]
        kernel[i] = point ** np.arange(taps) / np.prod(point - others)
        output[:, i] = point ** np.arange(outputs)
    input[-1] = np.poly(points)[::-1]
    kernel[-1, -1] = output[-1, -1] = 1  # the point at infinity: the highest coefficient
    return Filter(*(matrix.astype(np.float32) for matrix in (input, kernel, output)))
