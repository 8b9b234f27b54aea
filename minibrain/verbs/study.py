"""Verbs to study with: gradcheck, explain."""

from collections.abc import Sequence

from minibrain.verbs.parser import add_verb


def declare_gradcheck(verbs) -> None:
    add = add_verb(
        verbs,
        "gradcheck",
        "check gradients: backward against the slope of forward",
        "minibrain gradcheck conv InstanceNormReLU brain_2d",
        gradcheck,
    ).add_argument
    add("names", nargs="*", metavar="NAME", help="operations, layers or presets; left out, all")
    add("--seed", type=int, default=0, metavar="N", help="of the directions (default 0)")


def gradcheck(names: Sequence[str], seed: int) -> int:
    """Print the table; 1 if a gradient is wrong."""
    from minibrain.study.gradcheck_cases import run

    return 0 if run(names, seed) else 1


def declare_explain(verbs) -> None:
    add = add_verb(
        verbs,
        "explain",
        "record one training step, print it, and make a page that explains it",
        "minibrain explain --network brain_2d --data Task01_BrainTumour/BRATS_001",
        explain,
    ).add_argument
    add(
        "--network",
        default="brain_3d_small",
        metavar="NAME",
        help="preset to look into (default brain_3d_small)",
    )
    add("--data", metavar="FOLDER/CASE", help="a labelled case of a task; left out, a phantom")
    add(
        "--steps",
        type=int,
        default=12,
        metavar="N",
        help="training steps on the case before the one recorded (default 12)",
    )
    add(
        "--output",
        default="explorer.html",
        metavar="FILE",
        help="the page, one file that needs no network (default explorer.html); the record alone "
        "if it ends in .json",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")


def explain(**options) -> None:
    """See `minibrain.study.explain.explain`."""
    from minibrain.study.explain import explain as explain_step

    explain_step(**options)
