"""A training step, inference and every convolution on the CPU, beside PyTorch in float32.

    python -m benchmarks.cpu [--quick] [--only "3D step"]

Every engine has a process of its own for every workload (one for all single convolutions). The
engines take turns, round after round, so that whatever else the machine does meets them all.
PyTorch runs in both memory layouts, as it comes and once more with the memory that it frees kept
(two settings of the C library's malloc), as minibrain keeps its own. Written to
benchmarks/results: cpu.json and cpu.md.
"""

import argparse
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from statistics import median

from benchmarks import results_file
from benchmarks.cpu_workloads import LAYERS, flops
from minibrain.files import replacing

ENGINES = {
    "minibrain": ("minibrain", False),
    "PyTorch": ("channels_first", False),
    "PyTorch, channels last": ("channels_last", False),
    "PyTorch, pages kept": ("channels_first", True),
    "PyTorch, channels last, pages kept": ("channels_last", True),
}
PAGES_KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**33)}
WORKLOADS = {name: [name] for name in ("3D step", "3D inference", "2D step")}
WORKLOADS |= {"convolutions": list(LAYERS)}


class Engine:
    """A process that runs the workloads it is told."""

    def __init__(self, engine, pages_kept):
        environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.cpu_engines", engine],
            env=environment | (PAGES_KEPT if pages_kept else {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    def run(self, name):
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def measure(names, rounds):
    """{name: {engine: {"seconds": one list of parts per round, "peak": bytes}}}."""
    answers = {name: {engine: [] for engine in ENGINES} for name in names}
    with ExitStack() as stack:
        engines = {name: stack.enter_context(Engine(*how)) for name, how in ENGINES.items()}
        for name in names:
            for _ in range(rounds):
                for engine, process in engines.items():
                    answers[name][engine].append(process.run(name))
    return {
        name: {
            engine: {
                "seconds": [[round(part, 6) for part in answer["seconds"]] for answer in given],
                "peak": given[-1]["peak"],
            }
            for engine, given in of_engines.items()
        }
        for name, of_engines in answers.items()
    }


def sgemm_peak(rounds):
    """GFLOP/s of NumPy's largest matrix product on all cores."""
    with Engine(*ENGINES["minibrain"]) as engine:
        best = min(sum(engine.run("sgemm")["seconds"]) for _ in range(rounds))
    return flops("sgemm") / best / 1e9


def import_seconds(repeats=5):
    """The least time that importing minibrain takes above importing NumPy."""
    command = [sys.executable, "-X", "importtime", "-c", "import numpy, minibrain.training"]
    least = float("inf")
    for _ in range(repeats):
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        fields = [line.removeprefix("import time:").split("|") for line in lines.splitlines()[1:]]
        names = [name.strip() for *_, name in fields]
        after = fields[names.index("numpy") + 1 :]
        least = min(least, sum(int(own) for own, *_ in after) / 1e6)
    return least


def table(results) -> str:
    """Markdown: the networks with their memory, then every convolution."""
    machine = results_file.machine()
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['blas']}. "
        f"Importing minibrain: {results['import seconds'] * 1e3:.0f} ms above NumPy."
    ]
    lines += ["", *_summary(results["groups"])]
    for group, measured in results["groups"].items():
        peak = measured["sgemm GFLOP/s"]
        rounds = f"{measured['rounds']} rounds; sgemm {peak:.0f} GFLOP/s in the same run"
        lines += ["", f"### {group}", "", rounds, ""]
        rows = _layer_rows if group == "convolutions" else _network_rows
        lines += rows(measured["workloads"], peak)
    return "\n".join(lines) + "\n"


def _summary(groups):
    """minibrain beside PyTorch's best of both layouts, as it comes and with its pages kept."""
    yield "| least s, least GB | minibrain | PyTorch at its best | pages kept |"
    yield "| --- | --- | --- | --- |"
    for measured in groups.values():
        for name, of_engines in measured["workloads"].items():
            if name in LAYERS:
                continue
            kinds = _by_kind(of_engines)
            seconds = [min(min(_totals(answer)) for answer in kind) for kind in kinds.values()]
            peaks = [min(answer["peak"] for answer in kind) / 1e9 for kind in kinds.values()]
            for unit, values in (("s", seconds), ("GB", peaks)):
                ours, *theirs = values
                cells = [f"{ours:.2f}", *(f"{other:.2f} ({other / ours:.2f}×)" for other in theirs)]
                yield f"| {name}, {unit} | {' | '.join(cells)} |"


def _by_kind(of_engines):
    """The answers of minibrain, of PyTorch as it comes, and with its pages kept."""
    kinds = {"minibrain": [], "PyTorch": [], "pages kept": []}
    for engine, answer in of_engines.items():
        kinds["pages kept" if "pages" in engine else engine.partition(",")[0]].append(answer)
    return kinds


def _network_rows(workloads, peak):
    yield "| engine | min s | median s | minibrain is faster by | peak GB | of sgemm |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, of_engines in workloads.items():
        ours = min(_totals(of_engines["minibrain"]))
        for engine, answer in of_engines.items():
            totals = _totals(answer)
            share = "" if name == "2D step" else _share(name, totals, peak)
            yield (
                f"| {engine} | {min(totals):.3f} | {median(totals):.3f} "
                f"| {min(totals) / ours:.2f} | {answer['peak'] / 1e9:.2f} | {share} |"
            )


def _layer_rows(workloads, peak):
    """Forward and backward in milliseconds of minibrain and of the fastest PyTorch; the last column
    compares with the faster of the two kinds."""
    yield "| least ms, forward + backward | minibrain | PyTorch | pages kept | sgemm | faster by |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, of_engines in workloads.items():
        best = [
            min((parts for answer in kind for parts in answer["seconds"]), key=sum)
            for kind in _by_kind(of_engines).values()
        ]
        cells = (" + ".join(f"{part * 1e3:.1f}" for part in parts) for parts in best)
        ours, *theirs = map(sum, best)
        share, ratio = _share(name, [ours], peak), min(theirs) / ours
        yield f"| {name} | {' | '.join(cells)} | {share} | {ratio:.2f} |"


def _totals(answer):
    return [sum(parts) for parts in answer["seconds"]]


def _share(name, totals, peak):
    return f"{flops(name) / min(totals) / 1e9 / peak:.0%}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three rounds instead of five")
    parser.add_argument("--only", choices=WORKLOADS, help="measure this again, keep the rest")
    options = parser.parse_args()
    rounds = 3 if options.quick else 5
    path = results_file.FOLDER / "cpu.json"
    again = options.only and path.exists()
    kept = json.loads(path.read_text())["results"]["groups"] if again else {}
    for group in [options.only] if options.only else WORKLOADS:
        measured = {"rounds": rounds, "sgemm GFLOP/s": sgemm_peak(rounds)}
        kept[group] = measured | {"workloads": measure(WORKLOADS[group], rounds)}
        results = {"import seconds": import_seconds(), "groups": kept}
        results_file.write("cpu", results)
    markdown = table(results)
    with replacing(path.with_suffix(".md")) as file:
        file.write(markdown.encode())
    print(markdown)


if __name__ == "__main__":
    main()
