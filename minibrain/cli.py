"""The command line: `minibrain VERB ...`. Parse and call, nothing else.

Every verb is one function that declares its options and names the function they go to. Verbs import
what they call when they are called: `minibrain --help` need not wait for plots and classifiers.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from signal import SIGINT

from minibrain.arrays import PRECISIONS, find_device
from minibrain.errors import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code.

    0 is success, 1 a check that failed, 2 input that the user can mend, 130 and 143 the end that
    SIGINT and SIGTERM asked for.
    """
    parser = argparse.ArgumentParser(
        prog="minibrain",
        description="2D and 3D U-Nets for brain tumours in MRI, trained with hand-written "
        "arithmetic. `minibrain VERB --help` shows the options of a verb, and an example.",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for declare in (_inspect, _train, _gradcheck, _explain, _doctor):
        declare(verbs)
    options = vars(parser.parse_args(arguments))
    call = options.pop("call")
    return _exit_code(lambda: call(**options))


def _exit_code(call: Callable[[], int | None]) -> int:
    """What the user can mend is one line on stderr and exit code 2."""
    try:
        return call() or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(error if str(error) else "interrupted", file=sys.stderr)
        return 128 + getattr(error, "number", SIGINT)


def _verb(verbs, name: str, purpose: str, example: str, call: Callable) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name,
        help=purpose,
        description=purpose[0].upper() + purpose[1:] + ".",
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(call=call)
    return parser


def _inspect(verbs) -> None:
    add = _verb(
        verbs,
        "inspect",
        "check every case of a task, report all faults, and show what it holds",
        "minibrain inspect Task01_BrainTumour --output inspection",
        inspect,
    ).add_argument
    add("task", metavar="TASK", help="folder with dataset.json")
    add("--output", metavar="FOLDER", help="where to write pictures (default: none)")


def inspect(task: str, output: str | None) -> int:
    """Print what a task holds and all its faults; 1 if there is any."""
    from minibrain.data.inspection import inspect as inspect_task
    from minibrain.report.inspection import inspection_pictures, inspection_text

    found = inspect_task(task)
    print(inspection_text(found))
    if output is not None and found.contents:
        for path in inspection_pictures(found, Path(output)):
            print(f"written to {path}")
    return 1 if found.faults else 0


def _train(verbs) -> None:
    add = _verb(
        verbs,
        "train",
        "train a network and judge it on held-out cases",
        "minibrain train --network brain_2d --data Task01_BrainTumour",
        train,
    ).add_argument
    add(
        "--network",
        default="brain_3d",
        metavar="NAME",
        help="preset to train (default brain_3d; without data and GPU its small version)",
    )
    add("--data", metavar="FOLDER", help="of the task, with its dataset.json; left out, phantoms")
    add("--output", metavar="FOLDER", help="of the run (default runs/NETWORK-1, -2, ...)")
    add("--epochs", type=int, metavar="N", help="passes over the training cases")
    add("--batch-size", type=int, metavar="N", help="samples in a step")
    add("--learning-rate", type=float, metavar="RATE", help="of Adam")
    add("--precision", choices=tuple(PRECISIONS), help="of all arithmetic")
    add("--device", choices=("auto", "cpu", "cuda"), help="where to compute (default auto)")
    add("--seed", type=int, metavar="N", help="of weights, split, order and augmentation")
    add("--clip-norm", type=float, metavar="NORM", help="longest gradient (default: no limit)")
    add("--resume", metavar="FOLDER", help="go on with the run in it; takes --epochs, --device")


def train(network: str, resume: str | None, **options) -> None:
    """Train a preset by its own configuration, changed by the options that are not None.

    Without data and without a GPU the small version of the network is trained.
    """
    from minibrain import experiment

    given = {name: value for name, value in options.items() if value is not None}
    if resume is not None:
        if others := sorted(given.keys() - {"epochs", "device"}):
            raise InputError(f"resume: {others[0]} stays as in {resume}, expected no such option")
        experiment.resume(resume, **given)
        return
    small = f"{network}_small"
    if "data" not in given and small in experiment.CONFIGS:
        on_gpu = find_device(given.get("device", "auto")) == "cuda"
        network = network if on_gpu else small
    if network not in experiment.CONFIGS:
        raise InputError(
            f"network: got {network!r}, expected one of {', '.join(experiment.CONFIGS)}"
        )
    experiment.run(replace(experiment.CONFIGS[network], **given))


def _gradcheck(verbs) -> None:
    add = _verb(
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
    from minibrain.gradcheck_cases import run

    return 0 if run(names, seed) else 1


def _explain(verbs) -> None:
    add = _verb(
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
        help="the page, one file that needs no network (default explorer.html)",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")


def explain(**options) -> None:
    """See `minibrain.study.explain.explain`."""
    from minibrain.study.explain import explain as explain_step

    explain_step(**options)


def _doctor(verbs) -> None:
    _verb(
        verbs,
        "doctor",
        "show versions, processor and GPU, and test the arithmetic",
        "minibrain doctor",
        doctor,
    )


def doctor() -> int:
    """Print what this installation can do; 1 if its arithmetic is wrong."""
    from minibrain.doctor import report

    text, sound = report()
    print(text)
    return 0 if sound else 1
