"""The functions behind an operation, as they stand in the package."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import minibrain
from minibrain import functional

PACKAGE = Path(minibrain.__file__).parent


def operation_sources(operation: str) -> dict[str, list[dict]]:
    """Of "conv", say: {"forward": [...], "backward": [...]}, each the public function and what it
    calls in `minibrain.functional`, as dicts with name, file, line and text."""
    return {
        direction: [
            source(f) for f in _with_called(getattr(functional, f"{operation}_{direction}"))
        ]
        for direction in ("forward", "backward")
    }


def source(function: Callable) -> dict:
    """Name, file, line and text of a function."""
    text, line = inspect.getsourcelines(function)
    file = Path(inspect.getsourcefile(function)).relative_to(PACKAGE.parent).as_posix()
    body = inspect.cleandoc("\n" + "".join(text)) if text[0].startswith(" ") else "".join(text)
    return {"name": function.__qualname__, "file": file, "line": line, "text": body.rstrip()}


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
