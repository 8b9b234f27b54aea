"""Verbs about runs: train, predict, evaluate, compare."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from minibrain.arrays import PRECISIONS, find_device
from minibrain.errors import InputError
from minibrain.verbs.parser import add_verb


def declare_train(verbs) -> None:
    add = add_verb(
        verbs,
        "train",
        "train a network and judge it on held-out cases",
        "minibrain train --network brain_2d --data Task01_BrainTumour",
        train,
    ).add_argument
    network = "preset to train (default brain_3d; without data and GPU its small version)"
    add("--network", metavar="NAME", help=network)
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


def train(network: str | None, resume: str | None, **options) -> None:
    """Train a preset by its own configuration, changed by the options that are not None.

    Without data and without a GPU the small version of the network is trained.
    """
    from minibrain import experiment
    from minibrain.runs.config import CONFIGS

    given = {name: value for name, value in options.items() if value is not None}
    given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    if resume is not None:
        if others := sorted(given.keys() - {"epochs", "device", "data"}):
            expected = f"expected no such option: it stays as in {resume}"
            raise InputError(f"{others[0]}: got {given[others[0]]!r}, {expected}")
        if network is not None:
            _require_network(network, resume)
        experiment.resume(resume, **given)
        return
    network = network or "brain_3d"
    small = f"{network}_small"
    if "data" not in given and small in CONFIGS:
        on_gpu = find_device(given.get("device", "auto")) == "cuda"
        network = network if on_gpu else small
    if network not in CONFIGS:
        raise InputError(f"network: got {network!r}, expected one of {', '.join(CONFIGS)}")
    experiment.run(replace(CONFIGS[network], **given))


def _require_network(name: str, run: str) -> None:
    """A run is resumed with its own network, which may be the small version of the one named."""
    from minibrain.runs.config import read_config
    from minibrain.runs.run_files import find_run

    found = read_config(find_run(run).config).network
    if found not in (name, f"{name}_small"):
        raise InputError(f"network: got {name!r}, expected {found!r} as in {run}")


def declare_predict(verbs) -> None:
    parser = add_verb(
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
    share = "of windows, 0 to 0.9 (default 0.5)"
    add("--overlap", type=float, default=0.5, metavar="SHARE", help=share)
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
    return 1 if predict_files(network, inputs, output, **options) else 0


def declare_evaluate(verbs) -> None:
    add = add_verb(
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
    from minibrain.runs.run_files import RunFiles

    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder, expected that of a run or of predictions")
    if RunFiles(Path(folder)).config.exists():
        if output is not None:
            raise InputError(
                f"output: got {output!r}, expected no other folder than the run's own, {folder}"
            )
        judge_run(folder, data)
    elif data is None:
        raise InputError(f"{folder}: is no run, so expected --data, the task that it predicts")
    else:
        judge_predictions(folder, data, output)


def declare_compare(verbs) -> None:
    add = add_verb(
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
