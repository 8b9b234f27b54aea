"""Every CUDA kernel, run on the CPU, against the functional reference."""

import inspect
from dataclasses import replace
from math import prod

import numpy as np
import pytest
import standin
from compare import (
    BFLOAT16,
    assert_close,
    check_pair,
    check_pending,
    host,
    on_device,
    pending,
    random,
    wide,
)
from emulator import SCHEDULES, emulated
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import minibrain.functional as F
from minibrain.duck_arrays import DuckArray, Summed
from minibrain.geometry import (
    axis_of_padding_only,
    conv_geometry,
    conv_output_size,
    conv_transpose_output_size,
    kernel_extent,
)
from minibrain.kernels import written
from minibrain.kernels.cuda.reduce import add_parts
from minibrain.saved import ConvSaved

RNG = np.random.default_rng(0)


def values(*shape):
    return random(RNG, shape)


def labels(*shape, classes=3):
    return RNG.integers(0, classes, shape).astype(np.uint8)


X = values(2, 5, 6, 7, 3)
GAMMA, BETA, MEAN = values(3), values(3), values(3)
VARIANCE = np.abs(values(3)) + 0.5
WIDE, EIGHTS = values(1, 4, 5, 37), values(3, 7, 5, 24)
GATE = (values(1, 1, 1, 3, 2), values(1, 1, 1, 4, 2), values(2), values(1, 1, 1, 2, 1), values(1))
LARGE = values(2, 31, 67, 3)  # sums over its voxels are cut into parts
MANY = np.arange(2**21 + 1, dtype=np.float32)[None, None]  # channels, more than a grid has blocks
FOUR = values(2, 31, 17, 4)  # classes, which a thread of the losses takes at once
TIED = np.round(values(2, 7, 6, 3))
ANISOTROPIC = {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "dilation": (1, 2)}

# name of the pair, arguments, options, roundings; see check_pair
CALLS = [
    ("conv", (X, values(3, 3, 3, 3, 18), values(18)), {"padding": "same"}, 500),
    ("conv", (X[:, 0], values(3, 2, 3, 4)), ANISOTROPIC, 100),
    ("conv", (X[:, 0, 0], values(2, 3, 1), values(1)), {"stride": 3}, 100),
    ("conv", (WIDE, values(2, 1, 37, 35), values(35)), {"padding": 1}, 200),
    ("conv", (values(1, 40, 50, 4), values(3, 3, 4, 17)), {}, 4000),
    ("conv", (values(1, 20, 31, 8), values(3, 2, 8, 12), values(12)), {"padding": 1}, 2000),
    ("conv_transpose", (X, values(2, 2, 2, 18, 3), values(18)), {"stride": 2}, 400),
    ("conv_transpose", (values(2, 12, 9, 8), values(2, 3, 4, 8), values(4)), {"stride": 2}, 800),
    (
        "conv_transpose",
        (X[:, 0], values(3, 3, 4, 3), values(4)),
        {"stride": 2, "padding": 1, "output_padding": (1, 0)},
        100,
    ),
    ("max_pool", (X,), {}, 0),
    ("max_pool", (TIED,), {"kernel_size": 3, "stride": 2, "padding": 1}, 9),
    ("max_pool", (-np.abs(X), (2, 1, 3)), {"stride": 1, "padding": (0, 0, 1)}, 9),
    ("upsample", (X,), {}, 8),
    ("upsample", (X[:, 0], (1, 3)), {}, 8),
    ("concat", (X, values(2, 5, 6, 7, 4)), {}, 0),
    ("attention_gate", (X, values(2, 5, 6, 7, 4), *GATE), {}, 400),
    ("instance_norm", (X, GAMMA, BETA), {}, 40),
    ("instance_norm", (1000 + WIDE, values(37), values(37)), {}, 20_000),  # cancellation
    ("instance_norm", (LARGE, GAMMA, BETA), {}, 4000),
    ("norm_relu", (X, GAMMA, BETA), {}, 40),
    ("norm_relu", (X, GAMMA, BETA), {"rate": 0.4, "key": (3, 2, 1)}, 40),
    ("norm_relu", (EIGHTS, *values(2, 24)), {"rate": 0.4, "key": (3, 2, 1)}, 80),
    ("instance_norm", (1000 + EIGHTS, *values(2, 24)), {}, 20_000),
    ("batch_norm", (LARGE, GAMMA, BETA), {}, 4000),
    ("batch_norm", (X, GAMMA, BETA), {}, 40),
    ("batch_norm", (X, GAMMA, BETA, MEAN, VARIANCE), {"training": False}, 40),
    ("relu", (X,), {}, 0),
    ("sigmoid", (20 * X,), {}, 10),
    ("softmax", (20 * X,), {}, 10),
    ("softmax", (WIDE,), {}, 40),
    ("dropout", (X, 0.3, (2**64 - 1, 2**32 - 1, 5)), {}, 2),
    ("dropout", (X[0, 0, 0], 0.0, (7, 0, 0)), {}, 0),
    ("cross_entropy", (9 * X, labels(2, 5, 6, 7)), {}, 20),
    ("cross_entropy", (9 * X, labels(2, 5, 6, 7).astype(np.int64)), {}, 20),
    ("cross_entropy", (LARGE, labels(2, 31, 67)), {}, 20),
    ("dice_loss", (LARGE, labels(2, 31, 67)), {"per_sample": True}, 40),
    ("dice_loss", (9 * X, labels(2, 5, 6, 7)), {"smooth": 1e-6}, 40),
    ("dice_loss", (9 * X, labels(2, 5, 6, 7)), {"per_sample": True}, 40),
    ("cce_dice_loss", (FOUR, labels(2, 31, 17, classes=4)), {"per_sample": True}, 200),
    ("cce_dice_loss", (9 * X, labels(2, 5, 6, 7)), {}, 40),
    ("cce_dice_loss", (WIDE, labels(1, 4, 5)), {"cce_weight": 0.2, "per_sample": True}, 80),
]
IDS = [f"{name}-{i}" for i, (name, *_) in enumerate(CALLS)]


def test_every_operation_is_called_here():
    functions = dict(inspect.getmembers(F, inspect.isfunction))
    assert {name.rpartition("_")[0] for name in functions} == {name for name, *_ in CALLS}


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("name", "arguments", "options", "length"), CALLS, ids=IDS)
def test_kernels_agree_with_the_reference(name, arguments, options, length, schedule, dtype):
    if name == "attention_gate" and dtype == BFLOAT16:
        pytest.skip("its parts are rounded one by one, and are tested one by one")
    check_run((schedule, dtype), name, arguments, options, length)


axis = st.fixed_dictionaries(
    {
        "size": st.integers(1, 7),
        "kernel": st.integers(1, 3),
        "stride": st.integers(1, 3),
        "dilation": st.integers(1, 2),
        "padding": st.tuples(st.integers(0, 3), st.integers(0, 3)),
    }
)
axes = st.lists(axis, min_size=1, max_size=3).map(
    lambda found: {key: tuple(a[key] for a in found) for key in found[0]}
)
channels = st.integers(1, 5) | st.integers(15, 18) | st.integers(31, 34)


runs = st.tuples(st.sampled_from(SCHEDULES), st.sampled_from([np.float32, BFLOAT16]))


def check_run(run, name, arguments, options, length):
    schedule, dtype = run
    with emulated(schedule) as emulator:
        rng = np.random.default_rng(1)
        check_pair(emulator, name, arguments, options, length, rng, dtype)


@settings(max_examples=50)
@given(axes, channels, channels, st.integers(1, 2), runs)
def test_convolution_in_any_geometry(a, inputs, outputs, batch, run):
    sizes = _output_sizes(a)
    assume(min(sizes) > 0)
    x, weight = values(batch, *a["size"], inputs), values(*a["kernel"], inputs, outputs)
    options = {key: a[key] for key in ("stride", "dilation", "padding")}
    length = 200 + 2 * (prod(a["kernel"]) * max(inputs, outputs) + batch * prod(sizes))
    check_run(run, "conv", (x, weight, values(outputs)), options, length)


@settings(max_examples=50)
@given(axes, channels, channels, st.integers(1, 2), runs, st.data())
def test_transposed_convolution_in_any_geometry(a, inputs, outputs, batch, run, data):
    limits = map(max, a["stride"], a["dilation"])
    extra = tuple(data.draw(st.integers(0, limit - 1)) for limit in limits)
    each = zip(a["size"], a["kernel"], a["stride"], a["padding"], a["dilation"], extra, strict=True)
    sizes = [conv_transpose_output_size(n, k, s, sum(p), d, e) for n, k, s, p, d, e in each]
    assume(min(sizes) > 0)
    x, weight = values(batch, *a["size"], inputs), values(*a["kernel"], outputs, inputs)
    options = {key: a[key] for key in ("stride", "dilation", "padding")} | {"output_padding": extra}
    length = 200 + 2 * (prod(a["kernel"]) * max(inputs, outputs) + batch * prod(sizes))
    check_run(run, "conv_transpose", (x, weight, values(outputs)), options, length)


@settings(max_examples=50)
@given(axes, channels, st.integers(1, 2), runs)
def test_max_pool_in_any_geometry(a, count, batch, run):
    extents = map(kernel_extent, a["kernel"], a["dilation"])
    a["padding"] = tuple(
        tuple(min(p, extent - 1) for p in pair)
        for pair, extent in zip(a["padding"], extents, strict=True)
    )
    assume(min(_output_sizes(a)) > 0)
    geometry = (a[key] for key in ("size", "kernel", "stride", "padding", "dilation"))
    assume(axis_of_padding_only(conv_geometry(*geometry)) is None)
    x = np.round(values(batch, *a["size"], count))  # with many values that are equal
    options = {key: a[key] for key in ("stride", "dilation", "padding")}
    check_run(run, "max_pool", (x, a["kernel"]), options, 30)


def _output_sizes(a):
    keys = ("size", "kernel", "stride", "padding", "dilation")
    each = zip(*(a[key] for key in keys), strict=True)
    return [conv_output_size(n, k, s, sum(p), d) for n, k, s, p, d in each]


shapes = st.tuples(st.integers(1, 3), st.lists(st.integers(1, 9), min_size=1, max_size=3), channels)
whole_numbers = st.integers(0, 2**32 - 1)
keys = st.tuples(st.integers(0, 2**64 - 1), whole_numbers, whole_numbers)


@settings(max_examples=60)
@given(shapes, st.sampled_from(["instance_norm", "batch_norm", "norm_relu"]), st.data(), runs)
def test_norms_of_any_shape(shape, name, data, run):
    batch, size, count = shape
    assume(prod(size) > 2)
    options = {}
    if name == "norm_relu":
        options = {"rate": data.draw(st.floats(0, 0.99)), "key": data.draw(keys)}
    check_run(run, name, (values(batch, *size, count), values(count), values(count)), options, 1000)


@pytest.mark.parametrize("name", ["instance_norm", "batch_norm", "norm_relu"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_norm_adds_up_the_sums_that_come_with_its_input(name, schedule):
    check_summed_norm(name, schedule)


def check_summed_norm(name, schedule):
    x, arguments = values(2, 6, 10, 16) + 0.5, (values(16), values(16))
    parts = x.reshape(2, 3, 20, 16)  # three of each sample
    summed = Summed(on_device(x), on_device(np.stack([(parts**p).sum(axis=2) for p in (1, 2)])))
    with emulated(schedule) as emulator:
        y, saved = getattr(F, f"{name}_forward")(summed, *map(on_device, arguments))
    want, want_saved = getattr(F, f"{name}_forward").reference(x, *arguments)
    assert_close((y, *statistics(saved)), (want, *statistics(want_saved)), 40)
    assert not any("sum_centred" in launch for launch in emulator.launches)


@pytest.mark.parametrize("place", [0, 2**17, -1])
@pytest.mark.parametrize("channels", [1, 8])
def test_one_value_far_from_all_others_does_not_cost_the_variance_precision(channels, place):
    x = np.zeros((1, 2**18, channels), np.float32)
    x[0, place] = values(channels) + 1234.5678
    with emulated():
        arguments = on_device(x), *map(on_device, np.ones((2, channels), np.float32))
        _, saved = F.norm_relu_forward(*arguments)
    np.testing.assert_allclose(host(saved.norm.variance)[0, 0], wide(x).var(axis=(0, 1)), 1e-6)


@pytest.mark.parametrize("parts", [1, 8, 9, 300, 1000])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_parts_are_added_by_as_many_lanes_as_they_need(parts, schedule):
    partial = values(3, parts, 37)
    with emulated(schedule):
        sums = add_parts(on_device(partial), 1)
    assert_close(sums, partial.sum(axis=1, dtype=np.float64), 1)


def test_sums_of_squares_lose_nothing_where_the_mean_is_large():
    """Parts of a constant channel, of all sizes: what is left of its variance is 0, not below."""
    sizes = RNG.integers(1, 64, (1, 4000, 1)).astype(np.float32)
    sums = np.stack([sizes * 255, sizes * 255**2])
    x = np.full((1, int(sizes.sum()), 1), 255, np.float32)
    with emulated():
        summed = Summed(on_device(x.astype(BFLOAT16)), on_device(sums))
        _, saved = F.norm_relu_forward(
            summed, on_device(np.ones(1, np.float32)), on_device(np.zeros(1, np.float32))
        )
    assert (host(saved.norm.mean), host(saved.norm.variance)) == (255, 0)


def statistics(saved):
    norm = getattr(saved, "norm", saved)
    return norm.mean, norm.variance, norm.inv_std


@settings(max_examples=60)
@given(shapes, st.sampled_from(["relu", "sigmoid", "softmax", "dropout"]), st.data(), runs)
def test_activations_of_any_shape(shape, name, data, run):
    batch, size, count = shape
    arguments = [4 * values(batch, *size, count)]
    if name == "dropout":
        arguments += [data.draw(st.floats(0, 0.99)), data.draw(keys)]
    check_run(run, name, arguments, {}, 100)


@settings(max_examples=40)
@given(shapes, channels, st.lists(st.integers(1, 3), min_size=3, max_size=3), runs)
def test_copies_of_any_shape(shape, other, factor, run):
    batch, size, count = shape
    x = values(batch, *size, count)
    check_run(run, "upsample", (x, tuple(factor[: len(size)])), {}, 30)
    check_run(run, "concat", (x, values(batch, *size, other)), {}, 0)


@settings(max_examples=40)
@given(
    shapes,
    st.sampled_from(["cross_entropy", "dice_loss", "cce_dice_loss"]),
    st.sampled_from([np.uint8, np.int16, np.int64]),
    st.booleans(),
    runs,
)
def test_losses_of_any_shape(shape, name, dtype, per_sample, run):
    batch, size, classes = shape
    truth = RNG.integers(0, classes, (batch, *size)).astype(dtype)
    options = {} if name == "cross_entropy" else {"per_sample": per_sample}
    check_run(run, name, (4 * values(batch, *size, classes), truth), options, 500)


@pytest.mark.parametrize(("name", "arguments", "options", "length"), CALLS, ids=IDS)
def test_the_bits_are_the_same_in_every_order_of_threads(name, arguments, options, length):
    forward, backward = getattr(F, f"{name}_forward"), getattr(F, f"{name}_backward")

    def bits(schedule):
        with emulated(schedule):
            y, saved = forward(*map(on_device, arguments), **options)
            dy = 1.0 if host(y).ndim == 0 else np.cos(np.arange(y.size, dtype=np.float32))
            dx = backward(on_device(dy.reshape(y.shape)) if host(y).ndim else dy, saved)
            dx = written(dx)
        results = (y, *(dx if isinstance(dx, tuple) else (dx,)))
        return [host(result).tobytes() for result in results if result is not None]

    first, *others = map(bits, SCHEDULES)
    assert all(other == first for other in others)


def test_dropout_draws_the_same_bits_as_numpy():
    x = np.ones((3, 5, 7, 9), np.float32)
    for key in ((0, 0, 0), (2**64 - 1, 7, 2**32 - 1), (2**40 + 3, 2**32 - 1, 1)):
        want, _ = F.dropout_forward.reference(x, 0.37, key)
        with emulated():
            got, _ = F.dropout_forward(on_device(x), 0.37, key)
        assert host(got).tobytes() == want.tobytes()


def test_the_step_of_a_dropout_key_may_lie_on_the_device():
    """It is read when the kernel runs, by every kernel that draws."""
    step = standin.asarray(np.uint32(0))
    for number in (7, 2**32 - 1):
        step[...] = number
        known, unknown = (2**40 + 3, number, 1), (2**40 + 3, step, 1)
        with emulated() as emulator:
            for operation, arguments in (
                (F.dropout_forward, ()),
                (F.norm_relu_forward, (GAMMA, BETA)),
            ):
                (want, _), (got, _) = (
                    operation(*map(on_device, (X, *arguments)), rate=0.4, key=key)
                    for key in (known, unknown)
                )
                assert host(got).tobytes() == host(want).tobytes()
            assert emulator.launches.count("activation.dropout") == 2
            assert emulator.launches.count("normalization.write_pending_1") == 2
        left_to_reference, _ = F.dropout_forward.reference(on_device(X), 0.4, unknown)
        want, _ = F.dropout_forward.reference(X, 0.4, known)
        assert host(left_to_reference).tobytes() == want.tobytes()


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("conv", (X.astype(np.float64), values(3, 3, 3, 3, 2).astype(np.float64)), {}),
        ("conv", (X, values(3, 3, 3, 2, 2)), {}),
        ("conv", (X, values(9, 3, 3, 3, 2)), {}),
        ("max_pool", (X,), {"padding": 2}),
        ("instance_norm", (X[:, :1, :1, :1], GAMMA, BETA), {}),
        ("batch_norm", (X, GAMMA, BETA), {"training": False}),
        ("batch_norm", (X, GAMMA, BETA, MEAN), {"training": False}),
        ("dropout", (X, 1.0, (0, 0, 0)), {}),
        ("dropout", (X, 0.5, (0, 2**32, 0)), {}),
        ("norm_relu", (X, GAMMA, BETA), {"rate": 0.5, "key": (-1, 0, 0)}),
        ("concat", (X, X[:1]), {}),
        ("concat", (MANY, MANY), {}),
        ("max_pool", (MANY, 1), {}),
        ("upsample", (MANY,), {}),
        ("dice_loss", (X, labels(2, 5, 6)), {}),
    ],
)
def test_what_kernels_cannot_do_gets_the_answer_of_the_reference(name, arguments, options):
    """The same values, or the same error."""

    forward = getattr(F, f"{name}_forward")

    def outcome(operation, convert):
        try:
            return host(operation(*map(convert, arguments), **options)[0])
        except ValueError as error:
            return str(error)

    with emulated():
        got = outcome(forward, on_device)
    want = outcome(forward.reference, lambda value: value)
    assert np.array_equal(got, want) if isinstance(want, np.ndarray) else got == want


WRITES = {"normalization.write_pending_1", "normalization.write_pending_8"}
POINT = values(1, 1, 1, 8, 3)
READERS = [
    ("conv", (values(3, 3, 3, 8, 6), values(6)), {"padding": 1}),
    ("conv", (POINT, values(3)), {}),
    ("conv_transpose", (values(2, 2, 2, 5, 8), values(5)), {"stride": 2}),
    ("max_pool", (2,), {}),
    ("max_pool", (3,), {"stride": 2, "padding": 1}),
    ("upsample", (), {}),
    ("relu", (), {}),
    ("instance_norm", (values(8), values(8)), {}),
    ("norm_relu", (values(8), values(8)), {}),
    ("concat", (values(2, 5, 6, 7, 3),), {}),
]


def test_whoever_works_by_hand_on_a_device_has_an_array():
    x = pending((2, 5, 6, 3), np.float32)
    y, total = x.write(), standin.asarray(np.ones(x.shape, np.float32))
    total += x
    for got, want in [
        (y + x, 2 * y),
        (y < x, y < y),
        (standin.exp(x), standin.exp(y)),
        (standin.asarray(x), y),
        (total, y + 1),
    ]:
        assert np.array_equal(host(got), host(want))


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_is_pending_is_read_as_if_it_were_written(schedule, dtype):
    check_readers(schedule, dtype)


def check_readers(schedule, dtype=np.float32):
    with emulated(schedule) as emulator:
        for name, others, options in READERS:
            x = pending((2, 5, 6, 7, 8), dtype)
            others = [o.astype(dtype) if name == "concat" else o for o in others]
            launches = check_pending(emulator, name, (x, *map(on_device, others)), options)
            assert name not in ("max_pool", "concat") or not WRITES.intersection(launches)
        x, skip = pending((2, 5, 6, 7, 3), dtype), pending((2, 5, 6, 7, 4), dtype, rate=0.0)
        check_pending(emulator, "attention_gate", (x, skip, *map(on_device, GATE)), {})
        check_pending(emulator, "concat", (skip, x), {})
        x, skip = pending((2, 5, 6, 7, 16), dtype), pending((2, 5, 6, 7, 8), dtype)
        check_pending(emulator, "concat", (skip, x), {})


def check_rounding(schedule):
    """1 · weight, stored in bfloat16, has the bits that ml_dtypes gives the weight."""
    words = RNG.integers(0, 2**32, 500, dtype=np.uint32)
    ties = words & ~np.uint32(0xFFFF) | np.uint32(0x8000)
    special = np.array([0x7F800001, 0x7FFFFFFF, 0xFFC00000, 0x7F7FFFFF, 0x80000001], np.uint32)
    weight = np.concatenate([words, ties, ties - 1, ties + 1, special]).view(np.float32)
    with emulated(schedule):
        one = on_device(np.ones((1, 1, 1), BFLOAT16))
        got, _ = F.conv_forward(one, on_device(weight.reshape(1, 1, -1)))
    with np.errstate(invalid="ignore"):
        want, got = weight.astype(BFLOAT16), host(got).ravel()
    number = ~np.isnan(weight)
    assert np.array_equal(np.isnan(got.astype(np.float32)), ~number)
    assert np.array_equal(got[number].view(np.uint16), want[number].view(np.uint16))


def test_rounding_to_bfloat16_is_to_nearest_even():
    check_rounding(schedule=0)


def test_not_a_number_stays_one():
    x = X.copy()
    x[0, 1, 1, 1, 0] = np.nan
    with emulated():
        for forward in (F.relu_forward, F.max_pool_forward):
            want, got = (np.isnan(host(forward(v)[0])) for v in (x, on_device(x)))
            assert np.array_equal(got, want)
            assert got.any()


@pytest.mark.parametrize(("name", "arguments", "options", "length"), CALLS, ids=IDS)
def test_arrays_may_lie_in_any_order(name, arguments, options, length):
    """Every array, also in what was saved, is a view that skips elements or runs backwards."""
    forward, backward = getattr(F, f"{name}_forward"), getattr(F, f"{name}_backward")
    true_y, true_saved = forward.reference(*map(wide, arguments), **options)
    dy = 1.5 if np.ndim(true_y) == 0 else random(RNG, true_y.shape)
    with emulated():
        y, saved = forward(*map(scattered, arguments), **options)
        dx = written(backward(scattered(dy), scattered(saved)))
    assert_close(y, true_y, length)
    assert_close(dx, backward.reference(wide(dy), true_saved), length)


def scattered(value):
    """The same array on the device, its elements far apart and in another order."""
    if hasattr(value, "_asdict"):
        return type(value)(*map(scattered, value))
    if isinstance(value, DuckArray):
        return replace(value, **{key: scattered(part) for key, part in vars(value).items()})
    value = host(value)
    if not isinstance(value, np.ndarray) or not value.ndim:
        return value
    apart = np.zeros([3 * n for n in value.shape], value.dtype)[
        (slice(None, None, -3),) * value.ndim
    ]
    apart[...] = value
    return standin.ndarray(apart)


@pytest.mark.parametrize(("name", "arguments", "options", "length"), CALLS, ids=IDS)
def test_a_dy_of_another_shape_is_left_to_the_reference(name, arguments, options, length):
    forward, backward = getattr(F, f"{name}_forward"), getattr(F, f"{name}_backward")
    with emulated() as emulator:
        y, saved = forward(*map(on_device, arguments), **options)
        y = written(y)
        if y.ndim:
            emulator.launches.clear()
            for dy in (y[:, :-1], y[..., :-1], y[:0], y[0]):
                assert backward.fast(dy, saved) is NotImplemented
            assert not emulator.launches


def test_upsampling_takes_no_gradient_that_is_not_of_whole_blocks():
    with emulated():
        y, saved = F.upsample_forward(on_device(X))
        assert F.upsample_backward.fast(y[:, :-1], saved) is NotImplemented


@pytest.mark.parametrize("wrong", [3, 255, -1, 2**32, 2**63, -(2**40)])
@pytest.mark.parametrize("per_sample", [False, True])
def test_a_label_that_is_no_class_makes_the_loss_not_a_number(wrong, per_sample):
    """Also where its last 32 bits are a class. Nobody waits for the device to ask."""
    dtype = np.min_scalar_type(wrong)
    bad = labels(2, 5, 6, 7).astype(dtype)
    bad[1, 2, 3, 4] = wrong
    with emulated():
        for operation in ("cross_entropy", "dice_loss", "cce_dice_loss"):
            options = {} if operation == "cross_entropy" else {"per_sample": per_sample}
            forward, backward = (getattr(F, f"{operation}_{w}ward") for w in ("for", "back"))
            loss, saved = forward(on_device(X), on_device(bad), **options)
            assert np.isnan(float(loss))
            assert operation == "cross_entropy" or np.isnan(host(backward(1.0, saved))).all()


@pytest.mark.parametrize("name", ["cross_entropy", "dice_loss", "cce_dice_loss"])
def test_more_than_one_gradient_of_a_loss_is_left_to_the_reference(name):
    with emulated():
        _, saved = getattr(F, f"{name}_forward")(on_device(X), on_device(labels(2, 5, 6, 7)))
        backward = getattr(F, f"{name}_backward")
        assert all(backward.fast(dloss, saved) is NotImplemented for dloss in ([1.0], np.ones(1)))


def virtual(*shape):
    """An array of any shape that needs no memory."""
    return standin.ndarray(np.broadcast_to(np.float32(0), shape))


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("conv", (virtual(1, 2**31, 1), virtual(1, 1, 1)), {}),
        ("conv", (virtual(1, 2**30, 1), virtual(1, 1, 1)), {"padding": 2**30}),
        ("conv", (virtual(1, 5, 1), virtual(1, 1, 1)), {"stride": 2**31}),
        ("conv", (virtual(1, 5, 1), virtual(1, 1, 1)), {"dilation": 2**31}),
        ("conv", (virtual(1, 2**17, 1), virtual(2**16, 1, 1)), {}),
        ("conv", (virtual(1, 5, 2**13), virtual(1, 2**13, 2**13)), {}),
        ("conv", (virtual(2**16, 5, 1), virtual(1, 1, 1)), {}),
        ("conv_transpose", (virtual(1, 2**16, 2**14, 1), virtual(2, 2, 1, 1)), {"stride": 2}),
        ("max_pool", (virtual(1, 2**31 - 2, 1), 3), {"stride": 1, "padding": 2}),
        ("upsample", (virtual(1, 2**10, 2**10, 2**9, 1),), {}),
        ("instance_norm", (virtual(1, 5, 5, 2**16), virtual(2**16), virtual(2**16)), {}),
        ("relu", (virtual(2, 2**31, 1),), {}),
        ("softmax", (virtual(2**16, 5),), {}),
    ],
)
def test_what_is_too_large_to_number_is_left_to_the_reference(name, arguments, options):
    with emulated() as emulator:
        assert getattr(F, f"{name}_forward").fast(*arguments, **options) is NotImplemented
    assert not emulator.launches


@pytest.mark.parametrize("transposed", [False, True])
def test_kernels_that_a_grid_cannot_hold_are_left_to_the_reference_in_backward_too(transposed):
    kind, axis = ("conv_transpose", 2**16) if transposed else ("conv", 1)
    weight = virtual(2**16, 1, 1)
    geometry = conv_geometry((2**16,), (2**16,))
    x, dy = virtual(1, 2**16 // axis, 1), virtual(1, axis, 1)
    with emulated() as emulator:
        saved = ConvSaved(x, weight, geometry)
        assert getattr(F, f"{kind}_backward").fast(dy, saved) is NotImplemented
    assert not emulator.launches


def test_a_convolution_rounds_a_loss_gradient_to_its_own_dtype():
    """The gradient of a loss is float32, whatever the logits were."""
    x, weight, dy = X.astype(BFLOAT16), values(1, 1, 1, 3, 2), values(2, 5, 6, 7, 2)
    with emulated() as emulator:
        _, saved = F.conv_forward(on_device(x), on_device(weight))
        got = F.conv_backward(on_device(dy), saved)
    assert emulator.launches.count("conv.spread_1") == 1
    _, saved = F.conv_forward.reference(x, weight)
    want = F.conv_backward.reference(dy, saved)
    assert [array.dtype for array in got] == [array.dtype for array in want]
    assert want[0].dtype == BFLOAT16
    rounded = wide(dy.astype(BFLOAT16)), wide(ConvSaved(x, weight, saved.geometry))
    exact = F.conv_backward.reference(*rounded)
    assert_close(got, exact, 500)
    assert_close(want, exact, 500)
