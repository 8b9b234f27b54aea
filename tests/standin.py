"""A stand-in for CuPy: NumPy arrays behind a type that is as strict as arrays on a GPU.

As with CuPy 14, an array refuses to become a NumPy array unless `asnumpy` or `.get()` is called,
refuses to be mixed with one, comes back 0-dimensional from a reduction, and is no index. Names,
methods and keywords that CuPy lacks are missing here too. In two things this module is stricter:
NumPy's own functions refuse it, and what adds in no fixed order on a GPU (`add.at`, `bincount`
with weights) is missing, because the same seed must give the same bits.

The module is found as CuPy is: by the name of the package that the array type comes from.
"""

import operator
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
MISSING_KEYWORDS = {"where", "initial", "subok", "like", "device", "mean"}
BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
BINARY += ("lshift", "rshift")
COMPARISONS = ("lt", "le", "eq", "ne", "gt", "ge")
UNARY = ("neg", "pos", "abs", "invert")


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
        return self._host.copy()

    def __getattr__(self, name):
        if name.startswith("__") or name in MISSING_METHODS:
            raise AttributeError(f"arrays of CuPy have no {name}")
        value = getattr(self._host, name)
        return _on_device(value) if callable(value) else _wrap(value)

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (ndarray(item) for item in self._host)

    def __getitem__(self, index):
        return ndarray(self._host[_unwrap(index)])

    def __setitem__(self, index, value):
        self._host[_unwrap(index)] = _unwrap(value)

    def __bool__(self):
        return bool(self._host)

    def __int__(self):
        return int(self._host)

    def __float__(self):
        return float(self._host)

    def __repr__(self):
        return f"standin.{self._host!r}"


def _unwrap(value):
    """What the host computes with; a NumPy array here was mixed in and is refused."""
    if isinstance(value, ndarray):
        return value._host
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


def _on_device(function):
    """A function of host arrays as one of device arrays."""

    def call(*arguments, **keywords):
        if refused := MISSING_KEYWORDS & keywords.keys():
            raise TypeError(f"CuPy does not take {', '.join(refused)}")
        keywords = {name: _unwrap(value) for name, value in keywords.items()}
        result = function(*_unwrap(arguments), **keywords)
        out = keywords.get("out")
        return ndarray(out) if out is not None else _wrap(result)

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
        return _wrap(function(*(pair[::-1] if reflected else pair)))

    return binary


def _in_place(name):
    function = getattr(operator, f"__i{name}__")

    def binary(self, other):
        self._host = function(self._host, _unwrap(other))
        return self

    return binary


def _unary(name):
    function = getattr(operator, f"__{name}__")
    return lambda self: _wrap(function(self._host))


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
    if isinstance(values, ndarray):
        return values if dtype in (None, values.dtype) else values.astype(dtype)
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


def __getattr__(name):
    """Every other name is NumPy's, if CuPy has it."""
    if name.startswith("__") or name in NOT_REPRODUCIBLE.union(MISSING.split()):
        raise AttributeError(f"CuPy has no {name}")
    value = getattr(np, name)
    if isinstance(value, np.ufunc):
        return _ufunc(value)
    return _on_device(value) if callable(value) and not isinstance(value, type) else value
