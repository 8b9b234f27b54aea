"""What fast operations hand on in place of arrays, to spare passes over memory."""

from dataclasses import dataclass
from math import prod

import numpy as np

from minibrain.arrays import array_module, like, widened
from minibrain.saved import Array, DropoutSaved


class DuckArray(np.lib.mixins.NDArrayOperatorsMixin):
    """What a fast twin hands on in place of an array, to spare a pass over memory.

    It looks like the array that it stands for as far as shape and dtype go, and its gradient is the
    gradient of that array, which `write` gives. A twin that knows how to take one in says so
    (`minibrain.kernels.takes`); all others, and every readable body, get the array and never meet
    one. Nor need anybody know who works by hand: arithmetic, indexing and functions of NumPy and
    CuPy write it, too. Methods of arrays it has none.
    """

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.write(), dtype)

    def __cupy_get_ndarray__(self):  # CuPy's way to ask
        return self.write()

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        out = options.get("out", ())
        if any(isinstance(x, DuckArray) for x in out):
            if out[0] is not inputs[0]:
                return NotImplemented
            del options["out"]  # of +=, say: what it stands for is a new array from now on
        inputs = (x.write() if isinstance(x, DuckArray) else x for x in inputs)
        return getattr(ufunc, method)(*inputs, **options)

    def __getitem__(self, index):
        return self.write()[index]

    def __len__(self):
        return self.shape[0]

    @property
    def ndim(self):
        return len(self.shape)

    @property
    def size(self):
        return prod(self.shape)

    @property
    def nbytes(self):
        return self.size * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Pending(DuckArray):
    """relu((raw − centre) · scale + shift), then dropout.

    Between two convolutions of a network lies a norm, a ReLU and, sometimes, dropout:

        raw ──▶ statistics ──▶ (raw − mean) · γ/σ + β ──▶ relu ──▶ dropout ──▶ the next convolution

    Backward needs raw, to find x̂ again, and the activation, for the next convolution's weight
    gradient. But the second follows from the first: once the statistics are known it is a line in
    raw for every channel, cut off at 0, and dropout is a function of its key. So on a GPU, where
    memory is the limit, `norm_relu_forward` computes the statistics and returns a Pending. Whoever
    takes it in applies the line while loading raw, in backward once more, and the activation is
    neither written nor kept. A convolution pads with zeros afterwards: what lies outside the volume
    is 0, not relu(shift). In bfloat16 every value is rounded once, as it would be when written.

    raw : (N, *S, C), what was normalised
    lines : (N, 1, ..., C, 3), centre, scale and shift, in float32 or wider. The centre is the mean,
        subtracted first, so that a mean much larger than σ costs no precision
    dropout : rate 0 for none
    """

    raw: Array
    lines: Array
    dropout: DropoutSaved

    @property
    def shape(self):
        return self.raw.shape

    @property
    def dtype(self):
        return self.raw.dtype

    def write(self):
        raw = widened(self.raw)
        centre, scale, shift = (self.lines[..., i] for i in range(3))
        y = array_module(raw).maximum((raw - centre) * scale + shift, 0)
        return like(y * self.dropout.factors(y) if self.dropout.rate else y, self.raw)


@dataclass(frozen=True, eq=False)
class Joined(DuckArray):
    """a and b, one after the other along the channels; each an array or Pending.

    A convolution after it can as well read from two places: concatenation moves nothing.
    """

    a: Array
    b: Array

    @property
    def shape(self):
        return (*self.a.shape[:-1], self.a.shape[-1] + self.b.shape[-1])

    @property
    def dtype(self):
        return self.a.dtype

    def write(self):
        a, b = (x.write() if isinstance(x, DuckArray) else x for x in (self.a, self.b))
        return array_module(a).concatenate([a, b], axis=-1)


@dataclass(frozen=True, eq=False)
class Summed(DuckArray):
    """An array, and sums over it that the kernel which wrote it has added up on the way.

    The first thing that a norm does with the result of a convolution is to read all of it, for mean
    and variance. But the convolution had every value in a register: it can spare the norm that.

    values : (N, *S, C)
    sums : (2, N, P, C) float32, Σ x and Σ x² over each of P parts of a sample. A part has so few
        values that the squares of numbers with the 8 bits of bfloat16 lose nothing which those
        numbers have; who adds up the parts does so in float64
    """

    values: Array
    sums: Array

    @property
    def shape(self):
        return self.values.shape

    @property
    def dtype(self):
        return self.values.dtype

    def write(self):
        return self.values
