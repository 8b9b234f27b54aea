"""The functions behind an operation, as they stand in the package."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import minibrain
from minibrain import functional

PACKAGE = Path(minibrain.__file__).parent


def operation_sources(operation: str) -> dict[str, list[dict]]:
    """Of "conv", say: {"forward": [...], "backward": [...]}, each the public function and what it
    calls in `minibrain.functional`; see `source`."""
    return {
        direction: [
            source(f) for f in _with_called(getattr(functional, f"{operation}_{direction}"))
        ]
        for direction in ("forward", "backward")
    }


def source(function: Callable, mark: str = "") -> dict:
    """Name, file and text of a function, and the number of the one line that holds `mark`, from 0.

    Raises
    ------
    ValueError : `mark` is not in just one line: what the page would point at has gone
    """
    lines = inspect.getsource(function)
    text = (inspect.cleandoc(f"\n{lines}") if lines[0] == " " else lines).rstrip()
    file = Path(inspect.getsourcefile(function)).relative_to(PACKAGE.parent).as_posix()
    shown = {"name": function.__qualname__, "file": file, "text": text}
    if not mark:
        return shown
    [number] = [number for number, line in enumerate(text.split("\n")) if mark in line]
    return shown | {"mark": number}


def _with_called(function, seen=None) -> Iterator[Callable]:
    """The function, then what it calls, depth first; checks of arguments are left out."""
    seen = set() if seen is None else seen
    function = inspect.unwrap(function)
    if function in seen:
        return
    seen.add(function)
    yield function
    for name in function.__code__.co_names:
        called = inspect.unwrap(function.__globals__.get(name))
        package = getattr(called, "__module__", "") or ""
        ours = package.startswith("minibrain.functional") and inspect.isfunction(called)
        if ours and not name.startswith("_check"):
            yield from _with_called(called, seen)
