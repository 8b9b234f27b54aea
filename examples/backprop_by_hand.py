"""Backpropagation through a U-Net, with every line of the arithmetic in this file.

`python examples/backprop_by_hand.py` learns in seconds to tell discs from squares in noise:

    image ▸ encoder ───────────── skip ─────────────▸ decoder ▸ head ▸ logits
               └▸ pool ▸ bottleneck ▸ transposed conv ───┘

Images are (height, width, channels). da is the gradient of the loss with respect to a.
At the end minibrain's own U-Net, which shares the weights, does the same for comparison.
"""

import numpy as np

from minibrain.models import UNet


def windows(x, weight):
    """What lies under the kernel at every pixel, (h, w, c, i, j); there are zeros around x."""
    padded = np.pad(x, [(len(weight) // 2,) * 2] * 2 + [(0, 0)])
    return np.lib.stride_tricks.sliding_window_view(padded, weight.shape[:2], axis=(0, 1))


def conv(x, weight, bias):
    """y[p] = bias + Σ_k x[p + k − 1] · weight[k]."""
    return bias + np.einsum("hwcij,ijco->hwo", windows(x, weight), weight)


def conv_backward(dy, x, weight):
    """x[q] went into y[q − k + 1] through weight[k]: dx is dy under the kernel turned round."""
    dx = conv(dy, weight[::-1, ::-1].swapaxes(2, 3), 0)
    return dx, (np.einsum("hwcij,hwo->ijco", windows(x, weight), dy), dy.sum((0, 1)))


def up(x, weight, bias):
    """Transposed convolution: every x[p] places a 2×2 kernel, y[2p + k] = bias + x[p]·weight[k]."""
    y = np.einsum("hwc,ijoc->hiwjo", x, weight)
    return bias + y.reshape(2 * x.shape[0], 2 * x.shape[1], -1)


def up_backward(dy, x, weight):
    """The same sum over other letters: a convolution of stride 2."""
    dy = dy.reshape(x.shape[0], 2, x.shape[1], 2, -1)
    dx = np.einsum("hiwjo,ijoc->hwc", dy, weight)
    return dx, (np.einsum("hiwjo,hwc->ijoc", dy, x), dy.sum((0, 1, 2, 3)))


def norm_relu(x, gamma, beta):
    """x̂ = (x − mean) / std and y = max(γ·x̂ + β, 0), for each channel over all pixels."""
    std = np.sqrt(x.var((0, 1)) + 1e-5)
    xhat = (x - x.mean((0, 1))) / std
    y = np.maximum(gamma * xhat + beta, 0)
    return y, (xhat, std, y > 0, gamma)


def norm_relu_backward(dy, xhat, std, passed, gamma):
    """mean and std see every x: they take out of dx what a shift or scaling of x would do."""
    dy = dy * passed
    dxhat = dy * gamma
    dx = (dxhat - dxhat.mean((0, 1)) - xhat * (dxhat * xhat).mean((0, 1))) / std
    return dx, ((dy * xhat).sum((0, 1)), dy.sum((0, 1)))


def pool(x):
    """The largest of 2×2 pixels."""
    return x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, -1).max((1, 3))


def pool_backward(dy, x, y):
    """The winner takes the gradient. Zeros may tie, but their ReLU lets nothing through."""
    square = np.ones((2, 2, 1))
    return np.kron(dy, square) * (x == np.kron(y, square))


def block(x, p, name):
    """Convolution, norm, ReLU, and all three again."""
    x1, kept1 = norm_relu(conv(x, *p[f"{name}.conv1"]), *p[f"{name}.norm1"])
    x2, kept2 = norm_relu(conv(x1, *p[f"{name}.conv2"]), *p[f"{name}.norm2"])
    return x2, (x, kept1, x1, kept2)


def block_backward(dx2, saved, p, g, name):
    x, kept1, x1, kept2 = saved
    dx2, g[f"{name}.norm2"] = norm_relu_backward(dx2, *kept2)
    dx1, g[f"{name}.conv2"] = conv_backward(dx2, x1, p[f"{name}.conv2"][0])
    dx1, g[f"{name}.norm1"] = norm_relu_backward(dx1, *kept1)
    dx, g[f"{name}.conv1"] = conv_backward(dx1, x, p[f"{name}.conv1"][0])
    return dx


def forward_and_backward(image, labels, p):
    """The U-Net down and up again, the loss, and the same road backwards, line by line."""
    skip, encoder = block(image, p, "encoder0")
    half = pool(skip)
    deep, bottleneck = block(half, p, "bottleneck")
    raised, norm = norm_relu(up(deep, *p["up0.conv"]), *p["up0.norm"])
    joined = np.concatenate([raised, skip], axis=-1)
    last, decoder = block(joined, p, "decoder0")
    logits = conv(last, *p["head"])
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))  # log of the softmax
    truth = np.eye(logits.shape[-1])[labels]
    loss = -(truth * log_p).sum(-1).mean()  # cross-entropy
    dlogits = (np.exp(log_p) - truth) / labels.size

    g = {}
    dlast, g["head"] = conv_backward(dlogits, last, p["head"][0])
    djoined = block_backward(dlast, decoder, p, g, "decoder0")
    draised, dskip = np.split(djoined, [raised.shape[-1]], axis=-1)
    draised, g["up0.norm"] = norm_relu_backward(draised, *norm)
    ddeep, g["up0.conv"] = up_backward(draised, deep, p["up0.conv"][0])
    dhalf = block_backward(ddeep, bottleneck, p, g, "bottleneck")
    dskip = dskip + pool_backward(dhalf, skip, half)  # used twice: the two gradients add
    dimage = block_backward(dskip, encoder, p, g, "encoder0")
    return loss, logits, dlogits, dimage, g


def disc_and_square(rng):
    """A noisy image (16, 16, 1) and its labels: 1 in a disc, 2 in a square."""
    labels = np.zeros((16, 16), int)
    for label, norm in ((1, 2), (2, np.inf)):
        away = np.mgrid[:16, :16] - rng.integers(3, 13, (2, 1, 1))
        labels[np.linalg.norm(away, norm, axis=0) < 3.4] = label
    return (labels[..., None] > 0) + rng.normal(0, 0.2, (16, 16, 1)), labels


if __name__ == "__main__":
    network, p = UNet(2, 1, 3, channels=(8, 16), dtype=np.float64), {}
    for name, parameter in network.named_parameters().items():
        p.setdefault(name.rpartition(".")[0], []).append(parameter.value)  # shared, not copied
    rng = np.random.default_rng(0)
    for step in range(301):
        image, labels = disc_and_square(rng)
        loss, logits, dlogits, dimage, g = forward_and_backward(image, labels, p)
        if step % 50 == 0:
            print(f"step {step:3}   loss {loss:.4f}")
        for name in p:
            for value, gradient in zip(p[name], g[name], strict=True):
                value -= 0.3 * gradient

    image, labels = disc_and_square(rng)
    _, logits, dlogits, dimage, g = forward_and_backward(image, labels, p)
    print("\nan image it has not seen: the truth, and what it says")
    for row in np.array(list("·o#"))[np.hstack([labels, logits.argmax(-1)])]:
        print("   ", *row[:16], "   ", *row[16:])
    theirs, saved = network.forward(image[None], training=True)
    theirs = [theirs[0], network.backward(dlogits[None], saved)[0]]
    theirs += [parameter.grad for parameter in network.named_parameters().values()]
    ours = [logits, dimage, *(gradient for name in p for gradient in g[name])]
    worst = max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True))
    print(f"\nlargest difference from minibrain.models.UNet in {len(ours)} arrays: {worst:.1e}")
