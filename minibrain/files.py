"""Files that are written whole or not at all, and folders that one process at a time writes to.

What the disk refuses is an InputError that names the path.
"""

import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

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
    InputError : the disk is full, the folder read-only or gone, ...; what was at `path` is then
        still there, or at `keep`
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
        reason = error.strerror or f"{error}; is the disk full?"  # NumPy says how much was not
        raise InputError(f"{path}: cannot be written: {reason}") from error


def remove_leftovers(folder: Path) -> None:
    """Remove what `replacing` leaves anywhere in a folder when it is killed while it writes.

    Only for who holds the folder's lock: others may be writing.
    """
    for leftover in folder.rglob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def make_folder(path: Path) -> list[Path]:
    """Make a folder and those above it, where they are missing; returns those, from the inside
    out."""
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made: {error.strerror}") from error
    return missing


def require_writable(folder: Path) -> None:
    """Before work whose results go into a folder, that may be missing yet: an error now, not then,
    if it cannot be made or nothing can be written there. Leaves nothing behind."""
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}") from error


def write_json(path: Path, value) -> None:
    with replacing(path) as file:
        file.write(json.dumps(value, indent=1).encode())


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file; `what` says in the error what it was expected to be."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read as {what}: {reason}") from error


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Lock:
    """A lock on a folder that this process holds until the end of a `with` block, `release`, or
    its own end, whichever way that comes.

    The file in which it lies says who holds it, and stays behind when nobody does. Where it is a
    link, it is refused: who made the folder could have had another file overwritten.

    Parameters
    ----------
    wait : until the process that holds it lets go; after a line that says so

    Raises
    ------
    InputError : another process holds it (the message has its number), or the file cannot be
        written
    """

    def __init__(self, path: Path, *, wait: bool = False):
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        self._descriptor = None
        try:
            self._descriptor = os.open(path, flags, 0o666)
            self._take(path.parent, wait)
            os.truncate(self._descriptor, 0)
            os.write(self._descriptor, str(os.getpid()).encode())
        except OSError as error:
            self.release()
            raise InputError(f"{path}: cannot be written: {error.strerror}") from error

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *error) -> None:
        self.release()

    def _take(self, folder: Path, wait: bool) -> None:
        if not fcntl:
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(self._descriptor, 20).decode(errors="replace") or "of unknown number"
            message = f"{folder}: in use by process {owner}"
            if not wait:
                self.release()
                raise InputError(message) from error
            print(f"{message}, waiting for its end", flush=True)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None  # its number may soon be another file's
