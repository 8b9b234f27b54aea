"""The command line: `minibrain VERB ...`. Its verbs are in `minibrain.verbs`."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from signal import SIGINT

from tqdm import tqdm

from minibrain.errors import InputError
from minibrain.runs.interruption import terminable
from minibrain.verbs import VERBS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code.

    0 is success, 1 a check that failed, 2 input that the user can mend, 130 and 143 the end that
    SIGINT and SIGTERM asked for, 141 that nobody reads what is printed.
    """
    parser = _Parser(
        prog="minibrain",
        description="2D and 3D U-Nets for brain tumours in MRI, trained with hand-written "
        "arithmetic. `minibrain VERB --help` shows the options of a verb, and an example.",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for declare in VERBS:
        declare(verbs)
    if hasattr(sys.stdout, "reconfigure"):  # names of files may hold what it cannot print
        sys.stdout.reconfigure(errors="backslashreplace")
    options = vars(parser.parse_args(arguments))
    call = options.pop("call")
    for name, value in options.items():
        if value == "" or (isinstance(value, list) and "" in value):  # of a variable not set
            parser.error(f"argument {name}: is empty")
    return _exit_code(lambda: call(**options))


class _Parser(argparse.ArgumentParser):
    """A bad option is one line on stderr, as every other error."""

    def error(self, message: str):
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def _exit_code(call: Callable[[], int | None]) -> int:
    """What the user can mend is one line on stderr and exit code 2; a warning is one line, too."""
    try:
        with warnings.catch_warnings(), terminable():
            warnings.showwarning = _show_warning
            code = call() or 0
            sys.stdout.flush()
            return code
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `head` has seen enough; what Python still flushes goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a folder that may not be entered, a disk that fails, ...
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(error if str(error) else "interrupted", file=sys.stderr)
        return 128 + getattr(error, "number", SIGINT)


def _show_warning(message, *_) -> None:
    tqdm.write(f"warning: {message}", file=sys.stderr)  # above a progress bar, not into it
