"""Every shape formula: what a convolution, its transpose and a pooling window do to a size.

Per axis, with size n, kernel k, stride s, dilation d and padding p (both sides together), one
kernel spans e = d·(k − 1) + 1 voxels, and

    convolution, pooling       (n + p − e) // s + 1
    transposed convolution     (n − 1)·s + e − p + output_padding

Source: Dumoulin & Visin, "A guide to convolution arithmetic", arXiv:1603.07285.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from operator import index
from typing import NamedTuple

Padding = int | str | Sequence[int] | Sequence[tuple[int, int]]


class ConvGeometry(NamedTuple):
    """The shape of one convolution, one entry per spatial axis.

    A transposed convolution has the geometry of the convolution whose adjoint it is: it runs
    from `output_size` to `input_size`.
    """

    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    @property
    def padded_size(self) -> tuple[int, ...]:
        pairs = zip(self.input_size, self.padding, strict=True)
        return tuple(n + before + after for n, (before, after) in pairs)

    @property
    def interior(self) -> tuple[slice, ...]:
        """Where the unpadded array lies in the padded one."""
        pairs = zip(self.input_size, self.padding, strict=True)
        return tuple(slice(before, before + n) for n, (before, _) in pairs)

    def taps(self) -> Iterator[tuple[int, ...]]:
        """Every position in the kernel, last axis fastest."""
        return product(*map(range, self.kernel_size))


def kernel_extent(kernel: int, dilation: int = 1) -> int:
    """Voxels from the kernel's first tap to its last, both included."""
    return dilation * (kernel - 1) + 1


def conv_output_size(n: int, kernel: int, stride=1, padding=0, dilation=1) -> int:
    """Output size of a convolution or pooling along one axis; padding counts both sides."""
    return (n + padding - kernel_extent(kernel, dilation)) // stride + 1


def conv_transpose_output_size(
    n: int, kernel: int, stride=1, padding=0, dilation=1, output_padding=0
) -> int:
    """Output size of a transposed convolution along one axis; padding counts both sides."""
    return (n - 1) * stride + kernel_extent(kernel, dilation) - padding + output_padding


def conv_geometry(size, kernel_size, stride=1, padding: Padding = 0, dilation=1) -> ConvGeometry:
    """The geometry of a convolution over an input of this spatial size.

    Raises
    ------
    ValueError : an argument has the wrong form, or an output axis would vanish.
    """
    size, kernel, stride, padding, dilation = _each_per_axis(
        size, kernel_size, stride, padding, dilation
    )
    output = tuple(
        conv_output_size(n, k, s, sum(p), d)
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    )
    _require_positive(output, size, kernel, stride, padding, dilation)
    return ConvGeometry(size, output, kernel, stride, padding, dilation)


def conv_transpose_geometry(
    size, kernel_size, stride=1, padding: Padding = 0, dilation=1, output_padding=0
) -> ConvGeometry:
    """The geometry of the convolution whose adjoint takes an input of this spatial size.

    Raises
    ------
    ValueError : as conv_geometry; or output_padding is not below max(stride, dilation).
    """
    size, kernel, stride, padding, dilation = _each_per_axis(
        size, kernel_size, stride, padding, dilation
    )
    extra = per_axis(output_padding, len(size), "output_padding", minimum=0)
    for e, s, d in zip(extra, stride, dilation, strict=True):
        if e >= max(s, d):
            raise ValueError(
                f"output_padding must be smaller than stride {s} or dilation {d}, got {e}"
            )
    output = tuple(
        conv_transpose_output_size(n, k, s, sum(p), d, e)
        for n, k, s, p, d, e in zip(size, kernel, stride, padding, dilation, extra, strict=True)
    )
    _require_positive(output, size, kernel, stride, padding, dilation)
    return ConvGeometry(output, size, kernel, stride, padding, dilation)


def _each_per_axis(size, kernel_size, stride, padding, dilation):
    rank = len(size)
    size = per_axis(size, rank, "size", minimum=0)
    kernel = per_axis(kernel_size, rank, "kernel_size")
    stride = per_axis(stride, rank, "stride")
    dilation = per_axis(dilation, rank, "dilation")
    return size, kernel, stride, padding_pairs(padding, kernel, stride, dilation), dilation


def per_axis(value, rank: int, name: str, minimum: int = 1) -> tuple[int, ...]:
    """An int for every axis from one int or a sequence of `rank` ints, each >= minimum."""
    if rank < 1:
        raise ValueError("x must be (N, *S, C) with one spatial axis or more")
    try:
        values = (index(value),) * rank
    except TypeError:
        values = _integers(value)
    if values is None or len(values) != rank or min(values) < minimum:
        raise ValueError(
            f"{name} must be an integer >= {minimum} or {rank} of them, one per axis, got {value!r}"
        )
    return values


def padding_pairs(padding: Padding, kernel, stride, dilation) -> tuple[tuple[int, int], ...]:
    """Every accepted form of padding as one (before, after) pair per axis.

    "valid" is none. "same" keeps the size and so needs stride 1; where a kernel spans an even
    number of voxels, the odd one of padding comes after.
    """
    rank = len(kernel)
    if isinstance(padding, str):
        return _named_padding(padding, kernel, stride, dilation)
    try:
        pairs = tuple(_integers(pair) for pair in padding)
    except TypeError:
        pairs = (None,)
    if len(pairs) == rank and all(p is not None and len(p) == 2 and min(p) >= 0 for p in pairs):
        return pairs
    try:
        return tuple((p, p) for p in per_axis(padding, rank, "padding", minimum=0))
    except ValueError:
        raise ValueError(
            f"padding must be 'same', 'valid', an integer >= 0, {rank} of them, or {rank} "
            f"(before, after) pairs, got {padding!r}"
        ) from None


def _named_padding(name, kernel, stride, dilation):
    if name == "valid":
        return ((0, 0),) * len(kernel)
    if name != "same":
        raise ValueError(f"padding must be 'same', 'valid' or numbers, got {name!r}")
    if any(s != 1 for s in stride):
        raise ValueError(f"padding 'same' needs stride 1, got stride {stride}")
    totals = [kernel_extent(k, d) - 1 for k, d in zip(kernel, dilation, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)


def _integers(values) -> tuple[int, ...] | None:
    try:
        return tuple(index(v) for v in values)
    except TypeError:
        return None


def _require_positive(output, size, kernel, stride, padding, dilation):
    for axis, n in enumerate(output):
        if n < 1:
            raise ValueError(
                f"axis {axis} would vanish: output size {n} from size {size[axis]}, "
                f"kernel_size {kernel[axis]}, stride {stride[axis]}, padding {padding[axis]}, "
                f"dilation {dilation[axis]}"
            )


def axis_of_padding_only(geometry: ConvGeometry) -> int | None:
    """The first axis along which some window lies wholly in the padding, None if there is none.

    With dilation, a window can reach over the whole input and still meet none of it.
    """
    for axis, (before, after) in enumerate(geometry.padding):
        n, s, d = (getattr(geometry, of)[axis] for of in ("input_size", "stride", "dilation"))
        starts = range(-before, s * geometry.output_size[axis] - before, s)
        taps = range(0, d * geometry.kernel_size[axis], d)
        if before + after and any(not any(0 <= p + t < n for t in taps) for p in starts):
            return axis
    return None


def require_multiple(size: Sequence[int], factor: int) -> None:
    """A U-Net that halves its input k times needs every axis to be a multiple of 2^k.

    Raises
    ------
    ValueError : naming the nearest larger size that fits.
    """
    if any(n % factor or not n for n in size):
        fitting = tuple(max(1, -(-n // factor)) * factor for n in size)
        raise ValueError(
            f"input size {tuple(size)} must be a multiple of {factor} on every axis; "
            f"{fitting} would fit"
        )
