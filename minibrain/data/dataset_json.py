"""What a task's dataset.json may say: nothing in it is trusted.

The functions raise ValueError with a reason that names the key; `minibrain.data.decathlon` adds
the file's name. Every path is confined to the task's folder, after following links.
"""

import json
import os
import reprlib
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from minibrain.data.nifti_file import open_regular

MAX_JSON_BYTES = 8 * 2**20  # a hundred thousand cases
ENDINGS = (".nii.gz", ".nii")
JSON_NAMES = {dict: "an object", list: "a list", str: "a string"}


def read_json(path: Path) -> dict[str, Any]:
    with open_regular(path) as stream:
        data = stream.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"larger than {MAX_JSON_BYTES} bytes: expected the description of a task")
    content = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_without_repeats)
    if not isinstance(content, dict):
        raise ValueError(f"holds {reprlib.repr(content)}: expected an object")
    return content


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"key {reprlib.repr(key)} occurs twice: expected once")
    return dict(pairs)


def required(content: dict[str, Any], key: str, kind: type) -> Any:
    if key not in content:
        raise ValueError(f"key {key!r} is missing: expected {JSON_NAMES[kind]}")
    if not isinstance(content[key], kind):
        found = reprlib.repr(content[key])
        raise ValueError(f"key {key!r} is {found}: expected {JSON_NAMES[kind]}")
    return content[key]


def task_name(root: Path, content: dict[str, Any]) -> str:
    return required(content, "name", str) if "name" in content else root.name


def in_order(key: str, names: dict[str, Any]) -> tuple[str, ...]:
    """Turn {"0": a, "1": b, ...} into (a, b, ...)."""
    numbers = [str(index) for index in range(len(names))]
    if not names or set(names) != set(numbers):
        found = reprlib.repr(sorted(names))
        raise ValueError(f"key {key!r} has the numbers {found}: expected 0, 1, 2, ... without gaps")
    for name in names.values():
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise ValueError(f"key {key!r} holds {reprlib.repr(name)}: expected a name")
    return tuple(names[number] for number in numbers)


def classes_in_order(labels: dict[str, Any]) -> tuple[str, ...]:
    names = in_order("labels", labels)
    if not 2 <= len(set(names)) == len(names) <= 256:
        raise ValueError(f"key 'labels' names {reprlib.repr(names)}: expected 2 to 256 classes")
    return names


def confined(root: Path, key: str, relative: Any) -> Path:
    """Return the real path of a file that dataset.json names; it must stay inside the root."""
    found = reprlib.repr(relative)
    if not isinstance(relative, str) or not relative.isprintable():
        raise ValueError(f"key {key!r} is {found}: expected a path such as './imagesTr/A.nii.gz'")
    named = PurePosixPath(relative)
    if named.is_absolute() or ".." in named.parts:
        raise ValueError(f"key {key!r} is {found}: expected a path inside the task's folder")
    path = Path(os.path.realpath(root / named))
    if not path.is_relative_to(root):
        raise ValueError(
            f"key {key!r} is {found}, which links to {str(path)!r}: expected a file inside the "
            "task's folder"
        )
    return path


def case_name(key: str, relative: str) -> str:
    file = PurePosixPath(relative).name
    for ending in ENDINGS:
        if file.endswith(ending) and file != ending:
            return file.removesuffix(ending)
    raise ValueError(
        f"key {key!r} is {reprlib.repr(relative)}: expected a name ending in {ENDINGS}"
    )


def names_in(root: Path, folder: str, ending: str) -> list[str]:
    """Names of the files with this ending; hidden ones are no cases (macOS leaves `._*` files)."""
    files = sorted(os.listdir(confined(root, folder, folder)))
    names = [file.removesuffix(ending) for file in files if file.endswith(ending)]
    return [name for name in names if name and not name.startswith(".")]
