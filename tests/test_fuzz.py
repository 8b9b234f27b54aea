"""Hostile files found by following the code's branches, where atheris is installed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minibrain.data.nifti import write_image
from minibrain.models import UNet
from minibrain.optimizers import Adam
from minibrain.runs import checkpoint

RUNS = 20_000


def a_nifti(path):
    write_image(path, np.arange(60, dtype=np.int16).reshape(5, 4, 3), np.eye(4))


def a_dataset(path):
    content = {"modality": {"0": "FLAIR"}, "labels": {"0": "air", "1": "edema"}}
    entry = {"image": "./imagesTr/A.nii.gz", "label": "./labelsTr/A.nii.gz"}
    path.write_text(json.dumps(content | {"training": [entry], "test": []}))


def a_checkpoint(path):
    network = UNet(1, 1, 2, channels=(1, 1), norm="none", up="nearest")
    checkpoint.save(path, network, Adam(network.named_parameters()), {"progress": {}})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "name", "make"),
    [
        ("nifti", "seed.nii", a_nifti),
        ("dataset", "seed.json", a_dataset),
        ("checkpoint", "seed.npz", a_checkpoint),
    ],
)
def test_no_input_raises_a_foreign_exception(target, name, make, tmp_path):
    pytest.importorskip("atheris")
    make(tmp_path / name)
    result = subprocess.run(
        [sys.executable, Path(__file__).with_name("fuzz.py"), target, tmp_path / name, str(RUNS)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"Done {RUNS} runs" in result.stderr
