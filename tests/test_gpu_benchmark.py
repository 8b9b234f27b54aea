"""The GPU benchmark's own logic, at toy size on the CPU: its first run on a device must not be its
first run at all."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu, gpu_checks, gpu_times
from benchmarks.gpu_setting import CONFIGURATIONS, PRECISIONS, Setting
from benchmarks.gpu_table import markdown
from minibrain.arrays import precision_dtype

ROOT = Path(__file__).parents[1]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_smoke_run_goes_through_every_section(tmp_path):
    pytest.importorskip("torch")
    result = run("--smoke", "--output", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = tmp_path.glob("smoke-*.json")
    results = json.loads(path.read_text())["results"]
    assert len(results) == 15
    assert not any("error" in section or section.get("wrong") for section in results.values())
    assert json.loads(path.read_text())["fastest"]["step_ratio"] > 0
    table = path.with_suffix(".md").read_text()
    assert "the figures mean nothing" in table
    assert table.count("| right |") == 15


def test_what_matters_most_comes_first():
    names = list(gpu.sections(Setting.of("full")))
    first_rival = next(i for i, name in enumerate(names) if "PyTorch" in name)
    assert all("PyTorch" not in name for name in names[:first_rival])
    assert {f"step minibrain {precision}" for precision in PRECISIONS} < {*names[:first_rival]}
    assert {f"step PyTorch {rival.name}" for rival in CONFIGURATIONS} < {*names[first_rival:]}


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(["torch", "nibabel", "hypothesis", "pytest"]))
from benchmarks import gpu, gpu_checks, gpu_table, gpu_times
"""


def test_our_sections_need_neither_pytorch_nor_what_reads_images():
    subprocess.run([sys.executable, "-c", WITHOUT], cwd=ROOT, check=True)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_layers_are_timed_with_what_kernels_take(monkeypatch, precision):
    taken = []
    monkeypatch.setattr(gpu_times, "seconds_per_call", lambda _, call: taken.append(call()) or [0])
    gpu_times._time_convolution(Setting.of("smoke"), precision, (1, 4, 4, 4, 16), 16)
    (y, saved), (dx, dweight, _) = taken
    assert y.dtype == dx.dtype == precision_dtype(precision)
    assert saved.weight.dtype == dweight.dtype == np.float32


def test_a_section_that_takes_too_long_says_how_far_it_came(monkeypatch):
    def run(command, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout, stderr=b"conv 2x3\nrelu 2x3\n")

    monkeypatch.setattr(subprocess, "run", run)
    found = gpu.run_section("operations bf16", "smoke", 7)
    assert found["error"].endswith("relu 2x3\ntook more than 7 s")


def test_an_operation_that_fails_does_not_cost_the_others(monkeypatch):
    monkeypatch.setattr(gpu_checks.F, "relu_backward", lambda *_: 1 / 0)
    found = gpu_checks.operations(Setting.of("smoke"), "fp32")
    assert len(found["wrong"]) == 1
    assert found["wrong"][0].startswith("relu 2x13x10x17x16: ZeroDivisionError")
    assert len(found["errors"]) == 18


def test_without_both_engines_nothing_is_compared():
    ours = {"step minibrain bf16": {"milliseconds": [10, 11], "peak_GB": 2}}
    failed = {"step PyTorch a": {"error": "out of memory"}}
    theirs = {"step PyTorch b": {"milliseconds": [30, 31], "peak_GB": 8}}
    assert gpu.fastest(ours | failed) == {}
    found = gpu.fastest(ours | failed | theirs)
    assert (found["step_ratio"], found["memory_ratio"]) == (3, 0.25)
    assert found["PyTorch"] == "step PyTorch b"
    content = {"mode": "full", "results": ours | failed | theirs, "fastest": found}
    table = markdown(content)
    assert "| PyTorch a | failed | out of memory |" in table
    assert "**3.00**" in table


@pytest.mark.skipif("cupy" in sys.modules, reason="a GPU may be there")
def test_without_a_gpu_it_says_so_and_exits_with_2():
    pytest.importorskip("torch")
    result = run()
    if result.returncode != 2:
        pytest.skip("there is a GPU")
    assert result.stderr.startswith("error: device cuda is not available")
    assert len(result.stderr.splitlines()) == 1
