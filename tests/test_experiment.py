"""The main job, from a folder of NIfTI files to scores, as a person starts it."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import standin

from minibrain import cli, experiment, models
from minibrain.data import phantom_task, prepare
from minibrain.data.decathlon import open_task
from minibrain.errors import InputError
from minibrain.evaluation.judging import confusions_of
from minibrain.metrics import confusion_matrix
from minibrain.runs.config import SMALL_2D, SMALL_3D

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = {"epochs": 2, "batch_size": 3, "device": "cpu", "seed": 3}


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory):
    """Ten small phantoms, one of them moved into another orientation."""
    folder = tmp_path_factory.mktemp("data") / "Task01_BrainTumour"
    phantom_task.write_task(folder, cases=10, size=(32, 32, 24))
    for kind in ("imagesTr", "labelsTr"):
        path = folder / kind / "BRATS_003.nii.gz"
        file = nibabel.load(path)
        turned = nibabel.Nifti1Image(np.asarray(file.dataobj), file.affine).as_reoriented(
            [[1, 1], [0, -1], [2, -1]]
        )
        nibabel.save(turned, path)
    return folder


def run_example(name, *arguments, folder):
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("small", [SMALL_3D, SMALL_2D])
def test_a_run_leaves_everything_that_it_promises(small, task_folder, tmp_path, capsys):
    config = replace(small, data=str(task_folder), output=str(tmp_path / "run"), **TINY)
    folder = experiment.run(config)

    assert json.loads((folder / "config.json").read_text())["network"] == small.network
    parts = json.loads((folder / "splits.json").read_text())
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(np.isfinite(float(row["train_loss"])) for row in rows)
    for name in ("progress.png", "checkpoints/last.npz", "checkpoints/best.npz"):
        assert (folder / name).stat().st_size > 1000
    for name in ("report.html", "scores.csv", "cost.json"):
        assert (folder / name).stat().st_size > 20
    assert not list(folder.rglob("*.tmp"))

    pooled = 0
    for name in parts["test"]:
        truth = nibabel.load(task_folder / "labelsTr" / f"{name}.nii.gz")
        prediction = nibabel.load(folder / "predictions" / f"{name}.nii.gz")
        assert prediction.shape == truth.shape
        assert prediction.get_data_dtype() == np.uint8
        np.testing.assert_allclose(prediction.affine, truth.affine, atol=1e-4)
        pooled = pooled + confusion_matrix(
            np.asarray(truth.dataobj), np.asarray(prediction.dataobj), 4
        )
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["network"]["confusion"] == pooled.tolist()

    printed = capsys.readouterr().out
    last_line = printed.strip().splitlines()[-1]
    score = float(re.fullmatch(r"held-out mean foreground IoU: (\d\.\d{3})", last_line)[1])
    assert score == round(summary["network"]["iou"]["pooled_foreground_mean"], 3)
    for word in (
        " MB\n",
        "1 set aside",
        "epoch 2 of 2: train_loss ",
        "edema",
        "enhancing tumour",
        "report.html",
    ):
        assert word in printed


def test_predictions_are_those_of_the_best_network_laid_over_the_file(task_folder, tmp_path):
    """Predicted as the truth of each prepared case, every case scores 1 in its own file's space."""
    task = open_task(task_folder)
    cases = prepare.prepare(task, tmp_path, recipe="zscore").cases
    truths = {case.image.tobytes(): np.asarray(case.label) for case in cases}
    confusions = confusions_of(lambda image: truths[image.tobytes()], cases, task)
    assert len(confusions) == 10
    off_diagonal = confusions.sum(axis=0) * (1 - np.eye(4, dtype=int))
    assert not off_diagonal.any()


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(task_folder, tmp_path):
    def best(name, seed):
        config = replace(SMALL_3D, data=str(task_folder), **TINY | {"epochs": 1})
        folder = experiment.run(replace(config, output=str(tmp_path / name), seed=seed))
        with np.load(folder / "checkpoints" / "last.npz") as arrays:
            return b"".join(arrays[key].tobytes() for key in arrays.files if key != "about")

    assert best("a", 7) == best("b", 7)
    assert best("a2", 7) != best("c", 8)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("epochs", 0),
        ("batch_size", -1),
        ("learning_rate", 0.0),
        ("learning_rate", float("inf")),
        ("learning_rate", float("nan")),
        ("seed", -1),
        ("seed", 2**32),
        ("precision", "fp8"),
    ],
)
def test_impossible_options_are_refused(option, value, task_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = replace(SMALL_3D, data=str(task_folder), **{option: value})
    with pytest.raises(InputError, match=f"{option}: got {re.escape(str(value).strip())}|'fp8'"):
        experiment.run(config)
    assert not any(tmp_path.iterdir())


def rewritten(task_folder, folder, *, change_label=lambda label: label, channels=4, classes=4):
    """A copy of the phantom task with other channels and classes."""
    shutil.copytree(task_folder, folder)
    description = json.loads((folder / "dataset.json").read_text())
    description["modality"] = {str(i): f"channel {i}" for i in range(channels)}
    description["labels"] = {str(i): f"class {i}" for i in range(classes)}
    (folder / "dataset.json").write_text(json.dumps(description))
    for path in (folder / "imagesTr").iterdir():
        file = nibabel.load(path)
        image = np.asarray(file.dataobj)[..., :channels]
        nibabel.save(nibabel.Nifti1Image(image, file.affine), path)
    for path in (folder / "labelsTr").iterdir():
        file = nibabel.load(path)
        label = change_label(np.asarray(file.dataobj)).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(label, file.affine), path)
    return folder


@pytest.mark.parametrize("small", [SMALL_3D, SMALL_2D])
def test_a_task_with_other_channels_and_classes(small, task_folder, tmp_path):
    data = rewritten(
        task_folder, tmp_path / "task", change_label=lambda x: x > 0, channels=3, classes=2
    )
    config = replace(small, data=str(data), output=str(tmp_path / "run"), **TINY | {"epochs": 1})
    summary = json.loads((experiment.run(config) / "summary.json").read_text())
    assert summary["network"]["classes"] == ["class 0", "class 1"]


@pytest.mark.parametrize(
    ("small", "choice", "said"),
    [
        (SMALL_2D, {"channels": (0, 4)}, r"channels: got \(0, 4\), expected .* below 4"),
        (
            SMALL_2D,
            {"channels": (-1,)},
            r"channels: got \(-1,\), expected .* from 0 on and below 4",
        ),
        (SMALL_2D, {"channels": (0, 0)}, r"channels: got \(0, 0\), expected .* each once"),
        (SMALL_3D, {"channels": (0, 2)}, r"channels: got \(0, 2\) for volumes"),
        (SMALL_3D, {"patch_size": (16, 0, 16)}, r"patch_size: got \(16, 0, 16\)"),
        (SMALL_3D, {"recipe": "zcore"}, "recipe: got 'zcore'"),
    ],
)
def test_what_a_network_cannot_see_is_refused_before_a_case_is_read(
    small, choice, said, task_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("minibrain.data.prepare.read_case", None)
    config = replace(small, data=str(task_folder), output=str(tmp_path / "run"), **TINY | choice)
    with pytest.raises(InputError, match=said):
        experiment.run(config)


def test_one_channel_without_any_tumour_from_the_command_line(task_folder, tmp_path, capsys):
    """Trained on slices, and resumed after the task has been moved."""
    data = tmp_path / "task"
    rewritten(task_folder, data, change_label=lambda label: 0 * label, channels=1)
    train = ["train", "--epochs", "1", "--network", "brain_2d_small", "--device", "cpu"]
    train += ["--data", str(data), "--output", str(tmp_path / "run")]
    assert cli.main([*train, "--channels", "0", "--recipe", "zscore"]) == 0
    moved = data.rename(tmp_path / "moved")
    resumed = ["train", "--resume", str(tmp_path / "run"), "--epochs", "2"]
    assert cli.main(resumed) == 2
    assert cli.main([*resumed, "--network", "brain_3d"]) == 2
    assert "--network: got 'brain_3d', expected 'brain_2d_small'" in capsys.readouterr().err
    resumed += ["--network", "brain_2d"]  # as the examples do
    assert cli.main([*resumed, "--data", os.path.relpath(moved)]) == 0
    assert "best on the validation cases: epoch 1 of 2" in capsys.readouterr().out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["data"], config["epochs"], config["channels"]) == (str(moved), 2, [0])


def test_cases_without_enough_tumour_are_counted_and_named(task_folder, tmp_path, capsys):
    data = rewritten(task_folder, tmp_path / "task", change_label=lambda label: 0 * label)
    config = replace(SMALL_3D, data=str(data), output=str(tmp_path / "run"), **TINY)
    with pytest.raises(
        InputError, match=r"cases to learn from: 0, with 10 set aside; .*--recipe zscore"
    ):
        experiment.run(config)
    assert "10 set aside" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("always:.*set to zero")
def test_voxels_that_are_not_finite_are_refused_unless_the_user_wants_them_repaired(
    task_folder, tmp_path, capsys
):
    """From the command line: what train is told holds for all that is done with the run."""
    data, run, out = (tmp_path / name for name in ("task", "run", "out"))
    shutil.copytree(task_folder, data)
    spoilt = [data / "imagesTr" / f"BRATS_00{number}.nii.gz" for number in (1, 2, 4, 5)]
    for count, path in enumerate(spoilt, start=1):
        file = nibabel.load(path)
        image = np.asarray(file.dataobj).astype(np.float32)
        image[15, 15, 10 : 10 + count, 0] = (np.nan, np.inf)[count % 2]
        nibabel.save(nibabel.Nifti1Image(image, file.affine), path)

    def said(*arguments, code=0):
        assert cli.main(list(map(str, arguments))) == code
        return "".join(capsys.readouterr())

    found = said("inspect", data, code=1)
    assert found.count("NaN or infinite voxels: ") == 4
    assert "--repair-nonfinite" in found
    train = ["train", "--data", data, "--output", run, "--epochs", "1", "--device", "cpu"]
    train += ["--recipe", "zscore"]
    assert "error: " in said(*train, code=2)
    printed = said(*train, "--repair-nonfinite")
    assert "NaN or infinite voxels set to zero: 10\n" in printed
    for count, path in enumerate(spoilt, start=1):
        assert f"warning: {path}: NaN or infinite voxels set to zero: {count}\n" in printed
    assert json.loads((run / "config.json").read_text())["repair_nonfinite"] is True
    resumed = said("train", "--resume", run, "--epochs", "2")
    assert "going on in epoch 2" in resumed
    assert "set to zero: 10\n" in resumed
    refused = said("train", "--resume", run, "--repair-nonfinite", code=2)
    assert "argument --repair-nonfinite: got True, expected no such option: it stays" in refused
    said("evaluate", run)
    assert json.loads((run / "summary.json").read_text())["repaired_voxels"] == 10
    assert f"warning: {spoilt[0]}: NaN or infinite voxels set to zero: 1" in said(
        "predict", run, spoilt[0], "--output", out
    )

    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"repair_nonfinite": False}))
    assert "NaN or infinite voxels: 4" in said("predict", run, spoilt[3], "--output", out, code=1)
    said("predict", run, spoilt[3], "--output", out, "--repair-nonfinite")
    assert "NaN or infinite voxels: " not in said("evaluate", out, "--data", data)
    assert "NaN or infinite voxels: " in said("train", "--resume", run, "--epochs", "3", code=2)


def test_bad_input_is_one_line_and_exit_code_2(task_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "dataset.json").write_text(json.dumps({"name": "x", "labels": {"0": "background"}}))
    corrupt = tmp_path / "corrupt"
    phantom_task.write_task(corrupt, cases=4, size=(24, 24, 16))
    path = corrupt / "imagesTr" / "BRATS_002.nii.gz"
    path.write_bytes(path.read_bytes()[:-9])
    for arguments, named in (
        (["--data", tmp_path / "nowhere"], "nowhere"),
        (["--data", empty], "dataset.json"),
        (["--data", corrupt, "--output", tmp_path / "run"], "BRATS_002.nii.gz"),
        (["--epochs", "0", "--data", task_folder], "epochs"),
        (["--data", task_folder, "--output", tmp_path / "empty" / "dataset.json" / "x"], "x"),
    ):
        assert cli.main(["train", *map(str, arguments)]) == 2
        *_, error = capsys.readouterr().err.splitlines()
        assert error.startswith("error: ")
        assert named in error
        assert not (tmp_path / "run").exists()
    result = run_example("train_3d.py", "--data", "", folder=tmp_path)
    assert result.returncode == 2
    assert re.fullmatch(r"error: argument --data: got nothing, .*; see .*\n", result.stderr)


@pytest.mark.skipif("cupy" in sys.modules, reason="a GPU may be there")
def test_a_gpu_that_is_not_there_is_one_clear_error(task_folder, tmp_path):
    result = run_example("train_2d.py", "--device", "cuda", "--data", task_folder, folder=tmp_path)
    if result.returncode == 0:
        pytest.skip("there is a GPU")
    assert result.returncode == 2
    assert re.fullmatch(r"error: device cuda is not available: .*\n", result.stderr)


@pytest.mark.parametrize("name", ["train_3d.py", "train_2d.py"])
def test_help_shows_every_flag(name, tmp_path):
    result = run_example(name, "--help", folder=tmp_path)
    assert result.returncode == 0
    flags = {
        "data",
        "epochs",
        "batch-size",
        "learning-rate",
        "device",
        "precision",
        "seed",
        "output",
    }
    assert flags <= set(re.findall(r"--([a-z-]+)", result.stdout))


@pytest.mark.usefixtures("without_twins")
def test_validation_is_done_on_the_device_of_the_network():
    rng = np.random.default_rng(4)
    image = rng.standard_normal((4, 8, 6, 2)).astype(np.float32)
    cases = [SimpleNamespace(image=image, label=rng.integers(0, 3, (4, 8, 6), np.uint8))] * 2
    scores = []
    for place in (np.asarray, standin.asarray):
        model = models.UNet(3, 2, 3, channels=(2, 3), norm="instance", seed=1)
        for parameter in model.named_parameters().values():
            parameter.value = place(parameter.value)
        scores.append(experiment.validate(SMALL_3D, model, cases))
    assert scores[0] == scores[1]
    assert 0 < scores[0]["validation_iou"] < 1
