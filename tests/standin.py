"""A stand-in for CuPy: NumPy arrays behind a type that is as strict as arrays on a GPU.

As with CuPy 14, an array refuses to become a NumPy array unless `asnumpy` or `.get()` is called,
refuses to be mixed with one, comes back 0-dimensional from a reduction, and is no index. Names,
methods and keywords that CuPy lacks are missing here too. In two things this module is stricter:
NumPy's own functions refuse it, and what adds in no fixed order on a GPU (`add.at`, `bincount`
with weights) is missing, because the same seed must give the same bits.

While a stream captures, what its thread asks for is not done but recorded, and whoever would wait
for the device there is refused. Launching the graph does it all, on the same arrays. Where a
result's shape is needed it is computed at once too, from whatever is there.

The module is found as CuPy is: by the name of the package that the array type comes from.
"""

import operator
import threading
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import numpy as np

# in NumPy's public names and not in those of CuPy 14.2
MISSING = """
    asmatrix block bmat busday_count busday_offset datetime_as_string datetime_data einsum_path
    emath errstate frompyfunc fromregex geomspace get_include getbufsize geterr geterrcall
    histogram_bin_edges info insert is_busday isnat longdouble ma matvec memmap nanpercentile
    nanquantile ndenumerate nditer nested_iters polyder polydiv polyint rec recarray setbufsize
    seterr seterrcall show_runtime spacing strings unstack vecdot vecmat void
"""
NOT_REPRODUCIBLE = {"bincount", "random"}
MISSING_METHODS = {"ctypes", "getfield", "resize", "setfield", "setflags", "to_device"}
WAITING_METHODS = {"item", "tobytes", "tolist"}
MISSING_KEYWORDS = {"where", "initial", "subok", "like", "device", "mean"}
BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
BINARY += ("lshift", "rshift")
COMPARISONS = ("lt", "le", "eq", "ne", "gt", "ge")
UNARY = ("neg", "pos", "abs", "invert")


class Thread(threading.local):
    """What is a thread's own, as in CuPy."""

    recorded = None  # while its stream captures, the list of what is to be done

    def __init__(self):
        self.stream, self.allocator = NULL, DEFAULT_POOL.malloc


def do(work):
    """Now, or when the graph is launched."""
    work() if thread.recorded is None else thread.recorded.append(work)


def _computed(work, *inputs):
    """What `work` returns; unless that is a view of the inputs, a graph computes it again."""
    recorded = thread.recorded
    with np.errstate() if recorded is None else np.errstate(all="ignore"):  # of what is not yet
        result = _without_scalars(work())
    if recorded is not None:
        for number, array in enumerate(_arrays(result)):
            if not any(np.may_share_memory(array, each) for each in _arrays(inputs)):
                recorded.append(partial(_compute_again, array, work, number))
    return result


def _compute_again(array, work, number):
    array[...] = list(_arrays(work()))[number]


def _without_scalars(value):
    """What reductions return: arrays of no dimension, as on a device."""
    if isinstance(value, tuple | list):
        return type(value)(map(_without_scalars, value))
    return np.asarray(value) if isinstance(value, np.generic) else value


def _arrays(value):
    """Host arrays and scalars in nested tuples and lists."""
    if isinstance(value, tuple | list):
        for item in value:
            yield from _arrays(item)
    elif isinstance(value, np.ndarray | np.generic):
        yield value


def _wait():
    if thread.recorded is not None:
        raise RuntimeError("the stream is capturing: nothing can be waited for")


class ndarray:
    """One array; `_host` is what a GPU would hold."""

    __array_ufunc__ = None  # NumPy's arrays and functions let go: TypeError

    def __init__(self, host):
        self._host = np.asarray(host)

    def __array__(self, dtype=None, copy=None):
        raise TypeError("implicit conversion to a NumPy array is not allowed; use .get()")

    def __array_function__(self, function, types, arguments, keywords):
        raise TypeError(f"numpy.{function.__name__} was called with an array of a device")

    def get(self):
        _wait()
        return self._host.copy()

    def __getattr__(self, name):
        if name.startswith("__") or name in MISSING_METHODS:
            raise AttributeError(f"arrays of CuPy have no {name}")
        if name in WAITING_METHODS:
            _wait()
        value = getattr(self._host, name)
        return _on_device(value, self._host) if callable(value) else _wrap(value)

    def fill(self, value):
        self[...] = value

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (ndarray(item) for item in self._host)

    def __getitem__(self, index):
        host, index = self._host, _unwrap(index)
        return ndarray(_computed(lambda: np.asarray(host[index]), host))

    def __setitem__(self, index, value):
        do(partial(operator.setitem, self._host, _unwrap(index), _unwrap(value)))

    def __bool__(self):
        _wait()
        return bool(self._host)

    def __int__(self):
        _wait()
        return int(self._host)

    def __float__(self):
        _wait()
        return float(self._host)

    def __repr__(self):
        return f"standin.{self._host!r}"


def _unwrap(value):
    """What the host computes with; a NumPy array here was mixed in and is refused."""
    if isinstance(value, ndarray):
        return value._host
    if hasattr(value, "__cupy_get_ndarray__"):  # CuPy's protocol for what stands for an array
        return _unwrap(value.__cupy_get_ndarray__())
    if isinstance(value, np.ndarray):
        raise TypeError("a NumPy array was mixed with arrays of a device")
    if isinstance(value, tuple | list):
        return type(value)(_unwrap(item) for item in value)
    return value


def _wrap(value):
    if isinstance(value, np.ndarray | np.generic):
        return ndarray(value)
    if isinstance(value, tuple | list):
        return type(value)(_wrap(item) for item in value)
    return value


def _on_device(function, *inputs):
    """A function of host arrays as one of device arrays; a method has its array as input."""

    def call(*arguments, **keywords):
        if refused := MISSING_KEYWORDS & keywords.keys():
            raise TypeError(f"CuPy does not take {', '.join(refused)}")
        arguments, out = _unwrap(arguments), _unwrap(keywords.get("out"))
        keywords = {name: _unwrap(value) for name, value in keywords.items()}
        work = partial(function, *arguments, **keywords)
        if out is not None:
            do(work)
            return ndarray(out)
        return _wrap(_computed(work, inputs, arguments))

    return call


def _ufunc(function):
    call = _on_device(function)
    for method in ("reduce", "accumulate", "outer"):
        setattr(call, method, _on_device(getattr(function, method)))
    return call


def _operator(name, reflected=False):
    function = getattr(operator, f"__{name}__")

    def binary(self, other):
        pair = self._host, _unwrap(other)
        return _wrap(_computed(partial(function, *(pair[::-1] if reflected else pair))))

    return binary


def _in_place(name):
    function = getattr(operator, f"__i{name}__")

    def binary(self, other):
        do(partial(function, self._host, _unwrap(other)))
        return self

    return binary


def _unary(name):
    function = getattr(operator, f"__{name}__")
    return lambda self: _wrap(_computed(partial(function, self._host)))


for _name in BINARY:
    setattr(ndarray, f"__{_name}__", _operator(_name))
    setattr(ndarray, f"__r{_name}__", _operator(_name, reflected=True))
    setattr(ndarray, f"__i{_name}__", _in_place(_name))
for _name in (*COMPARISONS, "matmul"):
    setattr(ndarray, f"__{_name}__", _operator(_name))
for _name in UNARY:
    setattr(ndarray, f"__{_name}__", _unary(_name))


def asarray(values, dtype=None):
    """Copy to the device: the one door for NumPy arrays."""
    if hasattr(values, "__cupy_get_ndarray__"):
        values = values.__cupy_get_ndarray__()
    if isinstance(values, ndarray):
        return values if dtype in (None, values.dtype) else values.astype(dtype)
    _wait()  # the host's memory would have to stay as it is
    return ndarray(np.array(values, dtype))


array = asarray


def asnumpy(values):
    """Copy to the host."""
    return values.get()


lib = SimpleNamespace(
    stride_tricks=SimpleNamespace(
        as_strided=_on_device(np.lib.stride_tricks.as_strided),
        sliding_window_view=_on_device(np.lib.stride_tricks.sliding_window_view),
    )
)


class Stream:
    def __init__(self, non_blocking=False):
        self.before = []

    def __enter__(self):
        self.before.append(thread.stream)
        thread.stream = self
        return self

    def __exit__(self, *error):
        thread.stream = self.before.pop()

    def begin_capture(self):
        assert thread.stream is self is not NULL
        assert thread.recorded is None
        thread.recorded = []

    def end_capture(self):
        work, thread.recorded = thread.recorded, None
        return Graph(work)

    def record(self):
        return self

    def wait_event(self, event):
        assert thread.recorded is None, "a graph would wait for what comes before it is recorded"

    def synchronize(self):
        _wait()


NULL = Stream()


class Graph:
    def __init__(self, work):
        self.work = work

    def launch(self):
        for each in self.work:
            each()


class MemoryPool:
    """Has no memory; what is told apart is who would be asked for it."""

    def __init__(self, allocator=None):
        self.allocator = allocator

    def malloc(self, size):
        return self.allocator(size)

    def free_all_blocks(self):
        pass

    def total_bytes(self):
        return 0


DEFAULT_POOL = MemoryPool()
thread = Thread()


@contextmanager
def using_allocator(other):
    before, thread.allocator = thread.allocator, other
    try:
        yield
    finally:
        thread.allocator = before


def get_default_memory_pool():
    return DEFAULT_POOL


cuda = SimpleNamespace(
    Stream=Stream,
    MemoryPool=MemoryPool,
    get_current_stream=lambda: thread.stream,
    using_allocator=using_allocator,
)


def __getattr__(name):
    """Every other name is NumPy's, if CuPy has it."""
    if name.startswith("__") or name in NOT_REPRODUCIBLE.union(MISSING.split()):
        raise AttributeError(f"CuPy has no {name}")
    value = getattr(np, name)
    if isinstance(value, np.ufunc):
        return _ufunc(value)
    return _on_device(value) if callable(value) and not isinstance(value, type) else value
