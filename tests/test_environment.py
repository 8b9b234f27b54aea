"""What results depend on in their last bits is written down."""

import shutil

import numpy as np
import pytest

from minibrain.runs import environment
from minibrain.runs.environment import describe_environment


def test_it_names_versions_and_hardware_and_is_the_same_twice():
    found = describe_environment("cpu")
    assert found == describe_environment("cpu")
    assert found["NumPy"] == np.__version__
    assert "threads" in found["BLAS"]
    assert all(isinstance(value, str) and value for value in found.values())


@pytest.mark.parametrize("code", ["cpu/conv.py", "cuda/conv.cu", "cuda/common.cuh"])
def test_another_line_of_code_is_another_minibrain(tmp_path, monkeypatch, code):
    before = describe_environment("cpu")["minibrain"]
    monkeypatch.setattr(
        environment, "PACKAGE", shutil.copytree(environment.PACKAGE, tmp_path / "minibrain")
    )
    assert describe_environment("cpu")["minibrain"] == before
    with open(tmp_path / "minibrain" / "kernels" / code, "a") as file:
        file.write("\n")
    assert describe_environment("cpu")["minibrain"] != before
