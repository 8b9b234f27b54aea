"""The mathematics: every operation as a pair of pure functions.

`y, saved = op_forward(...)` computes, `op_backward(dy, saved)` turns the gradient of y into the
gradients of what went in, in the same order. Arrays are channels last, (N, *S, C), with one, two
or three spatial axes, on NumPy or CuPy. Parameters and inputs in float64 compute in float64.
`docs/guide` derives every backward.
"""

from minibrain.functional.activation import (
    dropout_backward,
    dropout_forward,
    relu_backward,
    relu_forward,
    sigmoid_backward,
    sigmoid_forward,
    softmax_backward,
    softmax_forward,
)
from minibrain.functional.attention import attention_gate_backward, attention_gate_forward
from minibrain.functional.conv import (
    conv_backward,
    conv_forward,
    conv_transpose_backward,
    conv_transpose_forward,
)
from minibrain.functional.fused import norm_relu_backward, norm_relu_forward
from minibrain.functional.loss import (
    cce_dice_loss_backward,
    cce_dice_loss_forward,
    cross_entropy_backward,
    cross_entropy_forward,
    dice_loss_backward,
    dice_loss_forward,
)
from minibrain.functional.normalization import (
    batch_norm_backward,
    batch_norm_forward,
    instance_norm_backward,
    instance_norm_forward,
)
from minibrain.functional.pooling import (
    concat_backward,
    concat_forward,
    max_pool_backward,
    max_pool_forward,
    upsample_backward,
    upsample_forward,
)

__all__ = [
    "attention_gate_backward",
    "attention_gate_forward",
    "batch_norm_backward",
    "batch_norm_forward",
    "cce_dice_loss_backward",
    "cce_dice_loss_forward",
    "concat_backward",
    "concat_forward",
    "conv_backward",
    "conv_forward",
    "conv_transpose_backward",
    "conv_transpose_forward",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "dice_loss_backward",
    "dice_loss_forward",
    "dropout_backward",
    "dropout_forward",
    "instance_norm_backward",
    "instance_norm_forward",
    "max_pool_backward",
    "max_pool_forward",
    "norm_relu_backward",
    "norm_relu_forward",
    "relu_backward",
    "relu_forward",
    "sigmoid_backward",
    "sigmoid_forward",
    "softmax_backward",
    "softmax_forward",
    "upsample_backward",
    "upsample_forward",
]
