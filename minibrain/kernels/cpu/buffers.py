"""Arrays whose memory is used again.

A fresh array of some megabytes costs a page fault for every 4 KiB (or a page to be zeroed for
every 2 MiB), each time. A step of training makes the same arrays as the step before, so what one
array leaves is kept for the next of its size, up to as much as has been in use at one time.
"""

import threading
from collections import deque
from math import prod

import numpy as np

SMALLEST = 2**20  # bytes; below it NumPy's own allocation is fast


class _Pool:
    def __init__(self):
        self.lock = threading.RLock()  # a buffer may be returned while another one is taken
        self.free: deque[np.ndarray] = deque()
        self.bytes_free = self.bytes_used = self.most_used = 0

    def take(self, size: int) -> np.ndarray:
        with self.lock:
            for i, buffer in enumerate(self.free):
                if buffer.nbytes == size:
                    del self.free[i]
                    self.bytes_free -= size
                    self._use(size)
                    return buffer
            self._trim(coming=size)
        buffer = np.empty(size, np.uint8)  # may fail: only what is there is counted
        with self.lock:
            self._use(size)
        return buffer

    def _use(self, size: int) -> None:
        self.bytes_used += size
        self.most_used = max(self.most_used, self.bytes_used)

    def give(self, buffer: np.ndarray) -> None:
        with self.lock:
            self.bytes_used -= buffer.nbytes
            self.free.append(buffer)
            self.bytes_free += buffer.nbytes
            self._trim()

    def _trim(self, coming: int = 0) -> None:
        """Let the oldest go until no more is held than was in use at one time."""
        used = self.bytes_used + coming
        while self.free and self.bytes_free + used > max(self.most_used, used):
            self.bytes_free -= self.free.popleft().nbytes


class _Loan:
    """Owns a buffer as the base of one array and its views; gives it back when the last is gone."""

    def __init__(self, pool: _Pool, buffer: np.ndarray, shape: tuple[int, ...]):
        self.pool, self.buffer = pool, buffer
        self.__array_interface__ = buffer.__array_interface__ | {
            "shape": shape,
            "typestr": np.dtype(np.float32).str,
        }

    def __del__(self):
        self.pool.give(self.buffer)


_pool = _Pool()


def empty(shape: tuple[int, ...]) -> np.ndarray:
    """A float32 array with whatever an earlier one left in it."""
    if 4 * prod(shape) < SMALLEST:
        return np.empty(shape, np.float32)
    return _lend(_pool, tuple(shape))


def _lend(pool: _Pool, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(_Loan(pool, pool.take(4 * prod(shape)), shape))
