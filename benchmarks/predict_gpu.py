"""What a training step in bfloat16 should take on an H200: predicted.

    python -m benchmarks.predict_gpu

For every convolution of the 3D reference network (batch 2, 160x160x128) and every kernel that it
launches: the time is that of what takes longest, of products, of bytes that come out of L2, and of
bytes that come out of memory. Products include those that fall into the overhang of tiles. Where a
convolution reads what is pending, the instructions for that are added to the products, as if
nothing overlapped; where it cannot, a pass that writes it is added. The other operations go over
memory once: they take as long as the bytes that they move or as the instructions that are issued
meanwhile. Parts of sums go through memory once more. Between two launches the device waits.

That bytes arrive as fast as memory can send them is assumed. It takes some 30 KB or more on their
way to every multiprocessor, for which registers leave room in all kernels (24 to 48 KB) but the
forward max-pool (12 KB) and concatenation (16 KB). Shared memory has no bank conflicts where
matrices are copied into it or loaded (tests/cuda/test_banks.py).
"""

from math import ceil, prod

from minibrain.kernels.cuda import conv_planes, conv_tiles
from minibrain.kernels.cuda.arguments import MULTIPROCESSORS, SHARED_BYTES, ceil_divide

PRODUCTS = 370e12  # operations a second with mma.sync, assumed; wgmma on large matrices has 790e12
L2, MEMORY = 5.5e12, 4.3e12  # bytes a second: assumed, measured
PRODUCT = 2 * 16 * 8 * 16  # operations of one multiply_add
INSTRUCTIONS = 132 * 4 * 32 * 1.7e9  # of single threads, a second
# instructions of convolutions for what is pending, and for the sums over what they write, for eight
# channels of a voxel. All else that they do beside products takes a warp 830 issues for a plane of
# 16 channels, whose 216 products take 2,200 cycles at this rate
ACTIVATE, SUM = 65, 60
# launches of a step, nearly, a third of them small operations of CuPy: each gradient is added to
# what is there; and what passes from one launch's last block to the next one's first: assumed
LAUNCHES, BETWEEN = 380, 1.5e-6
# bytes that a kernel moves and its instructions, for eight channels of a voxel that it writes or
# reads, in the loss and the head's convolution for a voxel. They were counted in the machine code
# for sm_90 on 2026-11-24: a conversion to double stands for 8 additions of floats, and what a
# thread does once is shared among its voxels.
DRAW = 90  # instructions for dropout on top
WRITE_PENDING, SUM_CENTRED = (32, 85), (16, 63)
SUM_GRADIENTS, NORMALIZE_BACKWARD = (32, 136), (48, 165)
MAX_POOL_FORWARD, MAX_POOL_BACKWARD = (8 * 16 + 16 + 8, 1210), (16 + 16 + 24 / 8, 263)
SOFTMAX_SUMS, CCE_DICE_BACKWARD = (25, 175), (33, 115)
ROUND = (24, 0)  # the loss's gradient, to bfloat16
HEAD = (40, 260), (40, 242), (40, 190)  # forward, data gradient, weight gradient
ADAM = (28, 0)  # of a parameter
GRADIENT = (4 + 12 + 4, 0)  # of a parameter: cleared, added to, squared

SIZE, BATCH, CHANNELS, INPUTS, CLASSES = (160, 160, 128), 2, (16, 32, 64, 128, 256), 4, 4
PARAMETERS = 5_649_652


def layers():
    """(name, kind, level, input channels, output channels, instructions for eight channels of the
    input where it is pending), in the order of the forward pass."""
    for level, count in enumerate(CHANNELS):
        before = CHANNELS[level - 1] if level else INPUTS
        yield f"encoder {level}.1", "conv", level, before, count, 0
        yield f"encoder {level}.2", "conv", level, count, count, ACTIVATE + DRAW
    for level in reversed(range(len(CHANNELS) - 1)):
        count = CHANNELS[level]
        yield f"up {level}", "transposed", level + 1, CHANNELS[level + 1], count, ACTIVATE
        yield f"decoder {level}.1", "conv", level, 2 * count, count, ACTIVATE
        yield f"decoder {level}.2", "conv", level, count, count, ACTIVATE + DRAW
    yield "head", "head", 0, CHANNELS[0], CLASSES, 0


def passes():
    """(name, seconds forward, seconds backward) of what is not a convolution."""
    voxels = [BATCH * prod(n >> level for n in SIZE) for level in range(len(CHANNELS))]
    forward = backward = 0
    for name, kind, level, inputs, count, _ in list(layers())[:-2]:  # nobody norms the last block's
        octets = voxels[level - (kind == "transposed")] * count / 8
        draw = DRAW * name.endswith(".1")
        if not is_by_planes(kind, inputs):  # else the convolution has summed what it wrote
            forward += over_memory(SUM_CENTRED, octets)
        backward += over_memory(SUM_GRADIENTS, octets, draw)
        backward += over_memory(NORMALIZE_BACKWARD, octets, draw)
    yield "norms", forward, backward
    octets = sum(n * channels for n, channels in zip(voxels[1:], CHANNELS[:-1], strict=True)) / 8
    forward = over_memory(MAX_POOL_FORWARD, octets)
    yield "pools and skips", forward, over_memory(MAX_POOL_BACKWARD, 8 * octets)
    backward = over_memory(CCE_DICE_BACKWARD, voxels[0]) + over_memory(ROUND, voxels[0])
    yield "loss", over_memory(SOFTMAX_SUMS, voxels[0]), backward
    yield "gradients, Adam", 0, over_memory(GRADIENT, PARAMETERS) + over_memory(ADAM, PARAMETERS)


def over_memory(kernel, count, more_instructions=0):
    moved, instructions = kernel
    return seconds(memory=count * moved, instructions=count * (instructions + more_instructions))


def seconds(products=0, l2=0, memory=0, instructions=0):
    computing = products * PRODUCT / PRODUCTS + instructions / INSTRUCTIONS
    return max(computing, l2 / L2, memory / MEMORY)


def is_by_planes(kind, inputs):
    return kind == "conv" and inputs <= conv_planes.MOST_INPUTS


def planes_of_tiles(size, height):
    return BATCH * size[0] * ceil_divide(size[1], height) * ceil_divide(size[2], conv_planes.WIDTH)


def by_planes(size, inputs, outputs, pending=0, summed=0):
    chunk = next(count for count in (32, 16, 4) if inputs % count == 0)
    steps, taps = max(1, inputs // 16), 9 if inputs == 4 else 27
    shared = 2 * conv_planes._tile_bytes(chunk, 18, 18) + taps * steps * 512
    blocks = min(conv_planes.BLOCKS[3], MULTIPROCESSORS * (SHARED_BYTES // shared))
    planes, groups = planes_of_tiles(size, 16), outputs // 16
    share = ceil_divide(planes, blocks // groups)
    loaded = groups * planes * (1 + 2 / share)  # every segment begins and ends with a plane more
    moved = 2 * BATCH * prod(size) * (inputs + outputs)
    instructions = loaded * 324 * inputs / 8 * pending + planes * 256 * outputs / 8 * summed
    return seconds(
        loaded * steps * taps * 32, loaded * 324 * max(inputs, 8) * 2, moved, instructions
    )


def gradient_by_planes(size, inputs, outputs, pending=0):
    planes, tiles = planes_of_tiles(size, 8), ceil(inputs / 16) * outputs // 16
    share = ceil_divide(planes, max(1, conv_planes.GRADIENT_BLOCKS[3] // tiles))
    parts = 4 * ceil_divide(planes, share) * 27 * inputs * outputs
    taps = 9 if inputs == 4 else 27
    l2 = tiles * planes * 32 * (180 * (1 + 2 / share) + 128)
    moved = 2 * BATCH * prod(size) * (inputs + outputs) + parts
    activated = tiles * planes * 180 * (1 + 2 / share) * 2 * pending
    return seconds(tiles * planes * taps * 16, l2, moved, activated) + seconds(memory=parts)


def by_tiles(positions, rows, outputs, moved):
    """A product of (positions, rows) and (rows, outputs)."""
    tiles = (t for t in conv_tiles.TILES if conv_tiles._count(t, positions, outputs) >= 132)
    tile = next(tiles, conv_tiles.TILES[-1])
    blocks = conv_tiles._count(tile, positions, outputs)
    resident = MULTIPROCESSORS * {(128, 128): 2, (128, 64): 3, (64, 64): 4}[tile]
    idle = max(1, MULTIPROCESSORS / blocks, ceil(blocks / resident) * resident / blocks / 1.5)
    products = blocks * idle * prod(tile) // 128 * rows // 16
    return seconds(products, blocks * rows * sum(tile) * 2, moved)


def times(kind, size, inputs, outputs, pending):
    """(forward, data gradient, weight gradient), in seconds."""
    if pending and not (
        is_by_planes(kind, inputs) and outputs <= conv_planes.MOST_OUTPUTS_UNWRITTEN
    ):
        forward, back, gradient = times(kind, size, inputs, outputs, 0)
        octets, draw = BATCH * prod(size) * inputs / 8, DRAW * (pending > ACTIVATE)
        write = over_memory(WRITE_PENDING, octets, draw)
        return forward + write, back, gradient + write
    voxels = BATCH * prod(size)
    if kind == "head":
        return tuple(over_memory(kernel, voxels) for kernel in HEAD)
    if kind == "transposed":
        moved = 2 * voxels * (inputs + 8 * outputs)
        forward = by_tiles(voxels, inputs, 8 * outputs, moved)
        back = by_tiles(voxels, 8 * outputs, inputs, moved)
        tiles = ceil(2 * outputs / 64) * ceil(inputs / 64) * 4
        parts = 4 * ceil(conv_tiles.GRADIENT_BLOCKS / tiles) * 8 * inputs * outputs
        gradient = seconds(tiles * voxels / 32 * 80, tiles * voxels * 256, moved + parts)
        return forward, back, gradient + seconds(memory=parts)
    if inputs > conv_planes.MOST_INPUTS:
        moved = 2 * voxels * (inputs + outputs)
        forward = by_tiles(voxels, 27 * inputs, outputs, moved)
    else:
        forward = by_planes(size, inputs, outputs, pending, SUM)
    if inputs == INPUTS:
        back = 0  # nobody asks for the gradient of the images
    elif outputs > conv_planes.MOST_INPUTS:
        back = by_tiles(voxels, 27 * outputs, inputs, 2 * voxels * (inputs + outputs))
    else:
        back = by_planes(size, outputs, inputs)
    return forward, back, gradient_by_planes(size, inputs, outputs, pending)


def main():
    print("Predicted, not measured: microseconds of a training step on an H200\n")
    print("| layer | channels | forward | data gradient | weight gradient |")
    print("| --- | --- | --- | --- | --- |")
    totals = [0, 0, 0]
    for name, kind, level, inputs, outputs, pending in layers():
        size = tuple(n >> level for n in SIZE)
        row = [1e6 * t for t in times(kind, size, inputs, outputs, pending)]
        totals = [sum(pair) for pair in zip(totals, row, strict=True)]
        print(f"| {name} | {inputs} -> {outputs} | " + " | ".join(f"{t:.0f}" for t in row) + " |")
    print("| all | | " + " | ".join(f"{t:.0f}" for t in totals) + " |")
    print("\n| over memory | forward | backward |\n| --- | --- | --- |")
    for name, *each in passes():
        row = [1e6 * t for t in each]
        totals += row
        print(f"| {name} | " + " | ".join(f"{t:.0f}" for t in row) + " |")
    between = 1e6 * LAUNCHES * BETWEEN
    print(f"\nBetween launches {between:.0f}. Together {(sum(totals) + between) / 1e3:.1f} ms.")


if __name__ == "__main__":
    main()
