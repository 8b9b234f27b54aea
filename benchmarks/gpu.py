"""Is minibrain right on this machine's GPU, and how fast beside PyTorch?

python -m benchmarks.gpu             everything, under nine minutes
python -m benchmarks.gpu --quick     under two minutes
python -m benchmarks.gpu --smoke     the same logic at toy size on the CPU: no figure means anything

Every section runs in a process of its own, so that an illegal access of one spoils no other, none
leaves memory behind, and PyTorch's libraries are not there when ours are checked. What matters most
comes first, and what is known is saved after each section, to benchmarks/results/. Needs NumPy,
CuPy and PyTorch; without a GPU it says so and exits with 2. The exit code is 1 if a section failed,
found something wrong, or was left out because the time was up.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib import import_module
from pathlib import Path

from benchmarks.gpu_setting import CONFIGURATIONS, PRECISIONS, Setting
from benchmarks.gpu_table import markdown
from benchmarks.results_file import FOLDER, machine, write_json
from minibrain.arrays import find_device
from minibrain.errors import InputError

# seconds; sections that come later are left out, and one that takes longer than LIMIT is ended
BUDGET = {"full": 520, "quick": 110, "smoke": 540}
LIMIT = {"full": 120, "quick": 60, "smoke": 540}


def sections(setting: Setting) -> dict[str, tuple[str, ...]]:
    """Module, function and further argument of every section, what matters most first."""
    checks = {
        f"{name} {precision}": ("gpu_checks", name, precision)
        for name in ("operations", "network", "identical")
        for precision in PRECISIONS
    }
    ours = {f"step minibrain {p}": ("gpu_times", "step", p) for p in PRECISIONS}
    names = [rival.name for rival in CONFIGURATIONS[: setting.rivals]]
    theirs = [(f"step PyTorch {name}", ("gpu_rivals", "step", name)) for name in names]
    return (
        {"environment": ("gpu_rivals", "environment"), **checks, **ours, **dict(theirs[:4])}
        | {f"curve {precision}": ("gpu_checks", "curve", precision) for precision in PRECISIONS}
        | {"layers": ("gpu_times", "layers"), "ceilings": ("gpu_rivals", "ceilings")}
        | dict(theirs[4:])
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    modes = parser.add_mutually_exclusive_group()
    for mode in ("quick", "smoke"):
        modes.add_argument(f"--{mode}", dest="mode", action="store_const", const=mode)
    parser.add_argument("--output", type=Path, default=FOLDER, metavar="FOLDER")
    parser.add_argument("--section", help=argparse.SUPPRESS)  # what a child process is told
    options = parser.parse_args()
    mode = options.mode or "full"
    if options.section:
        setting = Setting.of(mode)
        module, function, *arguments = sections(setting)[options.section]
        result = getattr(import_module(f"benchmarks.{module}"), function)(setting, *arguments)
        options.output.write_text(json.dumps(result))
        return 0
    try:
        find_device("cpu" if mode == "smoke" else "cuda")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    return run_all(mode, options.output)


def run_all(mode: str, folder: Path) -> int:
    """Run section after section; returns the exit code."""
    begin, results, wrong = time.monotonic(), {}, []
    path = None
    for name in sections(Setting.of(mode)):
        left = BUDGET[mode] - (time.monotonic() - begin)
        results[name] = run_section(name, mode, min(left, LIMIT[mode]))
        seconds = time.monotonic() - begin
        failed = "error" in results[name] or results[name].get("wrong")
        wrong += [name] if failed else []
        print(f"{seconds:6.1f} s  {name}: {results[name].get('error') or failed or 'right'}")
        path = path or folder / f"{_slug(results[name], mode)}-{date.today().isoformat()}.json"
        content = {"mode": mode, "machine": machine(), "seconds": seconds, "results": results}
        content["fastest"] = fastest(results)
        write_json(path, content)
        table = markdown(content)
        path.with_suffix(".md").write_text(table)
    print(f"\n{table}\nwritten to {path}")
    return 1 if wrong else 0


def run_section(name: str, mode: str, seconds: float) -> dict:
    """The result of one section's process, or {"error": why there is none}."""
    if seconds < 5:
        return {"error": "left out: no time"}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.gpu", "--section", name, "--output", output]
        command += [] if mode == "full" else [f"--{mode}"]
        try:
            process = subprocess.run(
                command,
                timeout=seconds,
                stderr=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[1],
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
        except subprocess.TimeoutExpired as error:
            reached = (error.stderr or b"").decode(errors="replace").strip()[-500:]
            return {"error": f"{reached}\ntook more than {seconds:.0f} s".strip()}
        if not output.exists():
            return {"error": process.stderr.strip()[-2000:] or f"exit code {process.returncode}"}
        return json.loads(output.read_text())


def fastest(results: dict) -> dict:
    """Each engine's fastest step, and how they compare, once both have one."""
    found = {}
    for engine in ("minibrain", "PyTorch"):
        done = {
            name: result
            for name, result in results.items()
            if name.startswith(f"step {engine}") and "milliseconds" in result
        }
        if not done:
            return {}
        found[engine] = min(done, key=lambda name: done[name]["milliseconds"][0])
    ours, theirs = (results[name] for name in found.values())
    found["step_ratio"] = theirs["milliseconds"][0] / ours["milliseconds"][0]
    if ours["peak_GB"]:
        found["memory_ratio"] = ours["peak_GB"] / theirs["peak_GB"]
    return found


def _slug(environment: dict, mode: str) -> str:
    """The device's name for a file; the smoke mode's results are no device's."""
    name = "smoke" if mode == "smoke" else environment.get("gpu", "gpu")
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


if __name__ == "__main__":
    sys.exit(main())
