"""Threads that share the blocks of one operation, and the buffers they use again and again.

A block is a few large NumPy calls, which let other threads run. BLAS is held to one thread inside
each, so the threads do not wait for one another. How the work is cut never depends on the number
of threads: neither do the results.
"""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from math import prod

import numpy as np
from threadpoolctl import ThreadpoolController

_local = threading.local()


def each(work: Callable, items: Iterable) -> list:
    """[work(item) for item in items], on all threads."""
    items = list(items)
    with _blas().limit(limits=1):
        if thread_count() == 1 or len(items) == 1:
            return [work(item) for item in items]
        return list(_pool().map(work, items))


def thread_count() -> int:
    """MINIBRAIN_THREADS, or the number of cores that this process may use."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return int(os.environ.get("MINIBRAIN_THREADS") or available)


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
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_count(), thread_name_prefix="minibrain")


@cache
def _blas():
    return ThreadpoolController().select(user_api="blas")


if hasattr(os, "register_at_fork"):  # a forked child has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
