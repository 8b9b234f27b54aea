"""The main job on a GPU that is emulated: from files to scores, and on after an interruption."""

import csv
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import standin
import tiny_run
from emulator import emulated

from minibrain import experiment, models, prediction
from minibrain.data.phantom_task import write_task
from minibrain.models import UNet

RUNTIME = SimpleNamespace(
    CUDARuntimeError=RuntimeError,
    getDeviceCount=lambda: 1,
    getDeviceProperties=lambda number: {"name": b"an emulator"},
    memGetInfo=lambda: (2**33, 2**34),
)
CUPY = SimpleNamespace(
    __version__="of the tests",
    asarray=standin.asarray,
    get_default_memory_pool=standin.get_default_memory_pool,
    cuda=SimpleNamespace(
        Stream=standin.Stream,
        Device=lambda: SimpleNamespace(id=0, compute_capability="90"),
        runtime=RUNTIME,
    ),
)


@pytest.fixture
def gpu(monkeypatch):
    """Whoever imports CuPy gets the emulated device, with all that programs ask of a real one."""
    monkeypatch.setitem(sys.modules, "cupy", CUPY)
    with emulated() as emulator:
        yield emulator


def losses(folder):
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return [[float(row["train_loss"]), float(row["validation_loss"])] for row in rows]


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_the_main_job_on_a_gpu(precision, gpu, tmp_path, monkeypatch, capsys):
    judge = experiment.judge
    tiny_run.install(monkeypatch.setattr)
    monkeypatch.setattr(experiment, "judge", judge)
    # With batch norm, what rounding does to the gradient of a bias, which is 0, Adam makes a whole
    # step of: the running means that validation takes are as far apart after a run of five steps.
    tiny = partial(UNet, 3, channels=(3, 4), norm="instance", dropout=0.2)
    monkeypatch.setattr(models, "tiny", tiny)
    config = replace(
        tiny_run.CONFIG,
        epochs=2,
        device="auto",
        precision=precision,
        data=str(write_task(tmp_path / "Task01_BrainTumour", cases=6, size=(16, 16, 16))),
        output=str(tmp_path / "gpu"),
    )
    folder = experiment.run(config)
    assert f"self-test in {precision} on cuda: right" in capsys.readouterr().out
    assert {"augment.add_noise", "conv.correlate_4", "optimizers.adam"} <= set(gpu.launches)

    on_cpu = replace(config, device="cpu", precision="fp32", output=str(tmp_path / "cpu"))
    expected = losses(experiment.run(on_cpu))
    bound = 1e-5 if precision == "fp32" else 0.02
    np.testing.assert_allclose(losses(folder), expected, rtol=bound)

    short = experiment.run(replace(config, epochs=1, output=str(tmp_path / "interrupted")))
    experiment.resume(str(short), epochs=2)
    assert tiny_run.result(short) == tiny_run.result(folder)

    network = prediction.load_run(folder, device="cuda")
    (held_out,) = (folder / "predictions").glob("*.nii.gz")
    image = tmp_path / "Task01_BrainTumour" / "imagesTr" / held_out.name
    assert not prediction.predict_files(network, [image], tmp_path / "again")
    again = tmp_path / "again" / held_out.name
    assert np.array_equal(nibabel.load(again).dataobj, nibabel.load(held_out).dataobj)
