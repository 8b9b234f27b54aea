"""The examples for reading run, and say what they promise."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from minibrain.models import UNet
from minibrain.study.gradcheck import gradcheck

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, capsys):
    runpy.run_path(EXAMPLES / name, run_name="__main__")
    return capsys.readouterr().out


def test_backprop_by_hand_learns_and_agrees_with_the_library(capsys):
    out = run("backprop_by_hand.py", capsys)
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", out)]
    assert losses[0] > 1.0  # near log 3, before anything is learned
    assert losses[-1] < 0.1
    assert float(re.search(r"in 32 arrays: (\S+)", out)[1]) < 1e-12
    rows = [re.sub(r"[^·o#]", "", line) for line in out.splitlines() if line.startswith("    ")]
    picture = np.array([list(row) for row in rows])
    truth, said = picture[:, :16], picture[:, 16:]
    assert truth.shape == said.shape == (16, 16)
    assert set(truth.ravel()) == set("·o#")
    assert (truth == said).mean() > 0.95


def test_backprop_by_hand_is_one_lecture():
    assert len((EXAMPLES / "backprop_by_hand.py").read_text().splitlines()) < 150


def test_its_gradients_are_the_slopes_of_its_own_loss():
    """Agreeing with the library could also mean to be wrong in the same way."""
    example = runpy.run_path(EXAMPLES / "backprop_by_hand.py")
    rng = np.random.default_rng(0)
    image, labels = example["disc_and_square"](rng)
    network = UNet(2, 1, 3, channels=(2, 4), dtype=np.float64)
    values = {
        name: rng.standard_normal(q.value.shape) for name, q in network.named_parameters().items()
    }

    def forward(image, *values):
        p = {}
        for name, value in zip(names, values, strict=True):
            p.setdefault(name.rpartition(".")[0], []).append(value)
        loss, _, _, dimage, g = example["forward_and_backward"](image, labels, p)
        return loss, (dimage, *(gradient for name in p for gradient in g[name]))

    names = list(values)
    checks = gradcheck(
        forward, lambda dloss, saved: [dloss * g for g in saved], {"image": image} | values
    )
    assert len(checks) == 31
    assert all(check.passed for check in checks), checks


def test_conv_arithmetic_draws_counts_and_agrees_with_itself(capsys):
    out = run("conv_arithmetic.py", capsys)
    assert "(7 + 2·0 − 3)//1 + 1 = 5" in out
    assert "(5 − 1)·1 + 3 − 2·0 + 0 = 7" in out
    for block in out.split("\nn = ")[1:]:
        placed = [line[8:] for line in block.splitlines() if "y[" in line]
        width = max(map(len, placed))
        stacked = np.array([list(line.ljust(width)) for line in placed]) == "■"
        drawn = stacked.sum(axis=0)[::2]
        x = re.search(r"x  ((?:[○●] ?)+)", block)[1].split()
        inside = [count for count, voxel in zip(drawn, x, strict=True) if voxel == "●"]
        assert inside == [int(c) for c in re.search(r"count +([\d ]+)", block)[1].split()]
        forth, back = re.findall(r"⟩ += (-?[\d.]+)", block)
        assert float(forth) == pytest.approx(float(back), abs=1e-11)


def test_a_checkerboard_appears_where_the_stride_does_not_divide_the_kernel(capsys):
    three, four, two = run("conv_arithmetic.py", capsys).split("stride 2: ")[1:]
    inside = [
        {mark for line in part.splitlines()[4:-4] for mark in line.strip()[6:-6]}
        for part in (three, four, two)
    ]
    assert inside == [set("░▒█"), set("█"), set("░")]
