"""Convolution arithmetic, drawn: where the kernel lies, what size comes out, how kernels overlap.

`python examples/conv_arithmetic.py` shows a few settings; change the last lines for others.
"""

import numpy as np

from minibrain.functional import conv_forward, conv_transpose_forward


def show(n, k, stride=1, padding=0, dilation=1):
    """Every placement of a kernel of k taps over n voxels, and the way back."""
    extent = dilation * (k - 1) + 1
    steps, spare = divmod(n + 2 * padding - extent, stride)  # spare voxels are never reached
    size = steps + 1
    print(f"\nn = {n}, k = {k}, stride {stride}, padding {padding}, dilation {dilation}\n")
    print("     x ", *"○" * padding + "●" * n + "○" * padding)
    for p in range(size):
        row = np.full(n + 2 * padding, " ")
        row[stride * p : stride * p + extent : dilation] = "■"
        print(f"  y[{p}] ", *row)
    forth = {"stride": stride, "padding": padding, "dilation": dilation}
    back = forth | {"output_padding": spare}
    counts, _ = conv_transpose_forward(np.ones((1, size, 1)), np.ones((k, 1, 1)), **back)
    print(" count ", *" " * padding, *counts.ravel().astype(int))
    print(f"\n  forth  ({n} + 2·{padding} − {extent})//{stride} + 1 = {size}")
    print(f"  back   ({size} − 1)·{stride} + {extent} − 2·{padding} + {spare} = {n}")

    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((1, n, 2)), rng.standard_normal((k, 2, 3))
    y = rng.standard_normal((1, size, 3))
    print(f"  ⟨conv(x), y⟩  = {np.vdot(conv_forward(x, weight, **forth)[0], y):.12f}")
    print(f"  ⟨x, convᵀ(y)⟩ = {np.vdot(x, conv_transpose_forward(y, weight, **back)[0]):.12f}")


def checkerboard(n, k, stride):
    """How many kernels a transposed convolution lays on each pixel of an image."""
    image, kernel = np.ones((1, n, n, 1)), np.ones((k, k, 1, 1))
    counts, _ = conv_transpose_forward(image, kernel, stride=stride)
    print(f"\n{n}×{n} pixels raised by kernels of {k}×{k} with stride {stride}: ", end="")
    print("even inside" if k % stride == 0 else f"{k} is no multiple of {stride}, a checkerboard")
    for row in counts[0, ..., 0].astype(int):
        print("  ", "".join(2 * " ░▒▓█"[count] for count in row))


if __name__ == "__main__":
    show(7, 3)
    show(7, 3, padding=1)
    show(8, 3, stride=2, padding=1)
    show(7, 3, dilation=2)
    checkerboard(5, k=3, stride=2)
    checkerboard(5, k=4, stride=2)
    checkerboard(5, k=2, stride=2)
