"""What stands in place of an activation that is not written is worth what it would be."""

import numpy as np
import pytest

import minibrain.functional as F
from minibrain.arrays import precision_dtype
from minibrain.duck_arrays import Joined, Pending, Summed
from minibrain.saved import ConvSaved, DropoutSaved

RNG = np.random.default_rng(0)
KEY = (2**40, 3, 1)
DROPOUT = DropoutSaved(0.3, KEY, (2, 6, 4, 3))


def normal(*shape, dtype=np.float64):
    return RNG.standard_normal(shape).astype(dtype)


def pending(dtype=np.float64, channels=3, dropout=DROPOUT):
    lines = normal(2, 1, 1, channels, 3, dtype=np.float32 if dtype != np.float64 else dtype)
    return Pending(normal(2, 6, 4, channels, dtype=dtype), lines, dropout)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_norm_relu_and_dropout_are_pending_in_a_line_for_every_channel(rate):
    x, gamma, beta = 5 * normal(2, 6, 4, 3) + 3, normal(3), normal(3)
    want, saved = F.norm_relu_forward.reference(x, gamma, beta, rate=rate, key=KEY)
    norm = saved.norm
    lines = np.broadcast_arrays(norm.mean, norm.inv_std * gamma, beta)
    got = Pending(x, np.stack(lines, axis=-1), saved.dropout)
    assert (got.shape, got.ndim, got.size, got.dtype) == (x.shape, 4, x.size, x.dtype)
    np.testing.assert_allclose(got.write(), want, rtol=1e-12, atol=1e-12)


def test_what_is_far_from_0_loses_nothing():
    """In float32: 1000 · γ/σ would be rounded, where x − 1000 is not."""
    x = np.full((1, 4, 4, 1), 1000, np.float32)
    lines = np.array([1000, 316, 0.25], np.float32).reshape(1, 1, 1, 1, 3)
    assert np.array_equal(Pending(x, lines, DropoutSaved(0.0, KEY, x.shape)).write(), 0 * x + 0.25)


def test_in_bfloat16_a_value_is_rounded_once():
    bfloat16 = precision_dtype("bf16")
    short = pending(bfloat16)
    wide = Pending(short.raw.astype(np.float32), short.lines, DROPOUT)
    assert np.array_equal(short.write(), wide.write().astype(bfloat16))
    assert short.write().dtype == bfloat16


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("conv", (normal(3, 3, 5, 4), normal(4)), {"padding": 1}),
        ("conv_transpose", (normal(2, 2, 4, 5), normal(4)), {"stride": 2}),
        ("max_pool", (2,), {}),
        ("upsample", (2,), {}),
        ("relu", (), {}),
        ("norm_relu", (normal(5), normal(5)), {}),
        ("concat", (normal(2, 6, 4, 2),), {}),
    ],
)
def test_an_operation_takes_it_as_it_takes_the_array(name, arguments, options, dtype):
    """Also where a fast twin on the CPU would not know what to do with it."""
    forward, backward = getattr(F, f"{name}_forward"), getattr(F, f"{name}_backward")
    arguments = [a.astype(dtype) if isinstance(a, np.ndarray) else a for a in arguments]
    x = Joined(pending(dtype), normal(2, 6, 4, 2, dtype=dtype))
    assert (x.shape, x.ndim, x.size, x.dtype) == ((2, 6, 4, 5), 4, 240, dtype)
    assert np.array_equal(x.write(), np.concatenate([x.a.write(), x.b], axis=-1))
    y, saved = forward(x, *arguments, **options)
    want, want_saved = forward(x.write(), *arguments, **options)
    assert np.array_equal(y, want)
    dy = normal(*y.shape, dtype=dtype)
    if name.startswith("conv"):  # as a twin on a GPU would keep it
        saved = ConvSaved(x, saved.weight, saved.geometry)
    results = (backward(dy, each) for each in (saved, want_saved))
    got, want = (each if isinstance(each, tuple) else (each,) for each in results)
    assert all(map(np.array_equal, got, want))


def test_an_array_with_sums_over_it_is_that_array():
    x, weight = normal(2, 6, 4, 3), normal(3, 3, 3, 2)
    summed = Summed(x, np.stack([x.sum(axis=1), (x**2).sum(axis=1)]))
    assert (summed.shape, summed.dtype) == (x.shape, x.dtype)
    assert summed.write() is x
    assert np.array_equal(F.conv_forward(summed, weight)[0], F.conv_forward(x, weight)[0])


def test_who_works_by_hand_has_an_array():
    x = pending()
    y = x.write()
    for got, want in [
        (x + 1, y + 1),
        (2 - x, 2 - y),
        (x * x, y * y),
        (x > 0.5, y > 0.5),
        (np.exp(x), np.exp(y)),
        (x[0, :, 1], y[0, :, 1]),
        (np.concatenate([x, y]), np.concatenate([y, y])),
    ]:
        assert np.array_equal(got, want)
    assert (len(x), np.sum(x)) == (2, y.sum())
    y += x
    assert np.array_equal(y, 2 * x)
    same = x
    x *= 2
    assert isinstance(x, np.ndarray)
    assert np.array_equal(x, y)
    with pytest.raises(TypeError):  # it is not written to
        np.add(y, 1, out=same)
