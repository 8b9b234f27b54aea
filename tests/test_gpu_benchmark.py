"""The GPU benchmark's own logic, at toy size on the CPU: its first run on a device must not be its
first run at all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert len(results) == 8
    assert not any("error" in section or section.get("wrong") for section in results.values())
    assert results["step"]["step_ratio"] > 0
    table = path.with_suffix(".md").read_text()
    assert "the figures mean nothing" in table
    assert table.count("| right |") == 8


@pytest.mark.skipif("cupy" in sys.modules, reason="a GPU may be there")
def test_without_a_gpu_it_says_so_and_exits_with_2():
    pytest.importorskip("torch")
    result = run()
    if result.returncode != 2:
        pytest.skip("there is a GPU")
    assert result.stderr.startswith("error: device cuda is not available")
    assert len(result.stderr.splitlines()) == 1
