"""The doctor says what is here, and sees arithmetic that is wrong."""

from minibrain import kernels
from minibrain.cli import main


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
