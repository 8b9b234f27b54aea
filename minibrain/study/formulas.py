"""What each operation computes on the way there and on the way back, a line each."""

from typing import NamedTuple


class Formula(NamedTuple):
    title: str
    forward: tuple[str, ...]
    backward: tuple[str, ...]
    idea: str  # why backward is what it is


_CONV_IDEA = (
    "x, w and y meet in products, so each gradient is the product of the other two, summed over "
    "what the gradient does not depend on. dx puts the kernel back where it was taken from: the "
    "adjoint of the convolution, which is the transposed convolution."
)
_NORM = ("x̂ = (x − mean) / √(variance + ε)", "y = γ · x̂ + β")
_NORM_BACK = (
    "dβ = Σ dy      dγ = Σ dy · x̂      dx̂ = γ · dy",
    "dx = (dx̂ − mean(dx̂) − x̂ · mean(dx̂ · x̂)) / √(variance + ε)",
)
_NORM_IDEA = (
    "A shift or a scaling of x changes nothing in x̂. So dx has no part along a constant and none "
    "along x̂: backward takes both out."
)

FORMULAS = {
    "conv": Formula(
        "convolution",
        ("y[p,o] = b[o] + Σ_k,c  w[k,c,o] · x[s·p + d·k − pad, c]",),
        (
            "dx[s·p + d·k − pad, c] += Σ_o  w[k,c,o] · dy[p,o]",
            "dw[k,c,o] = Σ_p  x[s·p + d·k − pad, c] · dy[p,o]",
            "db[o] = Σ_p  dy[p,o]",
        ),
        _CONV_IDEA,
    ),
    "conv_transpose": Formula(
        "transposed convolution",
        ("y[s·p + d·k − pad, o] = b[o] + Σ_p,k,c  w[k,o,c] · x[p,c]",),
        (
            "dx[p,c] = Σ_k,o  w[k,o,c] · dy[s·p + d·k − pad, o]",
            "dw[k,o,c] = Σ_p  dy[s·p + d·k − pad, o] · x[p,c]",
            "db[o] = Σ dy[·,o]",
        ),
        "Forward is the backward of a convolution, so its backward is a convolution.",
    ),
    "norm_relu": Formula(
        "instance norm, ReLU",
        (*_NORM, "y ← max(y, 0), then dropout where there is a rate"),
        ("dy ← dy where y > 0, else 0", *_NORM_BACK),
        _NORM_IDEA + " mean is over the voxels of one sample and channel.",
    ),
    "instance_norm": Formula("instance norm", _NORM, _NORM_BACK, _NORM_IDEA),
    "batch_norm": Formula("batch norm", _NORM, _NORM_BACK, _NORM_IDEA),
    "relu": Formula(
        "ReLU",
        ("y = max(x, 0)",),
        ("dx = dy where y > 0, else 0",),
        "What was cut off could not have changed the loss: its gradient is 0.",
    ),
    "dropout": Formula(
        "dropout",
        ("y = x · mask / (1 − rate)",),
        ("dx = dy · mask / (1 − rate)",),
        "The mask is not saved: it is computed again from its key (seed, step, layer).",
    ),
    "max_pool": Formula(
        "max-pool",
        ("y[p] = max_k  x[2·p + k]",),
        ("dx[2·p + k] = dy[p] if tap k won, else 0",),
        "Only the winner touched the loss, so the winner's number is all there is to save.",
    ),
    "upsample": Formula(
        "nearest upsampling",
        ("y[p] = x[p // 2]",),
        ("dx[q] = Σ dy over the 2 × 2 (× 2) copies of q",),
        "Used many times, a value gets the sum of the gradients of all its uses.",
    ),
    "concat": Formula(
        "concatenation with the skip",
        ("y = [a, b] along the channels",),
        ("da = dy[first channels]      db = dy[the others]",),
        "Nothing is computed: the gradient is cut where the arrays were joined. db goes across to "
        "the encoder.",
    ),
    "attention_gate": Formula(
        "attention gate",
        (
            "h = max(W_s · skip + W_g · signal + b, 0)",
            "a = 1 / (1 + exp(−(w · h + c)))      one number a voxel",
            "y = a · skip",
        ),
        (
            "da = Σ_c  dy[c] · skip[c]      then back through sigmoid, ReLU and the convolutions",
            "dskip = a · dy + what came through h",
            "dsignal = what came through h",
        ),
        "The skip is used twice, as what is let through and as what is judged: two gradients add.",
    ),
    "sigmoid": Formula(
        "sigmoid",
        ("y = 1 / (1 + exp(−x))",),
        ("dx = dy · y · (1 − y)",),
        "The derivative needs y alone: x need not be kept.",
    ),
    "cce_dice_loss": Formula(
        "cross-entropy and soft Dice",
        (
            "p = softmax(z)      t = one-hot label",
            "CCE = −mean log p[label]",
            "Dice = 1 − mean_c (2 Σ p·t + 1) / (Σ p + Σ t + 1)",
            "loss = ½ CCE + ½ Dice",
        ),
        (
            "CCE:  dz = (p − t) / voxels",
            "Dice:  dp = −(2t/total − overlap/total²) / classes",
            "Dice:  dz = p · (dp − Σ_j dp[j] · p[j])",
            "dz = ½ dz of CCE + ½ dz of Dice",
        ),
        "Here the way back begins, with dloss = 1. The logits were used twice: two gradients add.",
    ),
}
