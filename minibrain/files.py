"""Files that are written whole or not at all, and folders that one process at a time writes to."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from minibrain.errors import InputError

try:
    import fcntl
except ImportError:  # not a POSIX system: there, a lock names its owner but keeps nobody out
    fcntl = None


@contextmanager
def replacing(path: Path, *, keep: Path | None = None) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` only when it is complete and on the disk.

    Parameters
    ----------
    keep : the name that the former file gets, in the same folder; it is lost if None

    Raises
    ------
    InputError : the disk is full, the folder read-only or gone, ...; names `path`, which is then
        what it was before
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if keep and path.exists():
                os.replace(path, keep)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are not there yet; InputError if impossible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Lock:
    """A lock on a folder that this process holds until `release`, or until it ends in any way.

    The file in which it lies says who holds it, and stays behind when nobody does.

    Raises
    ------
    InputError : another process holds it (the message has its number), or the file cannot be made
    """

    def __init__(self, path: Path):
        try:
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from error
        try:
            if fcntl:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.seek(0)
            owner = self._file.read(20).decode(errors="replace") or "of unknown number"
            self._file.close()
            raise InputError(f"{path.parent}: in use by process {owner}") from error
        self._file.truncate(0)
        self._file.write(str(os.getpid()).encode())

    def release(self) -> None:
        self._file.close()
