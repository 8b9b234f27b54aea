"""All that decides a run: its configuration, the presets' own, and how it is read again."""

from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin

from minibrain.arrays import find_device, find_precision
from minibrain.errors import InputError
from minibrain.files import read_json


@dataclass(frozen=True)
class Config:
    """All that decides a run.

    A 2D network sees `channels`, all if None, of the slices z = 0, every, 2·every, ... of a volume.
    With `patch_size` a 3D network is trained on patches and shown windows of that size,
    without it whole volumes.
    """

    network: str
    epochs: int
    batch_size: int
    learning_rate: float
    data: str | None = None
    output: str | None = None
    device: str = "auto"
    precision: str = "auto"
    seed: int = 1748
    recipe: str = "reference"
    repair_nonfinite: bool = False
    channels: tuple[int, ...] | None = None
    every: int = 1
    patch_size: tuple[int, int, int] | None = None
    halve_on_plateau: bool = False
    clip_norm: float | None = None
    phantom_cases: int = 24
    phantom_size: tuple[int, int, int] = (240, 240, 155)
    phantom_family: str = "a"
    phantom_seed: int = 0


DEFAULTS = {field.name: field.default for field in fields(Config) if field.default is not MISSING}
REFERENCE_3D = Config("brain_3d", epochs=36, batch_size=2, learning_rate=1e-4)
REFERENCE_2D = Config(
    "brain_2d",
    epochs=30,
    batch_size=144,
    learning_rate=1e-3,
    channels=(0, 2),
    every=8,
    halve_on_plateau=True,
)
SMALL_PHANTOM = {"phantom_cases": 40, "phantom_size": (48, 48, 32)}
SMALL_3D = replace(
    REFERENCE_3D, network="brain_3d_small", epochs=24, learning_rate=2e-3, **SMALL_PHANTOM
)
SMALL_2D = replace(
    REFERENCE_2D,
    network="brain_2d_small",
    epochs=24,
    batch_size=16,
    learning_rate=2e-3,
    every=2,
    **SMALL_PHANTOM,
)
ATTENTION_3D = replace(REFERENCE_3D, network="brain_3d_attention")
SMALL_ATTENTION_3D = replace(SMALL_3D, network="brain_3d_attention_small")
PRESETS = REFERENCE_3D, REFERENCE_2D, ATTENTION_3D, SMALL_3D, SMALL_2D, SMALL_ATTENTION_3D
CONFIGS = {config.network: config for config in PRESETS}


def read_config(path: Path) -> Config:
    """The configuration of a run from its config.json; InputError if it is none."""
    values = read_json(path, "a configuration")
    try:
        config = Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        for field in fields(Config):
            if not _fits(found := getattr(config, field.name), field.type):
                raise ValueError(f"{field.name} {found!r} is not as expected")
        if config.network in CONFIGS:
            return config
        raise ValueError(f"network {config.network!r} is none of {', '.join(CONFIGS)}")
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read as a configuration: {error}") from error


def _fits(value, expected) -> bool:
    """Whether a value read from JSON is of a field's type; float takes integers, too."""
    if isinstance(expected, UnionType):
        return any(_fits(value, option) for option in get_args(expected))
    if get_origin(expected) is tuple:
        return isinstance(value, tuple) and all(type(item) is int for item in value)
    return type(value) is expected or (expected is float and type(value) is int)


def settled(config: Config) -> Config:
    """With the device and precision that "auto" stands for; InputError if something is wrong."""
    for name in ("epochs", "batch_size", "learning_rate", "clip_norm"):
        found = getattr(config, name)
        if found is not None and not 0 < found < float("inf"):
            raise InputError(f"{name}: got {found}, expected a finite number above 0")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"seed: got {config.seed}, expected 0 to {2**32 - 1}")
    device = find_device(config.device)
    return replace(config, device=device, precision=find_precision(config.precision, device))
