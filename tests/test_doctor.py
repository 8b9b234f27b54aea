"""The doctor says what is here, and sees arithmetic that is wrong."""

import subprocess
import sys

from minibrain import kernels
from minibrain.cli import main
from minibrain.models import UNet
from minibrain.optimizers import Adam
from minibrain.runs import checkpoint


def test_the_doctor_finds_this_machine_sound(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for word in ("minibrain", "numpy", "threads", "NVRTC", "GPU", "self-test on cpu", "right"):
        assert word in printed


def test_the_doctor_sees_a_wrong_twin(monkeypatch, capsys):
    find = kernels._find_twin

    def find_wrong(package, module, name):
        twin = find(package, module, name)
        if name != "conv_backward":
            return twin

        def wrong(*arguments, **options):
            result = twin(*arguments, **options)
            return result if result is NotImplemented else (result[0], result[1] * 1.01, result[2])

        return wrong

    monkeypatch.setattr(kernels, "_find_twin", find_wrong)
    assert main(["doctor"]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_nobody_has_to_read_to_the_end(tmp_path):
    """As in `minibrain doctor | head -1`: what is left to print is no error."""
    network = UNet(2, 1, 2, channels=(2, 3))
    checkpoint.save(tmp_path / "last.npz", network, Adam(network.named_parameters()), {})
    with subprocess.Popen(
        [sys.executable, "-m", "minibrain", "doctor", tmp_path / "last.npz"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_the_doctor_looks_into_a_checkpoint(tmp_path, capsys):
    path = tmp_path / "last.npz"
    network = UNet(2, 1, 2, channels=(2, 3))
    checkpoint.save(path, network, Adam(network.named_parameters()), {"progress": {"epoch": 7}})
    assert main(["doctor", str(path)]) == 0
    printed = capsys.readouterr().out
    for word in ("epoch", "7", "network/bottleneck.conv1.weight", "(3, 3, 2, 3)"):
        assert word in printed
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["doctor", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}: cannot be read as a checkpoint")
    assert main(["doctor", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("as a checkpoint: a folder, expected a file\n")
