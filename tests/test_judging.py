"""Runs and folders of predictions are judged from what lies on the disk, alone or side by side."""

import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from minibrain import cli
from minibrain.data import nifti, phantom_task, split
from minibrain.errors import InputError
from minibrain.evaluation import comparison, judging
from minibrain.evaluation.comparison import compare
from minibrain.evaluation.judging import judge_predictions, judge_run
from minibrain.runs.config import SMALL_3D
from minibrain.runs.cost import measured, read_cost
from minibrain.runs.finished_run import read_run

TEST = ("BRATS_002", "BRATS_003", "BRATS_004")
SPLIT = split.Split(("BRATS_001",), ("BRATS_005",), TEST)
DROPPED = "BRATS_008"  # without any tumour


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "Task01_BrainTumour"
    return phantom_task.write_task(folder, cases=8, size=(24, 24, 16))


def predict(task, folder, names, change):
    folder.mkdir()
    for name in names:
        label = nifti.read_label(task / "labelsTr" / f"{name}.nii.gz")
        nifti.write_prediction(folder / f"{name}.nii.gz", change(label.array), label.affine)


def make_run(task, folder, change, **summary):
    """What training leaves behind, without training."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(asdict(replace(SMALL_3D, device="cpu"))))
    split.save(SPLIT, folder / "splits.json")
    rows = ["epoch,train_loss,validation_loss,validation_iou,learning_rate"]
    rows += [f"{epoch},{1 / epoch},{1.1 / epoch},nan,0.002" for epoch in (1, 2, 3)]
    (folder / "metrics.csv").write_text("\r\n".join(rows))
    content = {
        "task": str(task),
        "dataset_json": "5e8dd316726b",
        "parameters": 341300,
        "initializer": "he",
        "channels": ["FLAIR", "T1w"],
        "seconds": 3725.2,
        "peak_memory_bytes": 2_500_000_000,
    }
    (folder / "summary.json").write_text(json.dumps(content | summary))
    predict(task, folder / "predictions", TEST, change)
    predict(task, folder / "background", [DROPPED], change)
    return folder


def exact(label):
    return label


def shifted(label):
    return np.roll(label, 1, axis=0)


def everywhere(label):
    return np.maximum(label, 1)


CHANGES = {"good": exact, "shifted": shifted, "loud": everywhere}


@pytest.fixture
def runs(task, tmp_path):
    return [make_run(task, tmp_path / "runs" / name, change) for name, change in CHANGES.items()]


def test_a_run_is_judged_from_its_files(runs, capsys):
    report = judge_run(runs[2])
    assert report == runs[2] / "report.html"
    summary = json.loads((runs[2] / "summary.json").read_text())
    assert summary["network"]["recall"]["pooled"][4] == 1  # of the whole tumour
    assert summary["network"]["confusion"][0][0] == 0
    assert summary["parameters"] == 341300  # what training wrote is still there
    background = summary["background"]
    assert (background["free_cases"], background["alarmed_cases"]) == (1, 1)
    assert (background["free_slices"], background["alarmed_slices"]) == (16, 1)
    voxel = np.prod(np.array((240, 240, 155)) / (24, 24, 16)) / 1000
    assert background["false_ml"] == pytest.approx(24 * 24 * 16 * voxel, rel=1e-5)
    rows = list(csv.DictReader((runs[2] / "scores.csv").read_text().splitlines()))
    assert len(rows) == 3 * 7
    printed = capsys.readouterr().out
    for words in ("3 cases", "whole tumour", "100.0% of 16 slices", "report.html", "IoU: 0."):
        assert words in printed


def test_a_perfect_prediction_is_said_to_be_one(runs, capsys):
    judge_run(runs[0])
    summary = json.loads((runs[0] / "summary.json").read_text())
    assert summary["network"]["dice"]["pooled_mean"] == 1
    assert summary["network"]["dice"]["pooled_mean_interval"] == [1, 1]
    assert summary["background"]["alarmed_cases"] == 0
    assert capsys.readouterr().out.endswith("held-out mean foreground IoU: 1.000\n")


def test_a_moved_task_can_be_named(runs, task, tmp_path):
    moved = shutil.copytree(task, tmp_path / "elsewhere")
    summary = json.loads((runs[0] / "summary.json").read_text())
    (runs[0] / "summary.json").write_text(json.dumps(summary | {"task": "/nowhere"}))
    with pytest.raises(InputError, match="/nowhere"):
        judge_run(runs[0])
    assert judge_run(runs[0], moved).exists()


def test_predictions_from_elsewhere_are_judged_alike(runs, task, tmp_path, capsys):
    report = judge_predictions(runs[1] / "predictions", task, tmp_path / "new" / "out")
    judge_run(runs[1])
    ours = json.loads((tmp_path / "new" / "out" / "summary.json").read_text())["network"]
    assert ours == json.loads((runs[1] / "summary.json").read_text())["network"]
    assert report.exists()
    assert "3 of 8 labelled cases" in capsys.readouterr().out
    assert not (runs[1] / "predictions" / "report.html").exists()


def test_a_folder_without_predictions_is_one_clear_error(task, tmp_path):
    with pytest.raises(InputError, match=r"no prediction of a labelled case.*BRATS_001.nii.gz"):
        judge_predictions(tmp_path, task)
    assert not list(tmp_path.iterdir())


# Side by side


def test_differences_are_those_of_the_scores(runs, tmp_path, capsys):
    report = compare(runs, tmp_path / "both")
    assert report == tmp_path / "both" / "comparison.html"
    first, second, third = json.loads((tmp_path / "both" / "comparison.json").read_text())
    assert (first["name"], second["name"], third["name"]) == ("good", "shifted", "loud")
    assert first["difference_from_the_first"] == {}
    for score in ("iou", "dice", "recall", "precision"):
        for field in ("pooled_mean", "pooled_foreground_mean", "per_case_mean"):
            apart = second["difference_from_the_first"][score][field]
            expected = second["network"][score][field] - first["network"][score][field]
            assert apart["value"] == pytest.approx(expected)
            low, high = apart["interval"]
            assert low <= apart["value"] <= high < 0
    assert second["settings"]["Parameters"] == 341300
    assert third["background"]["alarmed_cases"] == 1
    printed = capsys.readouterr().out
    assert "good     1.000\n" in printed
    assert "shifted  0." in printed


def test_a_run_beside_itself_differs_by_nothing(runs, tmp_path):
    twin = shutil.copytree(runs[1], tmp_path / "twin")
    compare([runs[1], twin], tmp_path / "both")
    _, second = json.loads((tmp_path / "both" / "comparison.json").read_text())
    for fields in second["difference_from_the_first"].values():
        assert fields["pooled"]["value"] == [0] * 7
        assert fields["pooled"]["interval"] == [[0, 0]] * 7


def rewrite(run, **changes):
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | changes))


def test_runs_over_other_data_are_refused(runs, tmp_path):
    rewrite(runs[1], task="/data/Task02_Heart", dataset_json="2cf24dba5fb0")
    refused(runs[:2], tmp_path, "shifted", "/data/Task02_Heart", "expected")


@pytest.fixture
def other_labels(task, tmp_path):
    """A task with the same dataset.json, where a held-out case has another label."""
    other = shutil.copytree(task, tmp_path / "other")
    path = other / "labelsTr" / "BRATS_003.nii.gz"
    label = nifti.read_label(path)
    nifti.write_prediction(path, shifted(label.array), label.affine)
    return other


def test_a_run_is_not_judged_again_by_other_labels(
    runs, other_labels, task, tmp_path, record_property
):
    """Its scores would be overwritten by those of predictions of other heads."""
    judge_run(runs[0])
    left = [(runs[0] / name).read_bytes() for name in ("summary.json", "report.html")]
    with pytest.raises(InputError, match=r"other: its labels are not those that .*good was judged"):
        judge_run(runs[0], other_labels)
    assert left == [(runs[0] / name).read_bytes() for name in ("summary.json", "report.html")]
    judge_run(runs[0], shutil.copytree(task, tmp_path / "copy"))
    record_property("figure", "other labels refused and nothing overwritten, a copy taken")


def test_runs_over_other_cases_are_refused(runs, other_labels, tmp_path):
    """Even where the two tasks say the same of themselves."""
    judge_run(runs[0])
    rewrite(runs[1], task=str(other_labels))
    judge_run(runs[1])
    refused(runs[:2], tmp_path, "labels are not those", "shifted")


def test_runs_over_other_splits_are_refused(runs, tmp_path):
    split.save(SPLIT._replace(train=("BRATS_006",)), runs[1] / "splits.json")
    refused(runs[:2], tmp_path, "shifted", "split", "good")


def test_one_run_is_no_comparison(runs, tmp_path):
    refused(runs[:1], tmp_path, "two or more")
    refused([runs[0], runs[0]], tmp_path, "each once")
    (tmp_path / "link").symlink_to(runs[0])
    refused([runs[0], tmp_path / "link"], tmp_path, "each once")


def test_what_is_no_finished_run_is_refused(runs, tmp_path):
    refused([runs[0], tmp_path], tmp_path, "config.json")
    (runs[1] / "predictions" / "BRATS_003.nii.gz").unlink()
    refused(runs[:2], tmp_path, "no prediction of case BRATS_003")
    (runs[1] / "summary.json").unlink()
    refused(runs[:2], tmp_path, "shifted", "summary.json", "come to its end")
    whole = json.loads((runs[0] / "summary.json").read_text())
    for content, words in (
        ("{}", "task, dataset_json, "),
        ("7", "holds no JSON object"),
        ("[]", "holds no JSON object"),
        ("{", "cannot be read"),
        (json.dumps(whole | {"seconds": "long"}), "summary.json: seconds: missing or not"),
        (json.dumps(whole | {"seconds": float("nan")}), "summary.json: seconds: missing or not"),
        (json.dumps(whole | {"peak_memory_bytes": "x"}), "peak_memory_bytes: missing or not"),
    ):
        (runs[1] / "summary.json").write_text(content)
        refused(runs[:2], tmp_path, "summary.json", words)


def refused(paths, tmp_path, *words):
    with pytest.raises(InputError) as error:
        compare(paths, tmp_path / "out")
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("found", [{}, 3, {"iou": {"pooled_foreground_mean": "much"}}])
def test_a_baseline_that_is_damaged_counts_as_none(runs, found):
    path = runs[0] / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"voxelwise classifier": found}))
    assert read_run(runs[0]).baseline is None


def test_a_patch_size_that_is_none_is_named(runs, tmp_path):
    path = runs[1] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"patch_size": 5}))
    refused(runs[:2], tmp_path, "config.json: cannot be read as a configuration: patch_size 5")


# On the command line


def test_the_verbs_lead_here(runs, task, tmp_path, capsys):
    assert cli.main(["evaluate", str(runs[0])]) == 0
    assert "held-out mean foreground IoU: 1.000" in capsys.readouterr().out
    predictions = str(runs[1] / "predictions")
    out = str(tmp_path / "out")
    assert cli.main(["evaluate", predictions, "--data", str(task), "--output", out]) == 0
    assert (tmp_path / "out" / "report.html").exists()
    assert cli.main(["compare", str(runs[0]), str(runs[1]), "--output", out]) == 0
    assert (tmp_path / "out" / "comparison.html").exists()


def test_their_errors_are_one_line(runs, tmp_path, capsys):
    for arguments, words in (
        (["evaluate", str(tmp_path)], "expected --data"),
        (["evaluate", str(tmp_path / "no")], "no: no such folder, expected that of a run or of"),
        (["evaluate", str(runs[0]), "--output", "x"], "expected no other"),
        (["compare", str(runs[0])], "two or more"),
    ):
        assert cli.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert words in error


def test_an_output_that_cannot_be_is_one_line(runs, task, capsys):
    blocked = runs[0] / "config.json" / "out"
    for arguments in (
        ("evaluate", str(runs[0] / "predictions"), "--data", str(task)),
        ("compare", *map(str, runs)),
        ("inspect", str(task)),
    ):
        assert cli.main([*arguments, "--output", str(blocked)]) == 2
        error = capsys.readouterr().err
        assert error == f"error: {blocked}: cannot be written: Not a directory\n"


def test_whether_it_can_be_written_is_asked_before_the_scores(runs, task, tmp_path, monkeypatch):
    def refuse(path):
        raise InputError(f"{path}: cannot be written")

    for module in (judging, comparison):
        monkeypatch.setattr(module, "require_writable", refuse)
    monkeypatch.setattr(judging, "evaluate", lambda *_: pytest.fail("scored"))
    for call in (
        lambda: judge_run(runs[0]),
        lambda: judge_predictions(runs[0] / "predictions", task, tmp_path),
        lambda: compare(runs, tmp_path),
    ):
        with pytest.raises(InputError, match="cannot be written"):
            call()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "the following arguments are required: VERB"),
        ("judge", "invalid choice: 'judge'"),
        ("compare", "the following arguments are required: RUN"),
        ("train --epochs few", "argument --epochs: invalid int value: 'few'"),
        ("train --data=", "argument --data: got nothing, expected a text; see minibrain train "),
        ("compare RUN ''", "argument RUN: got nothing, expected a text"),
        ("inspect A B", "unrecognized arguments: B; see minibrain inspect --help"),
        ("train --patch-size 16 16", "argument --patch-size: expected 3 arguments"),
        ("predict RUN A.nii --output O --whole --patch-size 8 8 8", "not allowed with"),
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_2(line, words, capsys):
    with pytest.raises(SystemExit) as ending:
        cli.main(shlex.split(line))
    assert ending.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert error.endswith(" --help\n")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train --batch-size 0", "--batch-size: got 0, expected a finite number above 0"),
        ("train --clip-norm -1", "--clip-norm: got -1.0, expected a finite number above 0"),
        ("train --network vgg", "--network: got 'vgg', expected one of brain_3d, "),
        ("explain --steps -1", "--steps: got -1, expected 0 or more"),
        ("compare RUN", "RUN: got RUN, expected two or more, each once"),
        ("gradcheck vgg", "NAME: got 'vgg', expected some of conv, "),
    ],
)
def test_an_argument_is_named_as_it_was_given(line, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(shlex.split(line)) == 2
    assert capsys.readouterr().err.startswith(f"error: argument {said}")


def test_a_folder_with_the_name_of_an_option_is_no_option(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    assert cli.main(["train", "--resume", "data"]) == 2
    expected = "data: holds no config.json, expected the folder of a run"
    assert capsys.readouterr().err == f"error: {expected}\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk here is always full")
@pytest.mark.parametrize("buffered", ["", "1"])
def test_an_output_that_is_full_is_one_line(buffered):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "minibrain", "gradcheck", "relu"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": buffered},
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "error: standard output: No space left on device\n"


def test_one_case_gives_a_difference_but_no_interval(task, tmp_path, capsys):
    one = split.Split(("BRATS_001",), ("BRATS_005",), TEST[:1])
    runs = [make_run(task, tmp_path / name, change) for name, change in CHANGES.items()]
    for run in runs:
        split.save(one, run / "splits.json")
    content = json.loads(compare(runs, tmp_path / "out").with_suffix(".json").read_text())
    dice = content[1]["difference_from_the_first"]["dice"]["pooled_foreground_mean"]
    assert dice["value"] < 0
    assert dice["interval"] == [None, None]
    assert "interval" not in capsys.readouterr().out


def test_a_warning_is_one_line(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli._exit_code(lambda: warnings.warn("channel 2 is constant", stacklevel=2)) == 0
    assert capsys.readouterr().err == "warning: channel 2 is constant\n"


def test_too_little_memory_is_one_line(capsys):
    def take():
        raise MemoryError("Unable to allocate 9 TiB\nmore")

    assert cli._exit_code(take) == 2
    expected = "error: more memory is needed than there is: Unable to allocate 9 TiB\n"
    assert capsys.readouterr().err == expected


# What is known of a run


def test_settings_are_the_rows_of_the_references_comparison(runs):
    settings = read_run(runs[0]).settings
    texts = {name: setting["text"] for name, setting in settings.items()}
    assert texts == {
        "Parameters": "341,300",
        "Batch size": "2",
        "Learning rate": "0.002",
        "Initialiser": "he",
        "Channels kept": "FLAIR, T1w",
        "Patch": "whole",
        "Epochs": "3",
        "Training time": "1 h 02 min",
        "Peak memory": "2.50 GB",
        "Device": "cpu",
    }
    assert np.isnan(read_run(runs[0]).history[0]["validation_iou"])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(59.4, "59 s"), (59.6, "1 min 00 s"), (3599, "59 min 59 s"), (7200, "2 h 00 min")],
)
def test_times_are_said_in_the_units_that_people_use(runs, seconds, text):
    path = runs[0] / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": seconds}))
    assert read_run(runs[0]).settings["Training time"] == {"value": seconds, "text": text}


def test_the_cost_of_all_blocks_adds_up_and_memory_is_the_highest(tmp_path, monkeypatch):
    path = Path(tmp_path, "cost.json")
    assert read_cost(path) == {"seconds": 0, "peak_memory_bytes": 0}
    monkeypatch.setattr(
        "minibrain.runs.cost.time.perf_counter", iter([10, 12.5, 100, 101]).__next__
    )
    peaks = iter([700, 300])
    monkeypatch.setattr("minibrain.runs.cost._peak", lambda device: next(peaks))
    with pytest.raises(ZeroDivisionError), measured(path, "cpu"):
        raise ZeroDivisionError
    assert read_cost(path) == {"seconds": 2.5, "peak_memory_bytes": 700}
    with measured(path, "cpu"):
        pass
    assert read_cost(path) == {"seconds": 3.5, "peak_memory_bytes": 700}


@pytest.mark.parametrize(
    "damaged",
    ['{"seconds": "x", "peak_memory_bytes": 1}', '{"seconds": 1, "peak_memory_bytes": NaN}', "[1]"],
)
def test_a_cost_that_cannot_be_read_begins_anew(tmp_path, damaged):
    path = Path(tmp_path, "cost.json")
    path.write_text(damaged)
    assert read_cost(path) == {"seconds": 0, "peak_memory_bytes": 0}


def test_a_cost_that_cannot_be_written_hides_no_other_error(tmp_path):
    path = tmp_path / "gone" / "cost.json"
    with pytest.raises(ZeroDivisionError), measured(path, "cpu"):
        raise ZeroDivisionError
    with pytest.raises(InputError, match=r"cost\.json"), measured(path, "cpu"):
        pass


def test_memory_before_a_block_does_not_count(tmp_path):
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux forgets")
    large = np.ones(20_000_000)  # 160 MB
    del large
    with measured(tmp_path / "cost.json", "cpu"):
        pass
    little = read_cost(tmp_path / "cost.json")["peak_memory_bytes"]
    with measured(tmp_path / "other.json", "cpu"):
        np.ones(20_000_000)
    assert read_cost(tmp_path / "other.json")["peak_memory_bytes"] > little + 130_000_000
