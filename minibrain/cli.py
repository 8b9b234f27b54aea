"""Command lines: parse and call, nothing else."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace

from minibrain.arrays import PRECISIONS, find_device
from minibrain.errors import InputError
from minibrain.experiment import Config, run


def train(description: str, *, reference: Config, small: Config) -> None:
    """Parse a training command and run it.

    Real data and GPUs get the reference configuration; without either, the small one.
    """
    options = vars(_training_parser(description, reference, small).parse_args())
    given = {name: value for name, value in options.items() if value is not None}

    def call():
        on_gpu = find_device(options["device"] or "auto") == "cuda"
        run(replace(reference if options["data"] or on_gpu else small, **given))

    exit_on_input_error(call)


def exit_on_input_error(call: Callable[[], None]) -> None:
    """What the user can mend is one line on stderr and exit code 2."""
    try:
        call()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _training_parser(description, reference: Config, small: Config) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(flag, text, **options):
        name = flag[2:].replace("-", "_")
        defaults = [str(getattr(config, name, None)) for config in (reference, small)]
        shown = {"None": ""}.get(
            defaults[0], f" (default {' or, small, '.join(dict.fromkeys(defaults))})"
        )
        parser.add_argument(flag, help=text + shown, **options)

    add(
        "--data", "folder of the task, with its dataset.json; made up if left out", metavar="FOLDER"
    )
    add("--epochs", "passes over the training cases", type=int, metavar="N")
    add("--batch-size", "samples in a step", type=int, metavar="N")
    add("--learning-rate", "of Adam", type=float, metavar="RATE")
    add("--device", "where to compute", choices=("auto", "cpu", "cuda"))
    add("--precision", "of all arithmetic", choices=tuple(PRECISIONS))
    add("--seed", "of weights, split, order and augmentation", type=int, metavar="N")
    add("--output", "folder of the run; runs/NETWORK-1, -2, ... if left out", metavar="FOLDER")
    return parser
