"""The command line: `minibrain VERB ...`. Its verbs are in `minibrain.verbs`."""

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from signal import SIGINT

from tqdm import tqdm

from minibrain.errors import InputError
from minibrain.runs.interruption import terminable
from minibrain.verbs import VERBS
from minibrain.verbs.parser import Parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code.

    0 is success, 1 a check that failed, 2 input that the user can mend, 130 and 143 the end that
    SIGINT and SIGTERM asked for, 141 that nobody reads what is printed.
    """
    parser = Parser(
        prog="minibrain",
        description="2D and 3D U-Nets for brain tumours in MRI, trained with hand-written "
        "arithmetic. `minibrain VERB --help` shows the options of a verb, and an example.",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for declare in VERBS:
        declare(verbs)
    if hasattr(sys.stdout, "reconfigure"):  # names of files may hold what it cannot print
        sys.stdout.reconfigure(errors="backslashreplace")
    parsed, unknown = parser.parse_known_args(arguments)
    options = vars(parsed)
    call, verb = options.pop("call"), options.pop("parser")
    if unknown:
        verb.error(f"unrecognized arguments: {' '.join(unknown)}")
    for name, value in options.items():
        if value == "" or (isinstance(value, list) and "" in value):  # of a variable not set
            verb.error(verb.named(f"{name}: got nothing, expected a text"))
    return _exit_code(lambda: call(**options), verb.named)


def _exit_code(call: Callable[[], int | None], named: Callable[[str], str] = str) -> int:
    """What the user can mend is one line on stderr and exit code 2; a warning is one line, too."""
    try:
        with warnings.catch_warnings(), terminable():
            warnings.showwarning = _show_warning
            code = call() or 0
            sys.stdout.flush()
            return code
    except InputError as error:
        print(f"error: {named(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `head` has seen enough
        _discard_output()
        return 141
    except OSError as error:  # a folder that may not be entered, a disk that fails, ...
        if error.filename is None and not _output_fails():
            raise
        print(f"error: {error.filename or 'standard output'}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(error if str(error) else "interrupted", file=sys.stderr)
        return 128 + getattr(error, "number", SIGINT)


def _output_fails() -> bool:
    """Whether standard output, of a full disk say, refuses what is printed."""
    try:
        print(flush=True)
    except OSError:
        _discard_output()
        return True
    return False


def _discard_output() -> None:
    """What Python still flushes at its end goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_warning(message, *_) -> None:
    tqdm.write(f"warning: {message}", file=sys.stderr)  # above a progress bar, not into it
