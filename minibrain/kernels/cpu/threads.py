"""Threads that share the blocks of one operation, and the buffers they use again and again.

A block is a few large NumPy calls, which let other threads run. Every thread, the caller's too,
takes the next block when it is done with one. BLAS is held to one thread inside each, so the
threads do not wait for one another. How the work is cut never depends on the number
of threads: neither do the results.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, lru_cache
from math import prod

import numpy as np
from threadpoolctl import ThreadpoolController

from minibrain.errors import InputError

_local = threading.local()
_turn = threading.Lock()  # BLAS's limit is the process's: callers take turns to set and lift it


def each(work: Callable, items: Iterable) -> list:
    """[work(item) for item in items], on all threads; `work` must not call `each` itself."""
    items = list(items)
    results, left = [None] * len(items), deque(enumerate(items))

    def take_part():
        try:
            while True:
                try:
                    i, item = left.popleft()
                except IndexError:
                    return
                results[i] = work(item)
        finally:
            left.clear()  # after an error nobody begins another item

    with _turn, _blas().limit(limits=1):
        threads = thread_count()
        helpers = min(threads, len(items)) - 1
        others = [_pool(threads - 1).submit(take_part) for _ in range(helpers)]
        try:
            take_part()
        finally:
            wait(others)
    for other in others:
        other.result()
    return results


def thread_count() -> int:
    """MINIBRAIN_THREADS, or the number of cores that this process may use."""
    wanted = os.environ.get("MINIBRAIN_THREADS")
    if not wanted:
        affinity = getattr(os, "sched_getaffinity", None)
        return len(affinity(0)) if affinity else os.cpu_count()
    if not wanted.isdecimal() or int(wanted) < 1:
        raise InputError(f"MINIBRAIN_THREADS must be a whole number above 0, not {wanted!r}")
    return int(wanted)


def scratch(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 buffer of this thread, with whatever an earlier call left in it.

    A fresh array costs a page fault for every 4 KiB; a buffer that is kept costs them once.
    """
    buffers = _local.__dict__.setdefault("buffers", {})
    size = prod(shape)
    if name not in buffers or buffers[name].size < size:
        buffers[name] = np.empty(size, np.float32)
    return buffers[name][:size].reshape(shape)


@cache
def _blas():
    return ThreadpoolController().select(user_api="blas")


@lru_cache(maxsize=1)
def _pool(threads) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="minibrain")


def _after_fork():
    """A forked child has none of its parent's threads, so nobody who would end their turn."""
    global _turn
    _turn = threading.Lock()
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
