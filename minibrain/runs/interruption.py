"""SIGINT and SIGTERM, held back until what was begun is whole."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal has asked for the end; programs exit with 128 + its number."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


@contextmanager
def terminable() -> Iterator[None]:
    """In this block SIGTERM is an exception, as SIGINT is: nothing half written stays behind."""

    def interrupt(number: int, frame) -> None:
        raise Interrupted(f"interrupted by {signal.Signals(number).name}", number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Interruption:
    """In a `with` block of the main thread, the first signal waits for `check`, where it raises
    Interrupted. The second ends the program at once."""

    def __init__(self):
        self.number = 0
        self._handlers = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
                    self._handlers[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if error[0] is None:
            self.check()

    def check(self) -> None:
        if self.number:
            raise Interrupted(f"interrupted by {signal.Signals(self.number).name}", self.number)

    def between(self, items: Iterable) -> Iterator:
        """The items, with a check before each."""
        for item in items:
            self.check()
            yield item

    def _note(self, number: int, frame) -> None:
        self.number = number
        for other in self._handlers:
            signal.signal(other, signal.SIG_DFL)
        os.write(2, b"\ninterrupted: saving; a second signal ends at once\n")
