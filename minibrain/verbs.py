"""The verbs of the command line: each declares its options, and a function that they go to.

They import what they call when they are called: `minibrain --help` need not wait for plots and
classifiers.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from minibrain.arrays import PRECISIONS, find_device
from minibrain.errors import InputError


def _verb(verbs, name: str, purpose: str, example: str, call: Callable) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name,
        help=purpose,
        description=purpose[0].upper() + purpose[1:] + ".",
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(call=call)
    return parser


def _inspect(verbs) -> None:
    add = _verb(
        verbs,
        "inspect",
        "check every case of a task, report all faults, and show what it holds",
        "minibrain inspect Task01_BrainTumour --output inspection",
        inspect,
    ).add_argument
    add("task", metavar="TASK", help="folder with dataset.json")
    add("--output", metavar="FOLDER", help="where to write pictures (default: none)")


def inspect(task: str, output: str | None) -> int:
    """Print what a task holds and all its faults; 1 if there is any."""
    from minibrain.data.inspection import inspect as inspect_task
    from minibrain.files import require_writable
    from minibrain.report.inspection import inspection_pictures, inspection_text

    if output is not None:
        require_writable(Path(output))
    found = inspect_task(task)
    print(inspection_text(found))
    if output is not None and found.contents:
        for path in inspection_pictures(found, Path(output)):
            print(f"written to {path}")
    return 1 if found.faults else 0


def _train(verbs) -> None:
    add = _verb(
        verbs,
        "train",
        "train a network and judge it on held-out cases",
        "minibrain train --network brain_2d --data Task01_BrainTumour",
        train,
    ).add_argument
    add(
        "--network",
        default="brain_3d",
        metavar="NAME",
        help="preset to train (default brain_3d; without data and GPU its small version)",
    )
    add("--data", metavar="FOLDER", help="of the task, with its dataset.json; left out, phantoms")
    add("--output", metavar="FOLDER", help="of the run (default runs/NETWORK-1, -2, ...)")
    add("--epochs", type=int, metavar="N", help="passes over the training cases")
    add("--batch-size", type=int, metavar="N", help="samples in a step")
    add("--learning-rate", type=float, metavar="RATE", help="of Adam")
    add("--patch-size", type=int, nargs=3, metavar="N", help="train on patches of so many voxels")
    add("--channels", type=int, nargs="+", metavar="N", help="that a 2D network sees (default 0 2)")
    recipe = "of preparation: reference, or zscore, which sets no case aside for too little tumour"
    add("--recipe", metavar="NAME", help=recipe)
    repair = "set NaN and infinite voxels of images to zero and count them (default: refuse them)"
    add("--repair-nonfinite", action="store_true", default=None, help=repair)
    precisions = "auto", *PRECISIONS
    add("--precision", choices=precisions, help="of activations (auto: bf16 on a GPU, or fp32)")
    add("--device", choices=("auto", "cpu", "cuda"), help="where to compute (default auto)")
    add("--seed", type=int, metavar="N", help="of weights, split, order and augmentation")
    add("--clip-norm", type=float, metavar="NORM", help="longest gradient (default: no limit)")
    add(
        "--resume",
        metavar="FOLDER",
        help="go on with the run in it; takes --epochs, --device, --data",
    )


def train(network: str, resume: str | None, **options) -> None:
    """Train a preset by its own configuration, changed by the options that are not None.

    Without data and without a GPU the small version of the network is trained.
    """
    from minibrain import experiment
    from minibrain.runs.config import CONFIGS

    given = {name: value for name, value in options.items() if value is not None}
    given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    if resume is not None:
        if others := sorted(given.keys() - {"epochs", "device", "data"}):
            raise InputError(f"resume: {others[0]} stays as in {resume}, expected no such option")
        experiment.resume(resume, **given)
        return
    small = f"{network}_small"
    if "data" not in given and small in CONFIGS:
        on_gpu = find_device(given.get("device", "auto")) == "cuda"
        network = network if on_gpu else small
    if network not in CONFIGS:
        raise InputError(f"network: got {network!r}, expected one of {', '.join(CONFIGS)}")
    experiment.run(replace(CONFIGS[network], **given))


def _predict(verbs) -> None:
    parser = _verb(
        verbs,
        "predict",
        "segment images with the network of a run",
        "minibrain predict runs/brain_3d-1 Task01_BrainTumour --output predictions",
        predict,
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of the run")
    add(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="an image, a folder of images, or a task, whose test cases are meant",
    )
    add("--output", required=True, metavar="FOLDER", help="for CASE.nii.gz")
    add("--probabilities", action="store_true", help="write CASE_probabilities.nii.gz, too")
    add("--overlap", type=float, default=0.5, metavar="SHARE", help="of windows (default 0.5)")
    look = parser.add_mutually_exclusive_group().add_argument
    look(
        "--patch-size",
        type=int,
        nargs=3,
        metavar="N",
        help="look through windows of so many voxels (default: as in training)",
    )
    look("--whole", action="store_true", help="look at each volume in one go")
    add("--mirror", action="store_true", help="average over reflections: 8 times the work, 2D 4")
    repair = "set NaN and infinite voxels to zero and count them (default: as in training)"
    add("--repair-nonfinite", action="store_true", help=repair)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")


def predict(
    run: str,
    inputs: Sequence[str],
    output: str,
    device: str,
    patch_size: Sequence[int] | None,
    whole: bool,
    repair_nonfinite: bool,
    **options,
) -> int:
    """Segment case after case; 1 if one failed, and the others are there."""
    from minibrain.prediction import load_run, predict_files

    network = load_run(run, device=device)
    if patch_size and network.model.rank == 2:
        raise InputError(f"patch_size: got {tuple(patch_size)} for slices, expected it for volumes")
    if whole or patch_size:
        network = replace(network, patch_size=tuple(patch_size) if patch_size else None)
    if repair_nonfinite:
        network = replace(network, task=replace(network.task, repair_nonfinite=True))
    failures = predict_files(network, inputs, output, **options)
    print(f"written to {output}" + (f"; cases failed: {len(failures)}" if failures else ""))
    return 1 if failures else 0


def _evaluate(verbs) -> None:
    add = _verb(
        verbs,
        "evaluate",
        "score predictions against labels, and write a report to look at",
        "minibrain evaluate runs/brain_3d-1",
        evaluate,
    ).add_argument
    add("folder", metavar="FOLDER", help="of a run, or of predictions of the cases of --data")
    add("--data", metavar="FOLDER", help="of the task (default: where the run found it)")
    add("--output", metavar="FOLDER", help="for the report on predictions (default: beside them)")


def evaluate(folder: str, data: str | None, output: str | None) -> None:
    """Judge a run again, or predictions that come from elsewhere."""
    from minibrain.evaluation.judging import judge_predictions, judge_run

    if Path(folder, "config.json").exists():
        if output is not None:
            raise InputError(f"output: the report on a run lies in {folder}, expected no other")
        judge_run(folder, data)
    elif data is None:
        raise InputError(f"{folder}: is no run, so expected --data, the task that it predicts")
    else:
        judge_predictions(folder, data, output)


def _compare(verbs) -> None:
    add = _verb(
        verbs,
        "compare",
        "put runs on the same cases side by side",
        "minibrain compare runs/brain_3d-1 runs/brain_2d-1",
        compare,
    ).add_argument
    add("runs", nargs="+", metavar="RUN", help="folder of a run; the others are held to the first")
    add("--data", metavar="FOLDER", help="of the task (default: where the runs found it)")
    add("--output", metavar="FOLDER", default="comparison", help="(default comparison)")


def compare(runs: Sequence[str], data: str | None, output: str) -> None:
    """Write comparison.html and comparison.json."""
    from minibrain.evaluation.comparison import compare as compare_runs

    compare_runs(runs, output, data)


def _gradcheck(verbs) -> None:
    add = _verb(
        verbs,
        "gradcheck",
        "check gradients: backward against the slope of forward",
        "minibrain gradcheck conv InstanceNormReLU brain_2d",
        gradcheck,
    ).add_argument
    add("names", nargs="*", metavar="NAME", help="operations, layers or presets; left out, all")
    add("--seed", type=int, default=0, metavar="N", help="of the directions (default 0)")


def gradcheck(names: Sequence[str], seed: int) -> int:
    """Print the table; 1 if a gradient is wrong."""
    from minibrain.study.gradcheck_cases import run

    return 0 if run(names, seed) else 1


def _explain(verbs) -> None:
    add = _verb(
        verbs,
        "explain",
        "record one training step, print it, and make a page that explains it",
        "minibrain explain --network brain_2d --data Task01_BrainTumour/BRATS_001",
        explain,
    ).add_argument
    add(
        "--network",
        default="brain_3d_small",
        metavar="NAME",
        help="preset to look into (default brain_3d_small)",
    )
    add("--data", metavar="FOLDER/CASE", help="a labelled case of a task; left out, a phantom")
    add(
        "--steps",
        type=int,
        default=12,
        metavar="N",
        help="training steps on the case before the one recorded (default 12)",
    )
    add(
        "--output",
        default="explorer.html",
        metavar="FILE",
        help="the page, one file that needs no network (default explorer.html); the record alone "
        "if it ends in .json",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")


def explain(**options) -> None:
    """See `minibrain.study.explain.explain`."""
    from minibrain.study.explain import explain as explain_step

    explain_step(**options)


def _doctor(verbs) -> None:
    _verb(
        verbs,
        "doctor",
        "test this installation, or show what a checkpoint holds",
        "minibrain doctor",
        doctor,
    ).add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="a .npz file of a run")


def doctor(checkpoint: str | None) -> int:
    """Print versions, processor, GPU and a self-test, which gives 1 if the arithmetic is wrong."""
    if checkpoint is not None:
        from minibrain.runs.checkpoint import describe

        print(describe(Path(checkpoint)))
        return 0
    from minibrain.doctor import report

    text, sound = report()
    print(text)
    return 0 if sound else 1


VERBS = (
    _inspect,
    _train,
    _predict,
    _evaluate,
    _compare,
    _gradcheck,
    _explain,
    _doctor,
)
