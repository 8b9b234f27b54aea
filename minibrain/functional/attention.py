"""The additive attention gate of a skip connection."""

from minibrain.arrays import like, require_float, widened
from minibrain.functional.activation import (
    relu_backward,
    relu_forward,
    sigmoid_backward,
    sigmoid_forward,
)
from minibrain.functional.conv import conv_backward, conv_forward
from minibrain.kernels import fast_twin
from minibrain.saved import AttentionGateSaved


@fast_twin
def attention_gate_forward(
    skip, signal, skip_weight, signal_weight, bias, score_weight, score_bias
):
    """Scale every voxel of a skip connection by how much the signal asks for it, from 0 to 1.

    score = score_bias + score_weight · relu(skip_weight · skip + signal_weight · signal + bias)
    y     = sigmoid(score) · skip

    Parameters
    ----------
    skip : (N, *S, C) float array, what the encoder saw
    signal : (N, *S, G), what is known from below, at the skip's size already: so the scores, unlike
        the paper's, need no resampling
    skip_weight, signal_weight, bias : (*1, C, F), (*1, G, F), (F,), of 1^n convolutions
    score_weight, score_bias : (*1, F, 1), (1,)

    Returns
    -------
    y : (N, *S, C)
    saved : AttentionGateSaved

    Raises
    ------
    ValueError : not floats, or ranks, sizes or channel counts differ

    References
    ----------
    Oktay et al., arXiv:1804.03999
    """
    if skip.shape[:-1] != signal.shape[:-1]:
        raise ValueError(
            f"skip and signal must agree in all but their channels, got {skip.shape}, "
            f"{signal.shape}"
        )
    point, features = (1,) * (skip.ndim - 2), skip_weight.shape[-1:]
    require_float("skip_weight", skip_weight, (*point, skip.shape[-1], *features))
    require_float("signal_weight", signal_weight, (*point, signal.shape[-1], *features))
    require_float("bias", bias, features)
    require_float("score_weight", score_weight, (*point, *features, 1))
    require_float("score_bias", score_bias, (1,))
    from_skip, skip_saved = conv_forward(skip, skip_weight)
    from_signal, signal_saved = conv_forward(signal, signal_weight, bias)
    hidden, relu_saved = relu_forward(from_skip + from_signal)
    score, score_saved = conv_forward(hidden, score_weight, score_bias)
    attention, sigmoid_saved = sigmoid_forward(score)
    saved = AttentionGateSaved(skip_saved, signal_saved, relu_saved, score_saved, sigmoid_saved)
    return attention * skip, saved


@fast_twin
def attention_gate_backward(dy, saved: AttentionGateSaved):
    """Gradients of attention_gate_forward, in the order of what went in."""
    skip, attention = saved.skip.x, saved.sigmoid.y
    require_float("dy", dy, skip.shape)
    dattention = like((widened(dy) * skip).sum(axis=-1, keepdims=True), dy)
    dscore = sigmoid_backward(dattention, saved.sigmoid)
    dhidden, dscore_weight, dscore_bias = conv_backward(dscore, saved.score)
    dsum = relu_backward(dhidden, saved.relu)
    dsignal, dsignal_weight, dbias = conv_backward(dsum, saved.signal)
    dskip, dskip_weight, _ = conv_backward(dsum, saved.skip)
    dskip = dskip + attention * dy  # the skip was used twice: its gradients add
    return dskip, dsignal, dskip_weight, dsignal_weight, dbias, dscore_weight, dscore_bias
