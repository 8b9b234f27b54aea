"""Work of a GPU that is recorded once and then started as a whole: a CUDA graph.

A training step is hundreds of launches, which the host takes longer to start than the device to
run. Recorded, they are started by one call, and run again with the same addresses and the same
numbers. So whatever differs from one time to the next must be read from memory that stays.
"""

import warnings
from contextlib import contextmanager, suppress
from weakref import WeakSet

from minibrain import kernels

_recordings = WeakSet()  # all that there are, for the memory that they keep


def kept_bytes() -> int:
    """Of the device's memory, by all recordings together."""
    return sum(recording.pool.total_bytes() for recording in _recordings)


class Recording:
    """Calls a function of arrays, and records it when the same is called twice in a row.

    The function must not wait for the device, nor change anything on the host. Where recording
    fails for that or another reason, a warning says why, and from then on it is called as it is.

    All that it allocates comes from a pool of its own, on a stream of its own. What it has let go
    of is free again for its next call and for nobody else, since a graph goes on using it.

    Parameters
    ----------
    xp : cupy
    """

    def __init__(self, xp):
        self.xp = xp
        self.stream = xp.cuda.Stream(non_blocking=True)
        self.pool = _pool_that_keeps_all(xp)
        self.latest = self.recorded = None  # calls
        self.inputs, self.graph, self.result = [], None, None
        self.obstacle: str | None = None  # why nothing is recorded
        _recordings.add(self)

    def __call__(self, function, inputs, key):
        """function(*inputs), and its result, an array that is valid until the next call.

        Parameters
        ----------
        inputs : arrays or numbers on host or device, each with the dtype in which it gets it
        key : what else the result depends on, but for what lies in memory that stays
        """
        dtypes = [dtype for _, dtype in inputs]
        with self._own_stream_and_memory():
            inputs = [self.xp.asarray(x) for x, _ in inputs]
            call = key, dtypes, [x.shape for x in inputs]
            repeated, self.latest = call == self.latest, call
            if repeated and call != self.recorded and self._may_record():
                self._record(function, call)
            if call != self.recorded or kernels.listeners:
                inputs = [x.astype(d, copy=False) for x, d in zip(inputs, dtypes, strict=True)]
                return function(*inputs)
            for own, x in zip(self.inputs, inputs, strict=True):
                own[...] = x
            self.graph.launch()
            return self.result

    def _may_record(self) -> bool:
        return not self.obstacle and not kernels.listeners  # which wait for the device

    def _record(self, function, call):
        self.recorded = self.graph = self.result = None
        _, dtypes, shapes = call
        self.inputs = [self.xp.empty(*kind) for kind in zip(shapes, dtypes, strict=True)]
        try:
            self.result, self.graph = self._captured(function)
            self.recorded = call
        except Exception as error:  # the function itself may be at fault: it is called once more
            self.obstacle = str(error).partition("\n")[0] or repr(error)
            warnings.warn(
                f"a training step cannot be recorded as a CUDA graph ({self.obstacle}); every step "
                "is started launch by launch, which is slower",
                stacklevel=5,
            )

    def _captured(self, function):
        """What the function returns, and the graph that computes it; nothing is computed yet."""
        self.stream.begin_capture()
        try:
            result = function(*self.inputs)
        except BaseException:
            with suppress(Exception):  # what went wrong in between comes up here again
                self.stream.end_capture()
            raise
        return result, self.stream.end_capture()

    @contextmanager
    def _own_stream_and_memory(self):
        """The caller's stream goes on when this one has done what it is given, and the other way
        round."""
        caller = self.xp.cuda.get_current_stream()
        self.stream.wait_event(caller.record())
        with self.stream, self.xp.cuda.using_allocator(self.pool.malloc):
            yield
        caller.wait_event(self.stream.record())


def _pool_that_keeps_all(xp):
    """A pool whose memory stays the device's when it runs out and would give back what is free. The
    others' pool, where evaluation leaves its own, gives that back before it comes to this."""
    kept = []

    def allocate(size: int):
        try:
            memory = xp.cuda.Memory(size)
        except xp.cuda.runtime.CUDARuntimeError:  # no MemoryError below the pools
            xp.get_default_memory_pool().free_all_blocks()
            memory = xp.cuda.Memory(size)
        kept.append(memory)
        return xp.cuda.MemoryPointer(kept[-1], 0)

    return xp.cuda.MemoryPool(allocate)
