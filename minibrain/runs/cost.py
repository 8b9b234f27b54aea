"""What a run has cost: time, and memory at its highest."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path

from minibrain.errors import InputError
from minibrain.files import read_json, write_json
from minibrain.kernels.cuda.graph import kept_bytes

NOTHING = {"seconds": 0.0, "peak_memory_bytes": 0}


@contextmanager
def measured(path: Path, device: str) -> Iterator[None]:
    """Measure a block, and add it to what a JSON file says of earlier blocks.

    A run that is interrupted and resumed thus counts as one. Time adds up, memory is the highest:
    on a GPU what CuPy's pools have taken, else what the whole process had resident.
    """
    _forget_peak(device)
    begin = time.perf_counter()
    try:
        yield
    except BaseException:
        with suppress(InputError):  # what went wrong first is what is to be told
            _add(path, time.perf_counter() - begin, _peak(device))
        raise
    _add(path, time.perf_counter() - begin, _peak(device))


def read_cost(path: Path) -> dict:
    """{"seconds": ..., "peak_memory_bytes": ...}, both 0 if nothing readable has been measured."""
    with suppress(InputError, KeyError, TypeError):
        cost = read_json(path, "a cost")
        if all(isfinite(cost[name]) for name in NOTHING):
            return {name: cost[name] for name in NOTHING}
    return dict(NOTHING)


def _add(path: Path, seconds: float, peak: int) -> None:
    before = read_cost(path)
    cost = {
        "seconds": round(before["seconds"] + seconds, 3),
        "peak_memory_bytes": max(before["peak_memory_bytes"], peak),
    }
    write_json(path, cost)


def _forget_peak(device: str) -> None:
    """Start anew, where the system can: what came before is not to be counted."""
    if device == "cuda":
        sys.modules["cupy"].get_default_memory_pool().free_all_blocks()
    with suppress(OSError):  # only Linux has it
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: str) -> int:
    if device == "cuda":
        return sys.modules["cupy"].get_default_memory_pool().total_bytes() + kept_bytes()
    with suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text().splitlines()
        line = next(line for line in status if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return _peak_by_rusage()


def _peak_by_rusage() -> int:
    """Since the process began, where there is no /proc; 0 where there is no getrusage either."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
