"""From image files to segmentations: in place in every orientation, case after case, in little
memory."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from minibrain import cli, experiment, models
from minibrain.data import phantom_task
from minibrain.data.decathlon import Task
from minibrain.errors import InputError
from minibrain.evaluation import judging
from minibrain.inference import predict_logits
from minibrain.models import UNet
from minibrain.optimizers import Adam
from minibrain.prediction import TrainedNetwork, find_cases, load_run, predict_files
from minibrain.runs import checkpoint
from minibrain.runs.config import CONFIGS, SMALL_2D, SMALL_3D, settled

AXIS_CODES = [
    tuple(pair[sign] for pair, sign in zip(axes, signs, strict=True))
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for signs in itertools.product((0, 1), repeat=3)
]
AFFINE = np.array([[1.0, 0, 0, -70], [0, 1.5, 0, 33], [0, 0, 2.5, 8], [0, 0, 0, 1]])


def trained(rank=3, channels=None, patch_size=None, recipe="zscore"):
    """A network that never was, for images of three channels."""
    seen = 3 if channels is None else len(channels)
    model = UNet(rank, seen, 3, channels=(4, 6), norm="none", seed=2)
    task = Task(None, "Tiny", ("a", "b", "c"), ("background", "edema", "core"), (), ())
    return TrainedNetwork(model, task, recipe, channels, patch_size)


def write_image(path, seed=0, shape=(18, 13, 10), channels=3):
    """Positive intensities in a block of an image in RAS+ axes."""
    array = np.zeros((*shape, channels), np.float32)
    block = array[2:-3, 3:-1, 1:-2]
    block[...] = np.random.default_rng(seed).uniform(1, 900, block.shape)
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array[..., 0] if channels == 1 else array, AFFINE), path)
    return path


def reorient(image, codes):
    wanted = axcodes2ornt(codes)
    return image.as_reoriented(ornt_transform(io_orientation(image.affine), wanted))


def voxels(path):
    return np.asarray(nibabel.load(path).dataobj)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# In place


@pytest.mark.parametrize("rank", [2, 3])
def test_every_orientation_is_predicted_alike_and_overlays_its_image(rank, tmp_path):
    """All 48 files hold the same brain; their predictions, turned back, are the same bytes."""
    straight = nibabel.load(write_image(tmp_path / "straight.nii.gz"))
    for codes in AXIS_CODES:
        (tmp_path / "in").mkdir(exist_ok=True)
        nibabel.save(reorient(straight, codes), tmp_path / "in" / f"{''.join(codes)}.nii")
    failures = predict_files(trained(rank), [tmp_path / "in"], tmp_path / "out", probabilities=True)
    assert failures == {}
    expected = voxels(tmp_path / "out" / "RAS.nii")
    assert len(np.unique(expected)) > 1
    for codes in AXIS_CODES:
        name = "".join(codes)
        image = nibabel.load(tmp_path / "in" / f"{name}.nii")
        segmentation = nibabel.load(tmp_path / "out" / f"{name}.nii")
        assert segmentation.shape == image.shape[:3]
        assert segmentation.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(segmentation.affine, image.affine)
        turned_back = reorient(segmentation, "RAS")
        np.testing.assert_array_equal(np.asarray(turned_back.dataobj), expected)
        probabilities = nibabel.load(tmp_path / "out" / f"{name}_probabilities.nii")
        np.testing.assert_array_equal(probabilities.affine, image.affine)
        classes = np.asarray(probabilities.dataobj).argmax(axis=-1)
        np.testing.assert_array_equal(classes, np.asarray(segmentation.dataobj))


def test_probabilities_are_a_distribution_and_background_is_certain_outside_the_box(tmp_path):
    """The brain's box of 28 x 16 x 16 is grown to 32 x 16 x 16."""
    path = write_image(tmp_path / "A.nii.gz", shape=(40, 30, 25))
    network = trained()
    array = voxels(path)
    array[:, :, 17:] = array[:, 19:] = array[30:] = 0
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    predict_files(network, [path], tmp_path / "out", probabilities=True)
    probabilities = voxels(tmp_path / "out" / "A_probabilities.nii.gz")
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (40, 30, 25, 3)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-5)
    certain = (probabilities == [1, 0, 0]).all(axis=-1)
    box = np.zeros((40, 30, 25), bool)
    box[0:32, 3:19, 1:17] = True
    assert certain[~box].all()
    assert not certain[box].any()


def test_what_the_network_sees_is_what_it_saw_in_training(tmp_path):
    """Recipe, channels and patch size are the run's; nothing but the predictions is written."""
    path = write_image(tmp_path / "in" / "A.nii.gz")
    network = trained(2, channels=(2, 0), patch_size=(8, 6))
    predict_files(network, [path], tmp_path / "out", overlap=0.25, mirror=True)
    block = voxels(path)[2:-3, 3:-1, 1:-2].astype(np.float64)
    prepared = np.zeros((16, 16, 16, 3), np.float32)  # the brain grown evenly, air around it
    middle = np.s_[1:14, 3:12, 4:11]
    prepared[middle] = (block - block.mean(axis=(0, 1, 2))) / block.std(axis=(0, 1, 2))
    options = {"patch_size": (8, 6), "overlap": 0.25, "mirror": True}
    logits = predict_logits(network.model, prepared, (2, 0), **options)
    segmentation = voxels(tmp_path / "out" / "A.nii.gz")
    expected = logits.argmax(axis=-1)[middle]
    assert (segmentation[2:-3, 3:-1, 1:-2] == expected).mean() > 0.999  # but for rounding
    assert names(tmp_path) == ["in", "out"]
    assert names(tmp_path / "in") == names(tmp_path / "out") == ["A.nii.gz"]


# Which cases


def test_files_folders_and_tasks_are_found(tmp_path):
    folder = tmp_path / "images"
    for name in ("B.nii.gz", "A.nii", "._A.nii", "notes.txt"):
        folder.mkdir(exist_ok=True)
        (folder / name).touch()
    single = tmp_path / "C.nii.gz"
    single.touch()
    cases = find_cases([single, str(folder)], 4)
    assert [case.name for case in cases] == ["C", "A", "B"]
    assert [case.images for case in cases] == [
        (single,),
        (folder / "A.nii",),
        (folder / "B.nii.gz",),
    ]
    assert {case.label for case in cases} == {None}


@pytest.mark.parametrize(
    ("files", "channels", "cases"),
    [
        (["A_0000", "A_0001", "B_0000", "B_0001"], 2, {"A": 2, "B": 2}),
        (["A_0000", "A_0001", "B_0000"], 2, {"A": 2, "B_0000": 1}),
        (["A_0001", "A_0002"], 2, {"A_0001": 1, "A_0002": 1}),  # no channels, but numbered cases
        (["A_0000", "A_0001", "A_0002"], 2, {"A": 2, "A_0002": 1}),
        (["A_0000", "B"], 1, {"A": 1, "B": 1}),
        (["0000", "0001"], 2, {"0000": 1, "0001": 1}),
    ],
)
def test_one_file_per_channel_is_one_case(files, channels, cases, tmp_path):
    for file in files:
        (tmp_path / f"{file}.nii.gz").touch()
    for inputs in ([tmp_path], sorted(tmp_path.iterdir())):
        found = find_cases(inputs, channels)
        assert {case.name: len(case.images) for case in found} == cases
        for case in found:
            assert list(case.images) == sorted(case.images)


def test_a_case_in_parts_is_predicted_as_in_one_file(tmp_path):
    whole = nibabel.load(write_image(tmp_path / "whole" / "A.nii.gz"))
    (tmp_path / "parts").mkdir()
    for channel in range(3):
        part = nibabel.Nifti1Image(np.asarray(whole.dataobj)[..., channel], AFFINE)
        nibabel.save(part, tmp_path / "parts" / f"A_{channel:04d}.nii.gz")
    for kind in ("whole", "parts"):
        predict_files(trained(), [tmp_path / kind], tmp_path / f"{kind}-out")
    one, other = (tmp_path / f"{kind}-out" / "A.nii.gz" for kind in ("whole", "parts"))
    assert one.read_bytes() == other.read_bytes()


def make_task(folder, test):
    write_image(folder / "imagesTr" / "T.nii.gz")
    (folder / "labelsTr").mkdir()
    shutil.copy(folder / "imagesTr" / "T.nii.gz", folder / "labelsTr" / "T.nii.gz")
    description = {
        "modality": {"0": "a", "1": "b", "2": "c"},
        "labels": {"0": "background", "1": "edema", "2": "core"},
        "training": [{"image": "./imagesTr/T.nii.gz", "label": "./labelsTr/T.nii.gz"}],
        "test": [f"./imagesTs/{name}.nii.gz" for name in test],
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def test_of_a_task_the_test_cases_are_predicted(tmp_path):
    task = tmp_path / "task"
    task.mkdir()
    for name in ("X", "Y", "unlisted"):
        write_image(task / "imagesTs" / f"{name}.nii.gz")
    make_task(task, ["X", "Y"])
    assert predict_files(trained(), [task], tmp_path / "out") == {}
    assert names(tmp_path / "out") == ["X.nii.gz", "Y.nii.gz"]


# Of a run

RUNS = {
    "attention": replace(CONFIGS["brain_3d_attention_small"], epochs=1),
    "patches": replace(SMALL_3D, epochs=2, recipe="zscore", patch_size=(16, 12, 16)),
    "slices": replace(SMALL_2D, epochs=1, channels=(2, 0), every=8),
    "slices of all channels": replace(SMALL_2D, epochs=1, channels=None, every=8),
}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "Task01_BrainTumour"
    phantom_task.write_task(folder, cases=4, size=(32, 32, 16))
    for kind in ("imagesTr", "labelsTr"):
        path = folder / kind / "BRATS_002.nii.gz"
        nibabel.save(reorient(nibabel.load(path), "PSL"), path)
    return folder


@pytest.mark.parametrize("config", RUNS.values(), ids=RUNS)
def test_a_run_predicts_files_as_it_predicted_its_held_out_cases(
    config, phantoms, tmp_path, capsys, monkeypatch
):
    """Byte for byte, from the run's folder and the images alone."""
    # the baseline would take longer to learn than the network
    nothing = lambda image: np.zeros(image.shape[:3], np.uint8)  # noqa: E731
    monkeypatch.setattr(judging, "voxelwise_classifier", lambda *_: nothing)
    places = {"data": str(phantoms), "output": str(tmp_path / "run")}
    run = experiment.run(replace(config, batch_size=3, device="cpu", **places))
    test = json.loads((run / "splits.json").read_text())["test"]
    shutil.rmtree(tmp_path / "prepared")
    images = [shutil.copy(phantoms / "imagesTr" / f"{name}.nii.gz", tmp_path) for name in test]
    network = load_run(run, device="cpu")
    assert predict_files(network, images, tmp_path / "out") == {}
    assert names(tmp_path / "out") == names(run / "predictions") == [f"{n}.nii.gz" for n in test]
    for name in names(tmp_path / "out"):
        predicted, expected = (folder / name for folder in (tmp_path / "out", run / "predictions"))
        assert predicted.read_bytes() == expected.read_bytes()
    assert not (tmp_path / "prepared").exists()
    shape = {"attention": "32, 32, 16, 4", "patches": "16, 12, 16, 4", "slices": "32, 32, 2"}
    shape["slices of all channels"] = "32, 32, 4"
    kind = next(kind for kind, other in RUNS.items() if other is config)
    assert re.search(rf"batches of \(\d, {shape[kind]}\)", capsys.readouterr().out)


def begin_run(folder, config, channels="abc"):
    """A run that has just begun, with a network that has learned nothing."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(asdict(settled(config))))
    task = {"name": "x", "channels": list(channels), "classes": ["background", "tumour"]}
    (folder / "task.json").write_text(json.dumps(task))
    seen = len(config.channels or channels)
    model = getattr(models, config.network)(in_channels=seen, classes=2)
    optimizer = Adam(model.named_parameters())
    checkpoint.save(folder / "checkpoints" / "best.npz", model, optimizer, {})
    return folder


@pytest.fixture
def run_folder(tmp_path):
    return begin_run(tmp_path / "run", SMALL_3D)


def test_the_exit_code_says_whether_all_is_well(run_folder, tmp_path, capsys):
    image = str(write_image(tmp_path / "in" / "A.nii.gz"))
    command = ["predict", str(run_folder), "--device", "cpu", "--output", str(tmp_path / "out")]
    assert cli.main([*command, image]) == 0
    assert capsys.readouterr().out == f"1 of 1 case written to {tmp_path / 'out'}\n"
    assert cli.main([*command, image]) == 2
    assert "already there" in capsys.readouterr().err
    Path(image).rename(tmp_path / "in" / "C.nii.gz")
    (tmp_path / "in" / "B.nii.gz").write_text("no image")
    assert cli.main([*command, "--probabilities", "--mirror", str(tmp_path / "in")]) == 1
    printed = capsys.readouterr()
    assert printed.out == f"1 of 2 cases written to {tmp_path / 'out'}\n"
    assert [line for line in printed.err.splitlines() if line.startswith("error: case B: ")]
    assert names(tmp_path / "out") == ["A.nii.gz", "C.nii.gz", "C_probabilities.nii.gz"]


def test_where_nothing_is_written_there_is_no_folder(run_folder, tmp_path, capsys):
    (tmp_path / "A.nii.gz").write_text("no image")
    command = ["predict", str(run_folder), str(tmp_path / "A.nii.gz"), "--device", "cpu"]
    assert cli.main([*command, "--output", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().out == f"0 of 1 case written to {tmp_path / 'out'}\n"
    assert not (tmp_path / "out").exists()


def test_a_run_that_did_not_know_of_precision_had_that_of_the_device(run_folder):
    config = json.loads((run_folder / "config.json").read_text())
    del config["precision"]
    (run_folder / "config.json").write_text(json.dumps(config))
    assert load_run(run_folder, device="cpu").model.dtype == np.float32


@pytest.mark.parametrize(
    ("arguments", "patch_size"),
    [([], (8, 8, 12)), (["--patch-size", "12", "8", "8"], (12, 8, 8)), (["--whole"], None)],
)
def test_windows_are_those_of_the_training_unless_others_are_asked_for(
    arguments, patch_size, tmp_path
):
    run = begin_run(tmp_path / "run", replace(SMALL_3D, patch_size=(8, 8, 12)))
    image = write_image(tmp_path / "A.nii.gz")
    output = tmp_path / "out"
    command = ["predict", str(run), str(image), "--device", "cpu", "--output", str(output)]
    assert cli.main([*command, "--probabilities", *arguments]) == 0
    network = replace(load_run(run, device="cpu"), patch_size=patch_size)
    expected = tmp_path / "expected"
    predict_files(network, [image], expected, probabilities=True)
    for name in ("A.nii.gz", "A_probabilities.nii.gz"):
        assert (output / name).read_bytes() == (expected / name).read_bytes()


def test_a_2d_network_takes_no_windows(tmp_path, capsys):
    run = begin_run(tmp_path / "run", SMALL_2D)
    command = ["predict", str(run), str(tmp_path), "--output", str(tmp_path / "out")]
    assert cli.main([*command, "--device", "cpu", "--patch-size", "8", "8", "8"]) == 2
    found = "argument --patch-size: got (8, 8, 8) for slices"
    assert capsys.readouterr().err == f"error: {found}, expected it for volumes\n"


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", None, "holds no config.json, expected the folder of a run"),
        ("config.json", b"[]", "config.json: cannot be read as a configuration"),
        (
            "config.json",
            b'{"network": "UNet", "epochs": 1, "batch_size": 1, "learning_rate": 1}',
            "network 'UNet' is none of brain_3d",
        ),
        ("task.json", None, "task.json: cannot be read as the names of a task"),
        ("task.json", b'{"name": "x", "classes": 3, "channels": ["a"]}', "task.json"),
        ("best.npz", None, "best.npz: cannot be read as a checkpoint"),
        ("best.npz", b"PK", "best.npz: cannot be read as a checkpoint"),
    ],
)
def test_what_is_no_run_is_one_clear_error(file, content, words, run_folder):
    path = run_folder / ("checkpoints" if file == "best.npz" else "") / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=words) as error:
        load_run(run_folder, device="cpu")
    assert "\n" not in str(error.value)


def test_patches_are_for_volumes_and_must_suit_the_network(phantoms, tmp_path):
    patches, slices = RUNS["patches"], RUNS["slices"]
    for config, words in [
        (
            replace(patches, patch_size=(16, 16, 18)),
            "patch_size: got .*, expected 3 multiples of 4",
        ),
        (replace(slices, patch_size=(16, 16, 16)), "patch_size: got .* for slices"),
        (replace(slices, channels=None, patch_size=(16, 16)), "patch_size: got .* for slices"),
    ]:
        output = tmp_path / "run"
        with pytest.raises(InputError, match=words):
            experiment.run(replace(config, data=str(phantoms), output=str(output), device="cpu"))
        assert not output.exists()


# What can go wrong


def test_a_case_that_fails_is_reported_and_the_others_go_on(tmp_path, capsys):
    folder = tmp_path / "in"
    for seed, name in enumerate("ABCDE"):
        write_image(folder / f"{name}.nii.gz", seed, channels=2 if name == "D" else 3)
    damaged = folder / "B.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    (folder / "C.nii.gz").write_text("<html>not found</html>")
    failures = predict_files(trained(), [folder], tmp_path / "out")
    assert list(failures) == ["B", "C", "D"]
    assert "channels: 2, expected 3" in failures["D"]
    assert names(tmp_path / "out") == ["A.nii.gz", "E.nii.gz"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[:2] for line in lines] == [["error", f" case {name}"] for name in "BCD"]
    assert str(damaged) in lines[0]


def test_an_error_that_is_not_the_users_names_its_kind_and_an_interruption_ends(
    tmp_path, monkeypatch
):
    write_image(tmp_path / "A.nii.gz")
    network = trained()

    def fail(error):
        def forward(x):
            raise error

        monkeypatch.setattr(network.model, "forward", forward)
        return predict_files(network, [tmp_path / "A.nii.gz"], tmp_path / "out")

    assert fail(MemoryError("of 9 GB")) == {"A": "MemoryError: of 9 GB"}
    with pytest.raises(KeyboardInterrupt):
        fail(KeyboardInterrupt())
    assert not (tmp_path / "out").exists()


def test_nothing_that_is_there_is_overwritten(tmp_path):
    for name in "AB":
        write_image(tmp_path / "in" / f"{name}.nii.gz")
    before = {path: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    with pytest.raises(InputError, match=r"A\.nii\.gz: already there, expected"):
        predict_files(trained(), [tmp_path / "in"], tmp_path / "in")
    assert {path: path.read_bytes() for path in (tmp_path / "in").iterdir()} == before
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "B_probabilities.nii.gz").write_text("precious")
    with pytest.raises(InputError, match="B_probabilities"):
        predict_files(trained(), [tmp_path / "in"], tmp_path / "out", probabilities=True)
    assert names(tmp_path / "out") == ["B_probabilities.nii.gz"]
    assert predict_files(trained(), [tmp_path / "in"], tmp_path / "out") == {}


def test_impossible_requests_are_refused_before_anything_is_written(tmp_path):
    image = write_image(tmp_path / "in" / "A.nii.gz")
    other = write_image(tmp_path / "other" / "A.nii.gz")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    task = tmp_path / "task"
    task.mkdir()
    make_task(task, [])
    out, ready = tmp_path / "out", trained()
    for network, inputs, output, options, words in [
        (ready, [tmp_path / "nowhere"], out, {}, "nowhere: no such file or folder"),
        (ready, [tmp_path / "empty"], out, {}, "empty: holds no images"),
        (ready, [task], out, {}, "task: holds no images"),
        (ready, [image, other], out, {}, "A.nii.gz: 2 images ask for it"),
        (ready, [image], tmp_path / "file", {}, "file: cannot be written: Not a directory"),
        (ready, [image], out, {"overlap": 1}, "overlap: got 1"),
        (trained(patch_size=(7, 8, 8)), [image], out, {}, "patch_size: got"),
    ]:
        with pytest.raises(InputError, match=words):
            predict_files(network, inputs, output, **options)
        assert not out.exists()


def test_progress_is_shown_on_a_terminal_only(tmp_path, capsys, monkeypatch):
    image = write_image(tmp_path / "A.nii.gz")
    predict_files(trained(), [image], tmp_path / "out")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    predict_files(trained(), [image], tmp_path / "again")
    assert "predict: 100%" in capsys.readouterr().err


# In little memory

PREDICT = """
import sys
from pathlib import Path
from minibrain import cli

assert cli.main(sys.argv[1:]) == 0
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for the peak")
@pytest.mark.parametrize(
    ("name", "recipe"), [("brain_3d", "zscore"), ("brain_3d_attention", "reference")]
)
def test_a_full_size_case_needs_at_most_a_gigabyte(name, recipe, tmp_path, record_property):
    """From file to files. Nothing of the image is air: z-scores then keep all of it."""
    config = replace(CONFIGS[name], recipe=recipe, patch_size=(96, 96, 96))
    run = begin_run(tmp_path / "run", config, channels="abcd")
    image = np.random.default_rng(0).uniform(1, 2, (240, 240, 155, 4)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(image, AFFINE), tmp_path / "case.nii")
    command = [sys.executable, "-c", PREDICT, "predict", run, tmp_path / "case.nii"]
    command += ["--output", tmp_path / "out", "--probabilities", "--device", "cpu"]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert voxels(tmp_path / "out" / "case_probabilities.nii").shape == (240, 240, 155, 2)
    peak = int(result.stdout.split()[-1]) * 1024
    assert peak <= 1e9, f"{peak / 1e6:.0f} MB"
    record_property("figure", f"{peak / 1e6:.0f} MB")
