"""`minibrain gradcheck`: every operation, layer and network, and something to check it on."""

from collections.abc import Collection
from functools import partial

import numpy as np

from minibrain import functional, layers, models
from minibrain.errors import InputError
from minibrain.study.gradcheck import GradientCheck, gradcheck, gradcheck_layer


def run(names: Collection[str] = (), seed: int = 0) -> bool:
    """Print a table of the checks of these operations, layers and networks, or of all.

    Parameters
    ----------
    names : such as "conv", "InstanceNormReLU", "brain_2d"
    seed : of the directions and upstream gradients

    Returns
    -------
    passed : whether every gradient is right

    Raises
    ------
    InputError : there is nothing of that name; the seed is negative
    """
    known = [*operation_cases(), *layer_cases(), *network_makers()]
    for name in names:
        if name not in known:
            raise InputError(f"names: got {name!r}, expected some of {', '.join(known)}")
    if seed < 0:
        raise InputError(f"seed: got {seed}, expected 0 or more")
    print(f"{'':24}  {'gradient of':24}  {'analytic':>13}  {'numeric':>13}  {'rel. error':>10}")
    wrong = count = 0
    for name in names or known:
        for check in checks_of(name, seed):
            print(row(name, check), flush=True)
            wrong, count = wrong + (not check.passed), count + 1
    print(f"gradients checked: {count}, wrong: {wrong}")
    return not wrong


def row(name: str, check: GradientCheck) -> str:
    """One check as a line of the table."""
    return (
        f"{name:24}  {check.argument:24}  {check.analytic:13.6e}  {check.numeric:13.6e}  "
        f"{check.error:10.1e}  {check.verdict}"
    )


def checks_of(name: str, seed: int = 0) -> list[GradientCheck]:
    """The checks of one operation, layer or network by its name."""
    operations = operation_cases()
    if name in operations:
        arrays, options = operations[name]
        forward = partial(getattr(functional, f"{name}_forward"), **options)
        return gradcheck(forward, getattr(functional, f"{name}_backward"), arrays, seed=seed)
    if name in network_makers():
        return gradcheck_layer(*_narrow(network_makers()[name]), seed=seed)
    return gradcheck_layer(*layer_cases()[name], seed=seed)


def operation_cases() -> dict[str, tuple[dict, dict]]:
    """Per operation: its arrays and its options.

    Axes, strides and padding differ, and kernels overlap: what is exchanged or counted wrongly
    shows.
    """
    rng = np.random.default_rng(0)
    draw = rng.standard_normal
    x, labels = draw((2, 6, 5, 3)), rng.integers(0, 3, (2, 6, 5))
    only_x = ({"x": x}, {})
    norm = {"x": x, "gamma": draw(3), "beta": draw(3)}
    loss = ({"logits": x}, {"labels": labels})
    dropout = {"rate": 0.3, "key": (1, 2, 3)}
    return {
        "conv": (
            {"x": x, "weight": draw((3, 2, 3, 4)), "bias": draw(4)},
            {"stride": 2, "padding": (1, 0), "dilation": (1, 2)},
        ),
        "conv_transpose": (
            {"x": x, "weight": draw((3, 2, 4, 3)), "bias": draw(4)},
            {"stride": 2, "padding": (1, 0), "output_padding": (0, 1)},
        ),
        "batch_norm": (norm, {}),
        "instance_norm": (norm, {}),
        "norm_relu": (norm, dropout),
        "relu": only_x,
        "sigmoid": only_x,
        "softmax": only_x,
        "dropout": ({"x": x}, dropout),
        "max_pool": ({"x": x}, {"kernel_size": 3, "stride": 2, "padding": 1}),
        "upsample": ({"x": x}, {"factor": (2, 3)}),
        "concat": ({"a": x, "b": draw((2, 6, 5, 4))}, {}),
        "attention_gate": (
            {
                "skip": x,
                "signal": draw((2, 6, 5, 4)),
                "skip_weight": draw((1, 1, 3, 2)),
                "signal_weight": draw((1, 1, 4, 2)),
                "bias": draw(2),
                "score_weight": draw((1, 1, 2, 1)),
                "score_bias": draw(1),
            },
            {},
        ),
        "cross_entropy": loss,
        "dice_loss": loss,
        "cce_dice_loss": loss,
    }


def layer_cases() -> dict[str, tuple]:
    """Per layer: one of it, and its input."""
    draw = np.random.default_rng(0).standard_normal
    x = draw((2, 6, 4, 3))
    made = (
        layers.Conv(draw((3, 3, 3, 4))),
        layers.ConvTranspose(draw((2, 2, 4, 3))),
        layers.BatchNorm(3),
        layers.InstanceNormReLU(3, rate=0.3),
        layers.ReLU(),
        layers.Dropout(0.3, seed=0, number=0),
        layers.MaxPool(),
        layers.Upsample(),
        layers.Chain(conv=layers.Conv(draw((3, 3, 3, 4))), norm=layers.InstanceNormReLU(4)),
    )
    return {type(layer).__name__: (layer, x) for layer in made}


def network_makers() -> dict:
    """Every preset by its name."""
    return {name: getattr(models, name) for name in models.__all__ if name.startswith("brain_")}


def _narrow(make) -> tuple:
    """A preset with all its levels and layers but few channels, and the smallest useful input.

    That takes seconds, and few activations seldom meet a kink. In the bottleneck four voxels are
    left; two, normalised, would be −1 and 1 whatever they were before.
    """
    levels = make().levels
    network = make(channels=range(2, 2 + levels))
    size = [2 ** (levels - 1) * (2 if axis < 2 else 1) for axis in range(network.rank)]
    x = np.random.default_rng(0).standard_normal((1, *size, network.in_channels))
    return network, x
