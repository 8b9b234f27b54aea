"""The command line: `minibrain VERB ...`. Parse and call, nothing else.

Every verb is one function that declares its options and names the function they go to. Verbs import
what they call when they are called: `minibrain --help` need not wait for plots and classifiers.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from minibrain.arrays import PRECISIONS, find_device
from minibrain.errors import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code.

    0 is success, 1 a check that failed, 2 input that the user can mend, 130 an interruption.
    """
    parser = argparse.ArgumentParser(
        prog="minibrain",
        description="2D and 3D U-Nets for brain tumours in MRI, trained with hand-written "
        "arithmetic. `minibrain VERB --help` shows the options of a verb, and an example.",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for declare in (_inspect, _train, _doctor):
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
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


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


def train(network: str, **options) -> None:
    """Train a preset by its own configuration, changed by the options that are not None.

    Without data and without a GPU the small version of the network is trained.
    """
    from minibrain.experiment import CONFIGS, run

    given = {name: value for name, value in options.items() if value is not None}
    small = f"{network}_small"
    if "data" not in given and small in CONFIGS:
        on_gpu = find_device(given.get("device", "auto")) == "cuda"
        network = network if on_gpu else small
    if network not in CONFIGS:
        raise InputError(f"network: got {network!r}, expected one of {', '.join(CONFIGS)}")
    run(replace(CONFIGS[network], **given))


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
