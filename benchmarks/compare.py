"""2D, 3D, attention and patches on the same phantoms, with three seeds each, whoever wins.

    python -m benchmarks.compare            the small networks (10 minutes on two idle cores)
    python -m benchmarks.compare --quick    fewer and smaller cases, two epochs: does it work?

A seed decides weights, order, augmentation and split, so within a seed all networks learn from the
same cases and are judged on the same others. Differences are taken case for case and, for their
interval, the cases of all seeds are drawn together. The page shows the runs of the first seed.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks import results_file
from minibrain import experiment
from minibrain.data.decathlon import open_task
from minibrain.evaluation.comparison import compare
from minibrain.evaluation.judging import score_run
from minibrain.evaluation.scores import Evaluation
from minibrain.report.tables import plain, scores_as_dict
from minibrain.runs.config import SMALL_2D, SMALL_3D, Config
from minibrain.runs.finished_run import read_run

SEEDS = (0, 1, 2)
PHANTOMS = {"phantom_seed": 3}  # others than those the recipe was tuned on
QUICK = {"phantom_cases": 12, "phantom_size": (32, 32, 24), "epochs": 2}


def networks() -> dict[str, Config]:
    """What is compared, the first with all others.

    All are trained for two thirds of their usual epochs, but the 2D network for twice as many: at
    16 it has only begun to learn, and an epoch of it takes half as long. Patches show as many
    voxels in a step.
    """
    volumes = replace(SMALL_3D, epochs=16)
    return {
        "3d": volumes,
        "2d": replace(SMALL_2D, epochs=32),
        "attention": replace(volumes, network="brain_3d_attention_small"),
        "patches": replace(volumes, patch_size=(16, 16, 16), batch_size=8 * volumes.batch_size),
    }


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="only see whether it works")
    parser.add_argument("--output", type=Path, default=results_file.FOLDER, metavar="FOLDER")
    options = parser.parse_args(arguments)
    changes = {**PHANTOMS, "device": "cpu", **(QUICK if options.quick else {})}
    with TemporaryDirectory() as folder:
        evaluations = {name: [] for name in networks()}
        for seed in SEEDS:
            for name, config in networks().items():
                output = str(Path(folder, f"{name}-{seed}"))
                run = read_run(_alone(replace(config, seed=seed, output=output, **changes)))
                task = open_task(run.summary["task"])
                evaluations[name].append((run, score_run(run, task).evaluation))
        first = [Path(folder, f"{name}-{SEEDS[0]}") for name in evaluations]
        page = compare(first, Path(folder, "page"))
        results = _results(evaluations)
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "comparison.html").write_bytes(page.read_bytes())
    content = {"machine": results_file.machine(), "results": results}
    results_file.write_json(options.output / "compare.json", content)
    print(f"\n{_table(results)}\n\nwritten to {options.output}")


def _alone(config: Config) -> Path:
    """Run in a process of its own, which finds nothing in memory that another run has left."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(experiment.run, config).result()


def _results(evaluations) -> dict:
    joined = {name: _joined([e for _, e in runs]) for name, runs in evaluations.items()}
    reference = next(iter(joined.values()))
    results = {}
    for name, runs in evaluations.items():
        apart, ends = joined[name].difference(reference, "dice")
        fields = ("pooled_foreground_mean", "per_case_foreground_mean")
        results[name] = {
            "settings": {key: setting["text"] for key, setting in runs[0][0].settings.items()},
            "seconds": [run.summary["seconds"] for run, _ in runs],
            "dice_of_each_seed": [e.summary("dice").pooled_foreground_mean for _, e in runs],
            "difference_of_dice": {
                field: {"value": getattr(apart, field), "interval": plain(getattr(ends, field))}
                for field in fields
            },
            "all_seeds": scores_as_dict(joined[name]),
        }
    return json.loads(json.dumps(results))


def _joined(evaluations: list[Evaluation]) -> Evaluation:
    """The cases of all seeds as one set; a case that two seeds hold out counts twice."""
    return replace(
        evaluations[0],
        cases=tuple(
            f"{case} of seed {seed}"
            for seed, evaluation in zip(SEEDS, evaluations, strict=True)
            for case in evaluation.cases
        ),
        confusions=np.concatenate([evaluation.confusions for evaluation in evaluations]),
        hausdorff95=np.concatenate([evaluation.hausdorff95 for evaluation in evaluations]),
        voxel_ml=np.concatenate([evaluation.voxel_ml for evaluation in evaluations]),
    )


def _table(results: dict) -> str:
    lines = ["mean foreground Dice, pooled      each seed               difference from the first"]
    for name, found in results.items():
        dice = found["all_seeds"]["dice"]["pooled_foreground_mean"]
        seeds = " ".join(f"{value:.3f}" for value in found["dice_of_each_seed"])
        apart = found["difference_of_dice"]["pooled_foreground_mean"]
        low, high = apart["interval"]
        lines.append(
            f"{name:24} {dice:.3f}    {seeds}    {apart['value']:+.3f} ({low:+.3f} to {high:+.3f})"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
