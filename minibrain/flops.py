"""The arithmetic that each operation does, counted from what it was called with.

A product and the addition that follows it are two. Convolutions are exact, their zero padding
counted like any other value. The rest is counted a value at a time by what the readable bodies in
`minibrain.functional` do, an exponential or a root being one.
"""

from math import prod

# operation: (forward, backward), for every value of the larger of input and output
PER_VALUE = {
    "batch_norm": (8, 12),
    "instance_norm": (8, 12),
    "norm_relu": (9, 13),
    "relu": (1, 1),
    "sigmoid": (3, 3),
    "softmax": (4, 4),
    "dropout": (1, 1),
    "concat": (0, 0),
    "upsample": (0, 1),
    "max_pool": (1, 1),
    "cross_entropy": (6, 2),
    "dice_loss": (7, 7),
    "cce_dice_loss": (13, 10),
}
ADAM_PER_VALUE = 13


def flops(name: str, arguments: tuple, options: dict, result) -> int:
    """Of one call of a functional operation.

    Parameters
    ----------
    name : of the function, such as "conv_backward"
    arguments, options, result : of the call
    """
    if name == "adam_inplace":
        return ADAM_PER_VALUE * arguments[0].size
    operation, _, direction = name.rpartition("_")
    if operation == "attention_gate":
        return _attention_gate(direction, arguments, result)
    if operation in ("conv", "conv_transpose"):
        return _convolution(direction, arguments, options, result)
    per_value = PER_VALUE.get(operation, (0, 0))[direction == "backward"]
    return per_value * max(map(_size, (*arguments, *_as_tuple(result))))


def _convolution(direction, arguments, options, result) -> int:
    """2 · positions · ∏K · C · O a pass; a transposed convolution has its adjoint's positions.

    The bias is the addition that the first product of every sum lacks.
    """
    saved = result[1] if direction == "forward" else arguments[1]
    one_pass = 2 * saved.x.shape[0] * prod(saved.geometry.output_size) * saved.weight.size
    if direction == "forward":
        return one_pass
    passes = 1 + options.get("input_gradient", True)
    return passes * one_pass + arguments[0].size  # the last is the bias gradient's sum


def _attention_gate(direction, arguments, result) -> int:
    """Three pointwise convolutions; between them an addition, a ReLU, a sigmoid and the gating."""
    saved = result[1] if direction == "forward" else arguments[1]
    weights = [conv.weight for conv in (saved.skip, saved.signal, saved.score)]
    voxels = saved.skip.x.size // saved.skip.x.shape[-1]
    products = sum(weight.size for weight in weights)
    elementwise = 2 * weights[0].shape[-1] + 3 + saved.skip.x.shape[-1]
    if direction == "forward":
        return voxels * (2 * products + elementwise)
    return voxels * (4 * products + elementwise + 3 * saved.skip.x.shape[-1])


def _as_tuple(result) -> tuple:
    return result if isinstance(result, tuple) else (result,)


def _size(value) -> int:
    return getattr(value, "size", 0)
