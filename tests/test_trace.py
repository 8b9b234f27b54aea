"""The trace sees a training step as it is, and leaves it as it is."""

import json
from copy import deepcopy

import numpy as np
import pytest
import standin

from minibrain import kernels
from minibrain.duck_arrays import DuckArray, Pending
from minibrain.functional import cce_dice_loss_forward, norm_relu_forward
from minibrain.models import UNet
from minibrain.models.attention_unet import AttentionUNet
from minibrain.optimizers import Adam
from minibrain.saved import DropoutSaved, NormReluSaved, ReluSaved
from minibrain.study.pictures import slicer
from minibrain.study.records import Measure, Node, Pass, Saved, Trace
from minibrain.study.trace import _Watcher, trace_step
from minibrain.training import train_step

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((2, 8, 12, 3)).astype(np.float32)
LABELS = RNG.integers(0, 4, (2, 8, 12)).astype(np.uint8)
OPTIONS = [
    {"norm": "instance", "up": "transposed", "dropout": 0.3, "plain_end": True},
    {"norm": "batch", "up": "nearest", "dropout": 0.2},
    {"norm": "none", "up": "nearest"},
]


def network(make=UNet, **options):
    model = make(2, 3, 4, channels=(4, 6, 8), seed=1, **options)
    return model, Adam(model.named_parameters(), learning_rate=1e-2)


def traced(make=UNet, picture=None, **options):
    return trace_step(*network(make, **options), IMAGES, LABELS, 3, picture)


def by_name(trace):
    return {node.name: node for node in trace.nodes}


def everything(model, optimizer):
    parameters = model.named_parameters() | model.named_buffers()
    values = {name: parameter.value for name, parameter in parameters.items()}
    gradients = {f"d{name}": parameter.grad for name, parameter in parameters.items()}
    return {**values, **gradients, "mean": optimizer.mean, "square": optimizer.square}


def assert_the_same_step(make, options):
    (model, optimizer), (other, other_optimizer) = (network(make, **options) for _ in range(2))
    for step in range(2):  # the second step begins where a trace ended
        loss = train_step(model, optimizer, IMAGES, LABELS, step)
        assert trace_step(other, other_optimizer, IMAGES, LABELS, step).loss == loss
        here, there = everything(model, optimizer), everything(other, other_optimizer)
        assert here.keys() == there.keys()
        for name in here:
            assert np.array_equal(here[name], there[name]), name


@pytest.mark.parametrize("make", [UNet, AttentionUNet])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_traced_step_has_the_bits_of_a_step(make, options):
    assert_the_same_step(make, options)


@pytest.mark.usefixtures("without_twins")
@pytest.mark.parametrize("options", OPTIONS)
def test_a_traced_step_has_the_bits_of_a_step_without_twins(options):
    assert_the_same_step(UNet, options)


@pytest.mark.usefixtures("without_twins")
def test_a_step_is_traced_on_arrays_as_strict_as_a_gpus():
    host = traced()
    model, optimizer = network()
    for parameter in model.named_parameters().values():
        parameter.value = standin.asarray(parameter.value)
    trace = trace_step(model, Adam(optimizer.parameters, 1e-2), IMAGES, LABELS, 3, slicer(0.0))
    assert trace.loss == host.loss
    for there, here in zip(trace.nodes, host.nodes, strict=True):
        assert (there.name, there.forward.flops) == (here.name, here.forward.flops)
        assert there.result.std == here.result.std
        assert there.bytes_saved == here.bytes_saved
        assert there.name == "loss" or there.result.picture.values.dtype == np.uint8


def test_nothing_stays_behind_even_after_an_error():
    model, optimizer = network()
    before = list(kernels.listeners)
    with pytest.raises(ValueError, match="labels"):
        trace_step(model, optimizer, IMAGES, LABELS[:1])
    assert kernels.listeners == before
    for _, part in model.parts():
        for layer in getattr(part, "layers", {"": part}).values():
            assert not {"forward", "backward"} & vars(layer).keys()


def test_operations_are_named_by_their_layers_in_the_order_of_forward():
    assert [node.name for node in traced(up="nearest", norm="none").nodes] == [
        *("encoder0.conv1", "encoder0.relu1", "encoder0.conv2", "encoder0.relu2", "down0"),
        *("encoder1.conv1", "encoder1.relu1", "encoder1.conv2", "encoder1.relu2", "down1"),
        *("bottleneck.conv1", "bottleneck.relu1", "bottleneck.conv2", "bottleneck.relu2"),
        *("up1.upsample", "join1"),
        *("decoder1.conv1", "decoder1.relu1", "decoder1.conv2", "decoder1.relu2"),
        *("up0.upsample", "join0"),
        *("decoder0.conv1", "decoder0.relu1", "decoder0.conv2", "decoder0.relu2"),
        *("head", "loss"),
    ]


def test_levels_shapes_and_parameters():
    nodes = by_name(traced())
    up = nodes["up0.conv"]
    assert (up.operation, up.level, up.inputs) == ("conv_transpose", 0, [(2, 4, 6, 6)])
    assert up.result.shape == up.arriving.shape == (2, 8, 12, 4)
    assert up.parameters == 2 * 2 * 4 * 6 + 4
    assert nodes["bottleneck.conv1"].level == 2
    assert nodes["down0"].level == 1
    assert nodes["join0"].inputs == [(2, 8, 12, 4)] * 2


def test_flops_of_convolutions_by_hand():
    nodes = by_name(traced())
    first, second, up = (
        nodes[f"{name}"] for name in ("encoder0.conv1", "encoder0.conv2", "up0.conv")
    )
    voxels = 2 * 8 * 12
    assert first.forward.flops == 2 * voxels * 9 * 3 * 4
    assert first.backward.flops == 2 * voxels * 9 * 3 * 4 + voxels * 4  # no dx of the input
    assert second.forward.flops == 2 * voxels * 9 * 4 * 4
    assert second.backward.flops == 2 * (2 * voxels * 9 * 4 * 4) + voxels * 4
    assert up.forward.flops == 2 * (voxels // 4) * 4 * 6 * 4  # every small voxel places a kernel
    assert nodes["down0"].forward.flops == voxels * 4  # each value is compared once


def test_the_twin_is_the_one_that_ran(monkeypatch):
    assert {traced().nodes[0].forward.twin, traced().nodes[0].backward.twin} == {"fast"}
    monkeypatch.setattr(kernels, "DEVICES", {})
    kernels._find_twin.cache_clear()
    trace = traced()
    kernels._find_twin.cache_clear()
    assert {node.forward.twin for node in trace.nodes} == {"reference"}
    assert {node.operation for node in trace.nodes} >= {"norm_relu", "cce_dice_loss"}
    assert "instance_norm" not in {node.operation for node in trace.nodes}  # a part of norm_relu


def arrays_in(value):
    if isinstance(value, DuckArray):
        value = list(vars(value).values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from arrays_in(item)
    elif isinstance(value, np.ndarray) and value.ndim:
        yield value


@pytest.mark.parametrize("options", OPTIONS)
def test_bytes_saved_are_those_of_the_arrays(options):
    model, optimizer = network(**options)
    logits, saved = deepcopy(model).forward(IMAGES, training=True, step=3)
    _, loss_saved = cce_dice_loss_forward(logits, LABELS)
    parameters = {p.value.shape for p in model.named_parameters().values()}
    kept = {id(array): array for array in arrays_in((saved, loss_saved))}
    # the deep copy's parameters are told by their shapes, which no activation has
    total = sum(a.nbytes for a in kept.values() if a.shape not in parameters)
    trace = trace_step(model, optimizer, IMAGES, LABELS, 3)
    assert max(trace.bytes_held()) == total
    assert trace.bytes_held()[len(trace.nodes) - 1] == total  # at the turn


@pytest.mark.parametrize("make", [UNet, AttentionUNet])
def test_saved_arrays_are_free_once_their_first_keeper_has_gone_back(make):
    trace = traced(make)
    outlive = []
    for node in trace.nodes:
        for saved in node.saved:
            if saved.bytes and saved.freed_after is None:
                outlive.append(f"{node.name} {saved.field}")
            elif saved.bytes:
                assert saved.freed_after == node.name
            else:
                assert saved.kept_by
    # the batch, which train_step holds, and what the loss saved
    assert outlive == [
        "encoder0.conv1 x",
        *(f"loss {name}" for name in ("cross_entropy.p", "cross_entropy.labels")),
        *("loss dice.overlap", "loss dice.total"),
    ]
    assert trace.bytes_held()[-1] == sum(
        saved.bytes for node in trace.nodes for saved in node.saved if not saved.freed_after
    )


def test_an_activation_that_is_not_written_yet_is_looked_at_and_only_its_parts_are_kept():
    watcher = _Watcher(network()[0], 8, np.copy)
    x, gamma, beta = IMAGES, *RNG.standard_normal((2, 3)).astype(np.float32)
    lines = np.array([0, 1, 0], np.float32) * np.ones((2, 1, 1, 3, 1), np.float32)
    promise = Pending(x, lines, DropoutSaved(0.0, (0, 0, 0), x.shape))
    norm = norm_relu_forward(x, gamma, beta)[1].norm
    kept = NormReluSaved(norm, promise, None), ReluSaved(promise)
    for begin, (name, arguments, result) in enumerate(
        [
            ("norm_relu_forward", (x, gamma, beta), (promise, kept[0])),
            ("relu_forward", (promise,), (promise.write(), kept[1])),
        ]
    ):
        watcher.hear(kernels.Call(name, "fast", arguments, {}, result, begin, begin))
    first, second = watcher.nodes
    assert np.array_equal(first.result.picture, np.maximum(x, 0))
    assert first.result.mean == pytest.approx(np.maximum(x, 0).mean(), rel=1e-5)
    added = {saved.field: saved.bytes for saved in first.saved}
    assert added["norm.x"] == x.nbytes
    assert (added["y.raw"], added["y.lines"]) == (0, promise.lines.nbytes)
    assert [(saved.field, saved.kept_by) for saved in second.saved] == [
        ("y.raw", first.name),
        ("y.lines", first.name),
    ]
    assert [use.by for use in first.uses] == [second.name]


@pytest.mark.parametrize("make", [UNet, AttentionUNet])
def test_what_is_held_after_each_backward_is_what_was_not_freed_yet(make):
    trace = traced(make)
    kept = [saved for node in trace.nodes for saved in node.saved]
    ahead = [node.name for node in trace.nodes]
    for held in trace.bytes_held()[len(ahead) :]:
        ahead.pop()
        assert held == sum(s.bytes for s in kept if s.freed_after in (None, *ahead))


def test_the_time_that_watching_takes_is_not_the_operations():
    watcher = _Watcher(network()[0], 8, lambda array: None)
    watcher.own_work = [(0.5, 0.9), (1.25, 1.5), (2.0, 3.0)]  # before, and twice within
    call = kernels.Call("relu_forward", "fast", (IMAGES,), {}, (IMAGES, None), 1.0, 5.0)
    assert watcher._pass(call, {}).seconds == 4.0 - 0.25 - 1.0


def test_statistics_are_those_of_the_arrays():
    model, optimizer = network()
    logits, _ = deepcopy(model).forward(IMAGES, training=True, step=3)
    head = by_name(trace_step(model, optimizer, IMAGES, LABELS, 3))["head"]
    y = logits.astype(np.float64)
    assert head.result.mean == pytest.approx(y.mean(), rel=1e-12, abs=1e-15)
    assert head.result.std == pytest.approx(y.std(), rel=1e-6)
    assert head.result.max == np.abs(y).max()
    gradient = model.head.parameters["weight"].grad
    assert head.backward.results["dweight"].max == np.abs(gradient).max()
    assert head.backward.results["dweight"].shape == gradient.shape


@pytest.mark.parametrize("make", [UNet, AttentionUNet])
def test_at_a_skip_the_gradients_of_both_uses_add_up(make):
    trace = traced(make, picture=np.copy)
    twice = [node for node in trace.nodes if len(node.uses) > 1]
    skips = [node for node in twice if node.name.startswith("encoder")]
    assert [node.level for node in skips] == [0, 1]
    for node in twice:
        one, other = (measure.picture for measure in trace.meeting_gradients(node).values())
        assert np.array_equal(node.arriving.picture, one + other)
        assert np.abs(one).max() > 0
        assert np.abs(other).max() > 0
    uses = [(use.by, use.gradient) for use in skips[0].uses]
    assert uses == [("down0", "dx"), ("join0", "dskip" if make is AttentionUNet else "db")]


def test_what_leaves_a_backward_arrives_at_the_one_before():
    trace = traced(picture=np.copy)
    for node, follower in zip(trace.nodes, trace.nodes[1:], strict=False):
        assert node.result.max == np.abs(node.result.picture).max()
        assert node.arriving.max == np.abs(node.arriving.picture).max()
        if len(node.uses) == 1 and follower.operation != "concat":
            [use] = node.uses
            left = follower.backward.results[use.gradient].picture
            assert np.array_equal(left, node.arriving.picture), node.name


def test_the_table_mirrors_forward_and_backward():
    trace = traced()
    lines = str(trace).splitlines()
    assert max(map(len, lines)) <= 100
    heading = next(line for line in lines if "FLOP" in line and "│" in line)
    left, _, right = heading.split("│")
    mirrored = ["freed" if word == "saved" else word for word in left.split()[::-1]]
    assert right.split() == mirrored
    rows = [line.split("│") for line in lines if line.count("│") == 2][1:]
    assert [row[1].split()[0] for row in rows] == [n.name.split(".")[-1] for n in trace.nodes]
    for (left, _, right), node in zip(rows, trace.nodes, strict=True):
        marks = ["•" if each.twin == "fast" else "◦" for each in (node.forward, node.backward)]
        assert [left.split()[0], right.split()[-1]] == marks
        assert float(left.split()[-1]) == pytest.approx(node.result.mean, rel=0.06, abs=1e-30)
        assert float(right.split()[0]) == pytest.approx(node.arriving.mean, rel=0.06, abs=1e-30)
        assert len(left) == 42  # every row's spine stands under the one above


def test_a_row_of_the_table_by_hand():
    def measure(mean, std, largest):
        return Measure((1, 8, 8, 3), "float32", mean, std, largest)

    forward = Pass("fast", 0.0123, 1_230_000, {"y": measure(0.5, 0.25, 2)})
    backward = Pass("reference", 4e-3, 999, {})
    arriving = measure(-1.5e-5, 3e-3, 1234)
    saved = [
        Saved("x", (1, 8, 8, 3), "float32", 768, None, "second"),
        Saved("weight", (3,), "float32", 0, "first.weight"),
    ]
    node = Node("part.first", "conv", 0, [(1, 8, 8, 3)], 3, forward, saved, [], arriving, backward)
    last = Pass("fast", 0.0, 0, {"y": measure(1, 1, 1)})
    second = Node("second", "relu", 0, [(1, 8, 8, 3)], 0, last, [], [], measure(1, 1, 1), last)
    lines = str(Trace(0.25, [node, second], Pass("fast", 0.001, 1_000, {}))).splitlines()
    assert lines[0] == (
        "one training step on 1×8×8×3 · loss 0.2500 · 17.3 ms · 1.23MFLOP · 768B saved at the turn"
    )
    assert " ".join(lines[3].split()) == (
        "ms FLOP saved max std mean│ y │ mean std max freed FLOP ms"
    )
    assert lines[4].strip("─") == " part  8×8 "
    left, spine, right = lines[5].split("│")
    assert left == "•   12.3 1.23M   768      2   0.25     0.5"
    assert spine == "first        3"
    assert right == " -1.5e-5 3.0e-3  1.2e3     –   999  4.00 ◦"
    assert lines[6].split("│")[2].split()[3] == "768"  # what part.first kept, second lets go


def test_json_holds_the_same_and_no_picture():
    trace = traced(picture=np.copy)
    record = json.loads(json.dumps(trace.as_json()))
    assert record["loss"] == trace.loss
    assert [node["name"] for node in record["nodes"]] == [node.name for node in trace.nodes]
    first = record["nodes"][0]
    assert first["forward"]["flops"] == trace.nodes[0].forward.flops
    assert first["forward"]["results"]["y"]["std"] == trace.nodes[0].result.std
    assert "picture" not in json.dumps(record)
