"""Faults that are planted in the kernels on purpose: each must be caught by a test.

    PYTHONPATH=tests python tests/cuda/planted_faults.py

plants one after the other, runs the test that is meant to catch it in every schedule, and prints a
table. A fault is a text of the sources and what stands in its place; where the text is gone the
fault must be written anew. Every run is a process of its own: a wrong offset may end it.
"""

import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import test_cuda_augment as augment
import test_cuda_offsets as offsets
import test_cuda_operations as operations
import test_cuda_skips as skips
import test_cuda_training as training
import test_graph
from compare import BFLOAT16, check_pair, on_device, random
from emulator import SCHEDULES, emulated

import minibrain.functional as F
from minibrain.kernels.cuda import loader, reduce

RNG = np.random.default_rng(0)
X, DEEP = random(RNG, (2, 5, 6, 7, 3)), random(RNG, (1, 5, 7, 37))
WIDE = random(RNG, (2, 5, 7, 16))
GAMMA_BETA = tuple(random(RNG, (2, 3)))


class Fault(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    check: Callable[[int], None]  # takes a schedule and fails
    shows_in: int = 0  # a schedule in which it does


def pair(*call, dtype=np.float32):
    """A test of forward and backward by the kernels; see check_pair."""

    def check(schedule):
        with emulated(schedule) as emulator:
            check_pair(emulator, *call, np.random.default_rng(1), dtype)

    return check


def once(test, *arguments):
    """A test with one schedule, as those on arrays with offsets past 2^31."""
    return lambda schedule: test(*arguments)


def many_lanes(check):
    """A test in which even few parts are added by many lanes."""

    def run(schedule):
        reduce.PARTS_EACH = 1  # of a process that ends with the test
        check(schedule)

    return run


def repeated_steps(schedule):
    test_graph.check_repeated(schedule=schedule)


def label_of_no_class(schedule):
    labels = np.full(X.shape[:-1], 3, np.uint8)
    with emulated(schedule):
        loss, _ = F.cce_dice_loss_forward(on_device(X), on_device(labels))
    assert np.isnan(float(loss))


WEIGHT = random(RNG, (3, 3, 3, 3, 18))
conv = pair("conv", (X, WEIGHT, random(RNG, 18)), {"padding": 1}, 500)
deep = pair("conv", (DEEP, random(RNG, (2, 2, 37, 5))), {}, 200)
by_fours = pair("conv", (WIDE[..., :4], random(RNG, (3, 3, 4, 8))), {}, 500)
strided = pair("conv", (X, random(RNG, (3, 2, 2, 3, 2))), {"stride": 2, "padding": 1}, 200)
short = pair("conv", (X, WEIGHT, random(RNG, 18)), {"padding": 1}, 500, dtype=BFLOAT16)
pool = pair("max_pool", (np.round(X), 3), {"stride": 2, "padding": 1}, 9)
large = random(RNG, (2, 31, 67, 3)) + 5
norm = pair("instance_norm", (large, *GAMMA_BETA), {}, 4000)
norm_of_many_lanes = many_lanes(norm)
dropped = {"rate": 0.3, "key": (1, 2, 3)}
norm_relu = pair("norm_relu", (X, *GAMMA_BETA), dropped, 40)
wide_norm_relu = pair("norm_relu", (WIDE, *random(RNG, (2, 16))), dropped, 40)
loss = pair("cce_dice_loss", (X, RNG.integers(0, 3, X.shape[:-1])), {"per_sample": True}, 40)
dropout = pair("dropout", (X, 0.5, (2**40, 7, 1)), {}, 1)
short_dropout = pair("dropout", (X, 0.4, (2**40, 7, 1)), {}, 1, dtype=BFLOAT16)
softmax = pair("softmax", (X,), {}, 10, dtype=BFLOAT16)
saturated = pair("softmax", (60 * X,), {}, 10)
wide_pool = pair("max_pool", (np.round(WIDE), 3), {"stride": 2, "padding": 1}, 9)
pooled_skip = partial(skips.check_sum, (16, 8, 0), 8)
norm_of_view = partial(skips.check_norm, (16, 8, 8), 8)
concat = pair("concat", (X, X[..., :2]), {}, 0)
upsample = pair("upsample", (X,), {}, 8)
adam = training.test_adam_changes_many_parameters_at_once
numbers_of_adam = once(training.test_adam_reads_its_numbers_from_the_device_when_it_runs)
scaled = once(training.test_gradients_are_scaled_by_a_number_on_the_device)
noise = partial(augment.test_the_same_numbers_are_added, (3, 3, 6), augment.SMALL)
far_conv = once(offsets.test_convolution, "conv", random(RNG, (3, 32, 32)), {"padding": 1}, False)

BARRIER = "__syncthreads();"
FAULTS = [
    Fault("missing barrier before the weights' tile", "conv.cu",
          f"{BARRIER}  // the tile before this one has been used", "", deep),
    Fault("missing barrier after the weights' tile", "conv.cu",
          f"{BARRIER}\n            for (int c = 0;", "for (int c = 0;", deep),
    Fault("missing barrier before the gradient's tiles", "conv.cu",
          f"{BARRIER}  // the tiles before these have been used", "", conv),
    Fault("missing barrier after the gradient's tiles", "conv.cu",
          f"{BARRIER}\n#pragma unroll\n        for (int v", "for (int v", conv),
    Fault("missing barrier before the lanes' sums", "conv.cu",
          f"{BARRIER}\n    float(*lane_sums)", "float(*lane_sums)", conv),
    Fault("missing barrier after the lanes' sums", "conv.cu",
          f"{BARRIER}\n    Index matrix", "Index matrix", conv),
    Fault("missing barrier in a sum over voxels", "common.cuh",
          f"{BARRIER}\n    for (int i = thread;", "for (int i = thread;", norm),
    Fault("a barrier that some threads skip", "conv.cu",
          "for (int tap = 0; tap < g.taps()",
          "if (voxel(1) < to_voxels) for (int tap = 0; tap < g.taps()", conv),
    Fault("wrong tap", "geometry.cuh",
          "output.axis[a], tap.axis[a]", "output.axis[a], tap.axis[2]", conv),
    Fault("taps not turned around", "geometry.cuh",
          "g.padding[a] - g.dilation[a]", "g.dilation[a]", conv),
    Fault("positions between strides", "geometry.cuh", "&& distance == output * stride", "",
          strided),
    Fault("input bound off by one", "geometry.cuh",
          "input < g.input[a]", "input <= g.input[a]", conv),
    Fault("output bound off by one", "geometry.cuh",
          "output < g.output[a]", "output <= g.output[a]", conv),
    Fault("last channel left out", "conv.cu",
          "min(CHUNK, inputs - start)", "min(CHUNK, inputs - 1)", deep),
    Fault("tile not filled", "conv.cu",
          "i < CHUNK * OUTPUTS; i", "i < (CHUNK - 30) * OUTPUTS; i", conv),
    Fault("tail of a tile not zeroed", "conv.cu",
          "if (number < end && o < outputs)", "if (o < outputs)", conv),
    Fault("voxels beyond the last are written", "conv.cu",
          "if (voxel(v) >= to_voxels) return;", "", conv),
    Fault("channels beyond the last are written", "conv.cu",
          "if (first + o < outputs) y[voxel", "y[voxel", conv),
    Fault("one voxel of a thread for another", "conv.cu",
          "min(voxel(v), to_voxels", "min(voxel(0), to_voxels", conv),
    Fault("one of four channels for another", "conv.cu",
          "tile_x[own_row + i * DOWN][own_column + j] = from_x[j]",
          "tile_x[own_row + i * DOWN][own_column + j] = from_x[0]", by_fours),
    Fault("positions of the first rows for all", "conv.cu",
          "rows[i].advance(step_row, g);", "", conv),
    Fault("bfloat16 sums", "conv.cu", "sums[v][o] += values[v][j] * w",
          "sums[v][o] = Real(sums[v][o] + values[v][j] * w)", short),
    Fault("bfloat16 cut off, not rounded", "common.cuh", "bits(pack(value, 0))",
          "bits(__float_as_uint(value) >> 16)", short),
    Fault("bfloat16 ties not to even", "common.cuh", "bits(pack(value, 0))",
          "bits((__float_as_uint(value) + 0x8000) >> 16)", operations.check_rounding),
    Fault("bfloat16 NaN may become infinite", "common.cuh", "bits(pack(value, 0))",
          "bits(__float_as_uint(value) + 0x7fff + (__float_as_uint(value) >> 16 & 1) >> 16)",
          operations.check_rounding),
    Fault("a part's share too small", "common.cuh",
          "share = ceil_divide(voxels, gridDim.x)", "share = voxels / gridDim.x", norm),
    Fault("a row's sum left out", "common.cuh", "int row = 0; row <", "int row = 1; row <", norm),
    Fault("a part left out", "parts.cuh", "j * lanes < parts ?", "j * lanes < parts - 1 ?", conv),
    Fault("sums of the first group's values alone", "reduce.cu",
          "blockIdx.z * voxels * channels + own", "own",
          partial(operations.check_summed_norm, "instance_norm")),
    Fault("an x0 that nobody took off", "normalization.cu", "channels) : 0;", "channels) : 1;",
          partial(operations.check_summed_norm, "batch_norm")),
    Fault("statistics of the wrong group", "normalization.cu",
          "Index line = (Index)blockIdx.z * channels + channel", "Index line = channel", norm),
    Fault("x0 of the wrong group", "normalization.cu",
          "origin(x + group * voxels * channels + channel", "origin(x + channel", norm),
    Fault("the lanes of one sum among those of another", "parts.cuh",
          "__syncthreads();  // the lanes", "//", norm_of_many_lanes, shows_in=1),
    Fault("variance about x0", "normalization.cu",
          "(squares - sum * sum / voxels)", "squares", norm),
    Fault("sums of the first of eight channels", "normalization.cu",
          "sums[WIDTH + j] += centred", "sums[WIDTH] += centred", wide_norm_relu),
    Fault("gradient through the variance left out", "normalization.cu",
          "- through_mean - through_variance", "- through_mean", norm),
    Fault("dgamma and dbeta of the last group alone", "normalization.cu",
          "all += sum, all_products += products", "all = sum, all_products = products", norm),
    Fault("the same sum twice", "normalization.cu", "first + quantity", "first", norm),
    Fault("a voxel summed twice", "common.cuh", "i += FEW", "i += FEW - 1", norm),
    Fault("voxels between blocks left out", "common.cuh", "(Index)(EACH * blockDim.y)",
          "(Index)(EACH * blockDim.y + 1)", norm),
    Fault("the gate of ReLU open", "normalization.cu", "if (!(fmaf(", "if (0 && (fmaf(",
          norm_relu),
    Fault("the gate of ReLU of the next channel", "normalization.cu", "fmaf(centred[j], own",
          "fmaf(centred[0], own", wide_norm_relu),
    Fault("no dropout in backward", "normalization.cu",
          "pending.drop(gradient, element(voxel));", "", norm_relu),
    Fault("dropout of the wrong element", "common.cuh", "values[j] *= factors[first + j]",
          "values[j] *= factors[(first + j + 1) % 8]", norm_relu),
    Fault("lines of the wrong sample", "normalization.cu",
          "pending.read<WIDTH>((Index)blockIdx.z * channels + channel)",
          "pending.read<WIDTH>(channel)", norm_relu),
    Fault("values not centred", "common.cuh", "x[j] - centre[j]", "x[j]", norm_relu),
    Fault("last of equal values wins", "pooling.cu", "value > largest[j])",
          "value >= largest[j])", pool),
    Fault("gradient to every window", "pooling.cu", "if (won[j] == tap) sums", "sums", pool),
    Fault("gradient of the last window alone", "pooling.cu", "sums[j] += gradient[j]",
          "sums[j] = gradient[j]", pool),
    Fault("winners of the first of eight channels", "pooling.cu", "won[j] == tap",
          "won[0] == tap", wide_pool),
    Fault("the skip's gradient left out", "pooling.cu", "sums[j] += values[j]", "",
          pooled_skip),
    Fault("the skip's gradient of the first sample", "pooling.cu",
          "dskip.read<WIDTH>(voxel", "dskip.read<WIDTH>(number_of(p, g.input)", pooled_skip),
    Fault("gradient of a cell's own window alone", "pooling.cu", "x >= 0; --x", "x >= last(2); --x",
          pool),
    Fault("cells shifted by the padding", "pooling.cu", "cell.axis[a] - g.padding[a];",
          "cell.axis[a];", pool),
    Fault("channels among others read as if alone", "normalization.cu", "{dy, pitch}",
          "{dy, channels}", norm_of_view),
    Fault("the same where a skip's gradient is added", "pooling.cu", "{dskip, pitch}",
          "{dskip, channels}", pooled_skip),
    Fault("channels of the second array", "pooling.cu", "channel : channel - a_channels",
          "channel : channel", concat),
    Fault("lines of the wrong sample in a pool", "pooling.cu",
          "pending.read<WIDTH>((Index)blockIdx.z * channels + channel)",
          "pending.read<WIDTH>(channel)", operations.check_readers),
    Fault("dropout of the pooled voxel", "pooling.cu",
          "activate(values, at, own);\n#pragma",
          "activate(values, (blockIdx.z * voxels + number) * channels + channel, own);\n#pragma",
          operations.check_readers),
    Fault("dropout of the joined array", "pooling.cu",
          "activate(values, at, own);\n        several",
          "activate(values, voxel * channels + channel, own);\n        several",
          operations.check_readers),
    Fault("lines of the other array", "pooling.cu",
          "of_a ? pending_a : pending_b", "pending_a", operations.check_readers),
    Fault("a voxel of the block left out", "pooling.cu",
          "[&](int, int voxel) {", "[&](int tap, int voxel) {\n if (!tap) return;", upsample),
    Fault("the largest not subtracted from all", "activation.cu",
          "y[c] = expf(x[c] - largest)", "y[c] = expf(x[c])", softmax),
    Fault("a class left out of softmax's sum", "activation.cu",
          "c < channels; ++c) sum += dy", "c < channels - 1; ++c) sum += dy", softmax),
    Fault("softmax's sum rounded to bfloat16", "activation.cu", "y[c] * (dy[c] - sum)",
          "y[c] * (dy[c] - float(bfloat16(sum)))", saturated),
    Fault("Dice of the wrong sample", "loss.cu", "slopes += 2 * blockIdx.z * channels",
          "slopes += 0", loss),
    Fault("labels not counted", "loss.cu", "counted == voxels ?", "true ?", label_of_no_class),
    Fault("elements beyond the last", "activation.cu", "if (element >= size) return;", "", dropout),
    Fault("nine rounds", "common.cuh", "round < 10", "round < 9", dropout),
    Fault("bfloat16 of the other half of a word", "common.cuh", "bits(pack(value, 0))",
          "bits(pack(0, value))", short),
    Fault("step and layer exchanged", "common.cuh", "unsigned step, layer,",
          "unsigned layer, step,", dropout),
    Fault("the step of when it was recorded", "common.cuh",
          "d.step_place ? *d.step_place : d.step", "d.step", repeated_steps),
    Fault("Adam's step of when it was recorded", "optimizers.cu", "double(*step)", "1.0", adam),
    Fault("the rate of when it was recorded", "optimizers.cu",
          "rate = *learning_rate /", "rate = 1e-2 /", numbers_of_adam),
    Fault("a step taken that is not finite", "optimizers.cu", "if (!*taken) return;", "",
          numbers_of_adam),
    Fault("missing barrier after Adam's corrections", "optimizers.cu",
          f"{BARRIER}\n    float b1", "float b1", adam),
    Fault("read beside an array and not used", "normalization.cu",
          "j < WIDTH && channel < channels;", "j < WIDTH;", norm_relu),
    Fault("gradients scaled by another number", "optimizers.cu", "by = *factor", "by = factor[1]",
          scaled),
    Fault("noise past the end", "augment.cu", "if (first + i < size) image", "image", noise),
    Fault("noise of the word before", "augment.cu", "block + 1ull", "(Word)block", noise),
    Fault("radius and angle of noise change places", "augment.cu",
          "float u = unsigned(words[i / 2]) >> 8, v", "float v = unsigned(words[i / 2]) >> 8, u",
          noise),
    Fault("9 rounds of noise", "augment.cu", "round < 10", "round < 9", noise),
]  # fmt: skip

FAR_FAULTS = [
    Fault("32 bits: number of a thread", "common.cuh", "return blockIdx.x * (Index)blockDim.x",
          "return int(blockIdx.x) * int(blockDim.x)", once(offsets.check, "relu", offsets.small())),
    Fault("32 bits: a convolution's sample", "conv.cu",
          "x += blockIdx.z * (Index)from_voxels * inputs;",
          "x += int(blockIdx.z * from_voxels * inputs);", far_conv),
    Fault("32 bits: a convolution's voxel", "conv.cu", "x + (Index)sources[v] * inputs",
          "x + int(sources[v] * inputs)", far_conv),
    Fault("32 bits: a convolution's result", "conv.cu",
          "y += blockIdx.z * (Index)to_voxels * outputs;",
          "y += int(blockIdx.z * to_voxels * outputs);", far_conv),
    Fault("32 bits: x of a weight gradient", "conv.cu",
          "x + voxel * inputs + c", "x + int(voxel * inputs + c)", far_conv),
    Fault("32 bits: dy of a weight gradient", "conv.cu", "dy + number * outputs + o",
          "dy + int(number * outputs + o)", far_conv),
    Fault("32 bits: a pool's sample", "pooling.cu",
          "Index at = (sample + voxel) * channels", "int at = (sample + voxel) * channels",
          once(offsets.check, "max_pool", offsets.small())),
    Fault("32 bits: a sum over voxels", "reduce.cu", "x[voxel * channels]",
          "x[int(voxel * channels)]", once(offsets.test_sums_over_voxels)),
    Fault("32 bits: a loss's voxel", "loss.cu",
          "Index i = (before + voxel) * channels", "int i = (before + voxel) * channels",
          once(offsets.test_losses)),
    Fault("32 bits: a norm's group", "normalization.cu",
          "return (before + voxel) * channels", "return int(before + voxel) * channels",
          once(offsets.test_norm_and_relu)),
    Fault("32 bits: a voxel of channels among others", "common.cuh",
          "first + voxel * pitch + channel", "first + int(voxel * pitch + channel)",
          once(offsets.test_norm_and_relu)),
    Fault("32 bits: the same where a skip's gradient is added", "common.cuh",
          "first + voxel * pitch + channel", "first + int(voxel * pitch + channel)",
          once(offsets.test_a_pool_adds_channels_of_a_larger_array)),
    Fault("32 bits: a pool's gradient", "pooling.cu",
          "Index from = ((Index)blockIdx.z * g", "int from = (blockIdx.z * g",
          once(offsets.check, "max_pool", offsets.small())),
    Fault("32 bits: an activation's element", "normalization.cu",
          "Index i = (blockIdx.z * voxels", "int i = (blockIdx.z * voxels",
          once(offsets.test_norm_and_relu)),
    Fault("32 bits: Adam's moments", "optimizers.cu", "mean += share.begin, square",
          "mean += int(share.begin), square", once(offsets.test_adam)),
    Fault("32 bits: elements of noise", "augment.cu", "block = global_thread(), first",
          "block = global_thread(); int first", once(offsets.test_noise)),
]  # fmt: skip


def is_caught(fault: Fault, schedule: int) -> bool:
    """Plant the fault, and run its test in a process of its own."""
    text = (loader.SOURCES / fault.file).read_text("utf-8")
    if fault.old not in text:
        raise LookupError(f"{fault.name}: {fault.file} no longer has {fault.old!r}")
    planted = partial(_planted, loader.included, fault)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # threads of BLAS do not matter to a child that ends soon
        child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] != 0
    loader.included = planted
    try:
        fault.check(schedule)
    except AssertionError:
        os._exit(1)
    except BaseException as error:  # the test itself is wrong: that is no catch
        print(f"{fault.name}: {error!r}", file=sys.stderr)
    os._exit(0)


def _planted(included, fault, name):
    text = included(name)
    return text.replace(fault.old, fault.new) if name == fault.file else text


def main() -> int:
    import test_tensor_core_faults as tensor_core  # which imports this module

    table = [(fault, SCHEDULES) for fault in FAULTS]
    table += [(fault, SCHEDULES[:1]) for fault in FAR_FAULTS]
    table += [(fault, tensor_core.EVERY_SCHEDULE) for fault in tensor_core.FAULTS]
    missed = 0
    print(f"{'fault':46} {'file':24} schedules that catch it")
    for fault, schedules in table:
        caught = [schedule for schedule in schedules if is_caught(fault, schedule)]
        missed += not caught
        numbers = " ".join(map(str, caught)) or "MISSED"
        print(f"{fault.name:46} {fault.file:24} {numbers}", flush=True)
    print(f"{len(table) - missed} caught, {missed} missed")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
