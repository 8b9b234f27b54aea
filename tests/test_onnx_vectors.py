"""Every case of the ONNX backend suite that our signatures can express gives ONNX's answer.

Other people's numbers: worked examples from the standard and results recorded from PyTorch. They
are channels first; automatic padding, ceil mode and a wanted output shape are turned into explicit
padding here. Cases we cannot express are counted by reason.
"""

import warnings
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import minibrain.functional as F

onnx = pytest.importorskip("onnx")

MODULES = """
    conv convtranspose maxpool batch_normalization instance_normalization relu sigmoid softmax
    concat softmax_cross_entropy_loss
"""
SEVERAL = "written out in several operators"
GROUPS = "groups"
WEIGHTS = "class weights"

# the numbers of cases in onnx 1.23; other versions may have more
RAN = {
    "Conv": 25,
    "ConvTranspose": 12,
    "MaxPool": 28,
    "BatchNormalization": 9,
    "InstanceNormalization": 3,
    "Relu": 2,
    "Sigmoid": 3,
    "Softmax": 10,
    "Concat": 13,
    "SoftmaxCrossEntropyLoss": 18,
}
LEFT_OUT = {SEVERAL: 54, GROUPS: 10, WEIGHTS: 16}


class Vector(NamedTuple):
    """One operator, its attributes, and the arrays in and out of it."""

    name: str
    operators: list[str]
    attributes: dict
    inputs: list[np.ndarray]
    outputs: list[np.ndarray]

    @property
    def operator(self):
        return self.operators[0]

    @property
    def obstacle(self):
        """Why our signatures cannot express it, or None."""
        if len(self.operators) > 1:
            return SEVERAL
        if self.attributes.get("group", 1) > 1:
            return GROUPS
        if self.operator == "SoftmaxCrossEntropyLoss" and len(self.inputs) > 2:
            return WEIGHTS
        return None


# Reading the vectors


def read_vector(name, model, inputs, outputs):
    """Of inputs, the first ones are given; the others are stored with the model."""
    graph = model.graph
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    fed = [i.name for i in graph.input if i.name not in values]
    values.update(zip(fed, inputs, strict=True))
    node = graph.node[0]
    return Vector(
        name,
        [n.op_type for n in graph.node],
        {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute},
        [values.get(i) for i in node.input],
        list(outputs),
    )


def node_vectors():
    """The cases that the package computes when its modules are imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in MODULES.split():
            import_module(f"onnx.backend.test.case.node.{module}")
    from onnx.backend.test.case.node import _NodeTestCases

    for case in _NodeTestCases:
        if case.model.graph.node:
            yield read_vector(case.name, case.model, *case.data_sets[0])


def stored_vectors(kind):
    """The cases that were recorded from PyTorch."""
    folder = Path(onnx.__file__).parent / "backend/test/data" / kind
    for model in sorted(folder.glob("*/model.onnx")):
        arrays = [
            [
                onnx.numpy_helper.to_array(onnx.load_tensor(str(path)))
                for path in sorted(model.parent.glob(f"test_data_set_0/{way}_*.pb"))
            ]
            for way in ("input", "output")
        ]
        yield read_vector(model.parent.name, onnx.load(str(model)), *arrays)


# ONNX's layout and padding in our words


def channels_last(x):
    return np.moveaxis(x, 1, -1)


def channels_first(x):
    return np.moveaxis(x, -1, 1)


def kernel_last(weight):
    """(A, B, *K) -> (*K, B, A), for convolutions and transposed convolutions alike."""
    return np.moveaxis(weight, [0, 1], [-1, -2])


def window(attributes, kernel):
    """Stride and dilation, one per axis."""
    ones = [1] * len(kernel)
    return attributes.get("strides", ones), attributes.get("dilations", ones)


def split(total, attributes):
    """Both sides of an automatic padding; an odd voxel goes after for SAME_UPPER, else before."""
    small, large = total // 2, total - total // 2
    return (small, large) if attributes["auto_pad"] == b"SAME_UPPER" else (large, small)


def is_automatic(attributes):
    return attributes.get("auto_pad", b"NOTSET").startswith(b"SAME")


def padding_pairs(attributes, size, kernel):
    """(before, after) per axis, for a convolution or a pooling."""
    stride, dilation = window(attributes, kernel)
    pads = attributes.get("pads", [0] * 2 * len(kernel))
    pairs = []
    for axis, n in enumerate(size):
        s, extent = stride[axis], dilation[axis] * (kernel[axis] - 1) + 1
        before, after = pads[axis], pads[axis + len(kernel)]
        if is_automatic(attributes):
            before, after = split(max(0, (-(-n // s) - 1) * s + extent - n), attributes)
        steps, rest = divmod(n + before + after - extent, s)
        if attributes.get("ceil_mode") and rest and (steps + 1) * s < before + n:
            after += s - rest  # room for one more window, which starts inside x
        pairs.append((before, after))
    return tuple(pairs)


def transposed_padding(attributes, size, kernel):
    """Padding pairs and output_padding; a wanted output shape beyond the natural one is extra."""
    stride, dilation = window(attributes, kernel)
    extra = attributes.get("output_padding", [0] * len(kernel))
    wanted = attributes.get("output_shape")
    if is_automatic(attributes):
        wanted = [n * s for n, s in zip(size, stride, strict=True)]
    if wanted is None:
        return padding_pairs(attributes, size, kernel), tuple(extra)
    axes = zip(size, stride, kernel, dilation, extra, wanted, strict=True)
    totals = [(n - 1) * s + d * (k - 1) + 1 + e - w for n, s, k, d, e, w in axes]
    pairs = tuple(split(max(0, t), {"auto_pad": b"SAME_UPPER"} | attributes) for t in totals)
    return pairs, tuple(e + max(0, -t) for e, t in zip(extra, totals, strict=True))


# The operators: (attributes, inputs) -> outputs, without those that we do not return


def run_conv(attributes, x, weight, bias=None):
    x, weight = channels_last(x), kernel_last(weight)
    kernel = weight.shape[:-2]
    stride, dilation = window(attributes, kernel)
    padding = padding_pairs(attributes, x.shape[1:-1], kernel)
    y, _ = F.conv_forward(x, weight, bias, stride=stride, padding=padding, dilation=dilation)
    return [channels_first(y)]


def run_conv_transpose(attributes, x, weight, bias=None):
    x, weight = channels_last(x), kernel_last(weight)
    kernel = weight.shape[:-2]
    stride, dilation = window(attributes, kernel)
    padding, extra = transposed_padding(attributes, x.shape[1:-1], kernel)
    y, _ = F.conv_transpose_forward(
        x, weight, bias, stride=stride, padding=padding, dilation=dilation, output_padding=extra
    )
    return [channels_first(y)]


def run_max_pool(attributes, x):
    x, kernel = channels_last(x).astype(np.float32), attributes["kernel_shape"]
    stride, dilation = window(attributes, kernel)
    padding = padding_pairs(attributes, x.shape[1:-1], kernel)
    y, _ = F.max_pool_forward(x, kernel, stride=stride, padding=padding, dilation=dilation)
    return [channels_first(y)]


def run_batch_norm(attributes, x, gamma, beta, mean, variance):
    training = bool(attributes.get("training_mode", 0))
    y, saved = F.batch_norm_forward(
        channels_last(x),
        gamma,
        beta,
        mean,
        variance,
        training=training,
        eps=attributes.get("epsilon", 1e-5),
    )
    momentum = attributes.get("momentum", 0.9)
    moved = [
        momentum * running + (1 - momentum) * batch.ravel()
        for running, batch in ((mean, saved.mean), (variance, saved.variance))
    ]
    return [channels_first(y), *(moved if training else [])]


def run_instance_norm(attributes, x, gamma, beta):
    eps = attributes.get("epsilon", 1e-5)
    return [channels_first(F.instance_norm_forward(channels_last(x), gamma, beta, eps=eps)[0])]


def run_relu(attributes, x):
    return [F.relu_forward(x)[0]]


def run_sigmoid(attributes, x):
    return [F.sigmoid_forward(x)[0]]


def run_softmax(attributes, x):
    axis = attributes.get("axis", -1)
    return [np.moveaxis(F.softmax_forward(np.moveaxis(x, axis, -1))[0], -1, axis)]


def run_concat(attributes, a, b):
    axis = attributes["axis"]
    y, _ = F.concat_forward(np.moveaxis(a, axis, -1), np.moveaxis(b, axis, -1))
    return [np.moveaxis(y, -1, axis)]


def run_cross_entropy(attributes, logits, labels):
    """Ours is the mean over voxels: a sum is that times their number, "none" one voxel a time."""
    logits = channels_last(logits)
    log_p = channels_first(np.log(F.softmax_forward(logits)[0]))
    kept = labels != attributes.get("ignore_index", -100)
    logits, chosen = logits[kept], labels[kept]
    if attributes["reduction"] == b"none":
        loss = np.zeros(labels.shape)
        pairs = zip(logits[:, None], chosen[:, None], strict=True)
        loss[kept] = [F.cross_entropy_forward(*pair)[0] for pair in pairs]
    else:
        loss = F.cross_entropy_forward(logits, chosen)[0]
        loss *= len(chosen) if attributes["reduction"] == b"sum" else 1
    return [loss, log_p]


OPERATORS = {
    "Conv": run_conv,
    "ConvTranspose": run_conv_transpose,
    "MaxPool": run_max_pool,
    "BatchNormalization": run_batch_norm,
    "InstanceNormalization": run_instance_norm,
    "Relu": run_relu,
    "Sigmoid": run_sigmoid,
    "Softmax": run_softmax,
    "Concat": run_concat,
    "SoftmaxCrossEntropyLoss": run_cross_entropy,
}


def relevant_vectors():
    """All cases of our operators, and those of the same modules written out in smaller ones."""
    yield from node_vectors()
    for kind in ("pytorch-converted", "pytorch-operator"):
        yield from (v for v in stored_vectors(kind) if OPERATORS.keys() & set(v.operators))


VECTORS = list(relevant_vectors())
EXPRESSIBLE = [vector for vector in VECTORS if vector.obstacle is None]


@pytest.mark.parametrize("vector", EXPRESSIBLE, ids=lambda vector: vector.name)
def test_onnx(vector):
    run = OPERATORS[vector.operator]
    ours = run(vector.attributes, *vector.inputs)
    for actual, expected in zip(ours, vector.outputs, strict=False):
        assert actual.shape == expected.shape
        scale = np.abs(expected).max()
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6 * scale)


def test_enough_cases_run_and_every_other_one_is_counted():
    ran = Counter(vector.operator for vector in EXPRESSIBLE)
    assert all(ran[operator] >= least for operator, least in RAN.items()), ran
    assert ran["Conv"] + ran["ConvTranspose"] + ran["MaxPool"] >= 64
    left_out = Counter(vector.obstacle for vector in VECTORS if vector.obstacle)
    assert left_out.keys() <= LEFT_OUT.keys()
    if onnx.__version__.startswith("1.23."):
        assert ran == RAN
        assert left_out == LEFT_OUT
