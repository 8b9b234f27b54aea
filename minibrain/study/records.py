"""What a traced step consists of."""

from dataclasses import asdict, dataclass, field
from itertools import accumulate
from math import isfinite
from typing import Any

from minibrain.study.table import mirrored_table


@dataclass
class Measure:
    """An array in passing."""

    shape: tuple[int, ...]
    dtype: str
    mean: float
    std: float
    max: float  # the largest magnitude
    picture: Any = None  # what `trace_step` was told to make of the array


@dataclass
class Saved:
    """An array that a forward keeps for its backward."""

    field: str  # such as "norm.x"
    shape: tuple[int, ...]
    dtype: str
    bytes: int  # 0 if it is a parameter or kept already by another
    kept_by: str | None = None  # the parameter or operation that has it already
    freed_after: str | None = None  # whose backward came last; None if it outlives the step


@dataclass
class Pass:
    """A forward or a backward: who computed it, its cost, and what came out of it."""

    twin: str  # "fast" or "reference"
    seconds: float
    flops: int
    results: dict[str, Measure]


@dataclass
class Use:
    """Who takes a result in, and what it calls the gradient that it sends back."""

    by: str  # name of the node
    gradient: str  # such as "dx"


@dataclass
class Node:
    """An operation of the network with both its passes."""

    name: str  # such as "encoder0.conv1"
    operation: str  # such as "conv"
    level: int  # 0 at full size, one more after every halving
    inputs: list[tuple[int, ...]]  # shapes of the arrays (N, *S, C) that went in
    parameters: int
    forward: Pass
    saved: list[Saved]
    uses: list[Use] = field(default_factory=list)  # of the result
    arriving: Measure | None = None  # the gradient of what forward made
    backward: Pass | None = None

    @property
    def result(self) -> Measure:
        return self.forward.results["y"]

    @property
    def bytes_saved(self) -> int:
        return sum(saved.bytes for saved in self.saved)


@dataclass
class Trace:
    """What a training step did; `print` shows it as a table whose halves mirror each other."""

    loss: float
    nodes: list[Node]  # in the order of forward, the loss last
    update: Pass  # the optimizer's

    def __str__(self) -> str:
        return mirrored_table(self)

    def as_json(self) -> dict:
        """The same as dicts, lists, strings and numbers; without pictures. JSON has no number for
        what is not finite: it is a string, "nan" or "inf"."""

        def plain(pairs):
            return {name: _writable(value) for name, value in pairs if name != "picture"}

        return asdict(self, dict_factory=plain)

    def meeting_gradients(self, node: Node) -> dict[str, Measure]:
        """What comes back from each use of a node's result; what arrives there is their sum."""
        by_name = {other.name: other for other in self.nodes}
        return {use.by: by_name[use.by].backward.results[use.gradient] for use in node.uses}

    def freed_by(self, node: Node) -> int:
        """Bytes that are free once the backward of this node is over."""
        kept = (saved for other in self.nodes for saved in other.saved)
        return sum(saved.bytes for saved in kept if saved.freed_after == node.name)

    def bytes_held(self) -> list[int]:
        """What lies saved after every forward, and then after every backward."""
        changes = [node.bytes_saved for node in self.nodes]
        changes += [-self.freed_by(node) for node in reversed(self.nodes)]
        return list(accumulate(changes))


def _writable(value):
    return str(value) if isinstance(value, float) and not isfinite(value) else value
