"""One training step, watched: what every operation made, saved and cost, on the way there and back.

The step is `minibrain.training.train_step` itself. What is watched is the dispatch of operations
in `minibrain.kernels`: the model has no code for it, and the step's numbers stay what they are.
"""

import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

import numpy as np

from minibrain import kernels
from minibrain.flops import flops
from minibrain.layers import Chain
from minibrain.models import UNet
from minibrain.optimizers import Adam
from minibrain.study.records import Measure, Node, Pass, Saved, Trace, Use
from minibrain.training import train_step

# Names of what a backward returns: first the gradients of the arrays that went in, in their order
NORM_GRADIENTS = ("dx", "dgamma", "dbeta")
GRADIENTS = {
    "conv": ("dx", "dweight", "dbias"),
    "conv_transpose": ("dx", "dweight", "dbias"),
    "batch_norm": NORM_GRADIENTS,
    "instance_norm": NORM_GRADIENTS,
    "norm_relu": NORM_GRADIENTS,
    "concat": ("da", "db"),
    "cce_dice_loss": ("dlogits",),
    "attention_gate": (
        *("dskip", "dsignal"),
        *("dskip_weight", "dsignal_weight", "dbias", "dscore_weight", "dscore_bias"),
    ),
}


def trace_step(
    model: UNet,
    optimizer: Adam,
    images,
    labels,
    step: int = 0,
    picture: Callable[[Any], Any] | None = None,
) -> Trace:
    """Do one training step, exactly as `train_step` does it, and record every operation.

    Parameters
    ----------
    model, optimizer : changed by the step
    images, labels, step : as for `train_step`
    picture : array -> anything; called for each (N, *S, C) array that passes, and kept with it
    """
    watcher = _Watcher(model, images.shape[1], picture or (lambda array: None))
    with watcher.watching():
        loss = train_step(model, optimizer, images, labels, step)
    return Trace(loss, watcher.nodes, watcher.update)


class _Watcher:
    """Turns the calls that `kernels` tells of into nodes.

    What forward hands to backward is told apart by its id, which is safe: it lives until then.
    """

    def __init__(self, model, size, picture):
        self.model, self.size, self.picture = model, size, picture
        self.layer = None  # name of the one at work
        self.nodes: list[Node] = []
        self.update: Pass | None = None
        self.begins: list[float] = []  # when the forward of each node began
        self.maker: dict[int, tuple[weakref.ref, Node]] = {}  # by id of the array made
        self.node_of: dict[int, Node] = {}  # by id of what its forward handed to its backward
        self.parameters = {id(p.value): name for name, p in model.named_parameters().items()}
        self.keeper = dict(self.parameters)  # by id of an array: who has kept it first
        self.latest = None  # name of the node whose backward is over
        self.own_work: list[tuple[float, float]] = []  # begin and end

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hear of every operation, and know in which layer it is."""
        layers = dict(_layers(self.model))
        for name, layer in layers.items():
            layer.forward = self._inside(name, layer.forward)
            layer.backward = self._inside(name, layer.backward)
        try:
            with kernels.listening(self.hear):
                yield
        finally:
            for layer in layers.values():
                del layer.forward, layer.backward

    def _inside(self, name, method):
        def call(*arguments, **options):
            self.layer = name
            try:
                return method(*arguments, **options)
            finally:
                self.layer = None

        return call

    def hear(self, call: kernels.Call) -> None:
        begin = time.perf_counter()
        operation, _, direction = call.name.rpartition("_")
        if direction == "forward":
            self._forward(operation, call)
        elif direction == "backward":
            self._backward(operation, call)
        elif call.name == "adam_inplace":
            self.update, self.latest = self._pass(call, {}), None
        self.own_work.append((begin, time.perf_counter()))

    def _forward(self, operation, call):
        while self.begins and self.begins[-1] >= call.begin:  # a part of what is now complete
            self.begins.pop()
            self._forget(self.nodes.pop())
        y, saved = call.result
        arrays = [x for x in call.arguments if id(x) not in self.parameters]
        inputs = [x for x in arrays if getattr(x, "ndim", 0) == self.model.rank + 2]
        node = self._node(operation, call, inputs, y)
        self.begins.append(call.begin)
        self.nodes.append(node)
        self.node_of[id(saved)] = node
        node.saved += self._keep(saved, node.name)
        for x, gradient in zip(inputs, GRADIENTS.get(operation, ("dx",)), strict=False):
            made, maker = self.maker.get(id(x), (lambda: None, None))
            if made() is x:
                maker.uses.append(Use(node.name, gradient))
        if y.ndim:
            self.maker[id(y)] = weakref.ref(y), node

    def _forget(self, part: Node) -> None:
        for node in self.nodes:
            node.uses = [use for use in node.uses if use.by != part.name]
        self.keeper = {key: name for key, name in self.keeper.items() if name != part.name}
        self.node_of = {key: node for key, node in self.node_of.items() if node is not part}

    def _backward(self, operation, call):
        dy, saved = call.arguments
        node = self.node_of.pop(id(saved), None)
        if node is None:
            return  # a part of another operation's backward
        self.latest = node.name
        names = GRADIENTS.get(operation, ("dx",))
        results = call.result if isinstance(call.result, tuple) else (call.result,)
        found = {n: x for n, x in zip(names, results, strict=True) if x is not None}
        node.arriving, node.backward = self._measure(dy), self._pass(call, found)

    def _node(self, operation, call, inputs, y) -> Node:
        name = self.layer or {"cce_dice_loss": "loss"}.get(operation, operation)
        if any(node.name == name for node in self.nodes):
            name = f"{name}.{operation}"  # a layer may consist of several operations
        like = y if y.ndim else inputs[0]
        level = round(np.log2(self.size / like.shape[1]))
        own = [x for x in call.arguments if id(x) in self.parameters]
        shapes = [tuple(x.shape) for x in inputs]
        parameters = sum(x.size for x in own)
        return Node(name, operation, level, shapes, parameters, self._pass(call, {"y": y}), [])

    def _pass(self, call, results) -> Pass:
        own = sum(end - begin for begin, end in self.own_work if begin >= call.begin)
        measured = {name: self._measure(x) for name, x in results.items()}
        count = flops(call.name, call.arguments, call.options, call.result)
        return Pass(call.who, call.seconds - own, count, measured)

    def _measure(self, x) -> Measure:
        x = kernels.written(x) if hasattr(x, "ndim") else np.asarray(x)
        mean, std = (float(f(dtype=np.float64)) for f in (x.mean, x.std))
        largest = max(float(x.max()), -float(x.min()))
        picture = self.picture(x) if x.ndim == self.model.rank + 2 else None
        return Measure(tuple(x.shape), str(x.dtype), mean, std, largest, picture)

    def _keep(self, saved, name) -> list[Saved]:
        """What the arrays in `saved` are, and from now on when they cease to be."""
        kept = []
        for field, array in _arrays(saved):
            keeper = self.keeper.get(id(array))
            size = 0 if keeper else array.nbytes
            item = Saved(field, tuple(array.shape), str(array.dtype), size, keeper)
            kept.append(item)
            if not keeper:
                self.keeper[id(array)] = name
                weakref.finalize(array, self._free, item).atexit = False
        return kept

    def _free(self, item: Saved) -> None:
        item.freed_after = self.latest


def _layers(model):
    """Every layer of a network with its name, in the chains and outside."""
    for name, part in model.parts():
        if isinstance(part, Chain):
            yield from ((f"{name}.{inner}", layer) for inner, layer in part.layers.items())
        else:
            yield name, part


def _arrays(saved, prefix=""):
    """Every array in nested named tuples and data classes, with its path."""
    fields = vars(saved) if is_dataclass(saved) else saved._asdict()
    for field, value in fields.items():
        if is_dataclass(value) or hasattr(value, "_asdict"):
            yield from _arrays(value, f"{prefix}{field}.")
        elif getattr(value, "ndim", 0):
            yield f"{prefix}{field}", value
