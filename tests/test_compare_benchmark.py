"""The comparison benchmark from end to end, small and short; and what --help does not do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import compare


@pytest.mark.slow
def test_every_network_is_trained_judged_and_compared(tmp_path):
    compare.main(["--quick", "--output", str(tmp_path)])
    results = json.loads((tmp_path / "compare.json").read_text())["results"]
    assert list(results) == ["3d", "2d", "attention", "patches"]
    for name, found in results.items():
        assert len(found["dice_of_each_seed"]) == len(compare.SEEDS)
        apart = found["difference_of_dice"]["pooled_foreground_mean"]
        low, high = apart["interval"]
        assert low <= apart["value"] <= high
        assert name != "3d" or low == high == 0
    assert results["patches"]["settings"]["Patch"] == "16x16x16"
    assert results["attention"]["settings"]["Parameters"] == "342,630"
    assert (tmp_path / "comparison.html").stat().st_size > 50_000


@pytest.mark.parametrize("name", ["compare", "phantom"])
def test_asked_for_help_a_benchmark_trains_nothing(name):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--help"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith(f"usage: {name}.py [-h]")
