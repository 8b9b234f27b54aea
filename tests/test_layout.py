"""The promises of the layout: imports go downwards, operations come in pairs, little code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import minibrain
from minibrain import functional

PACKAGE = Path(minibrain.__file__).parent
FILES = {
    ".".join(("minibrain", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in PACKAGE.rglob("*.py")
}

# From the ground up. Modules that share a floor may import each other, though never in a circle.
FLOORS = [
    [f"minibrain.{name}" for name in floor.split()]
    for floor in (
        "errors",
        "arrays geometry saved duck_arrays philox files flops",
        "kernels",
        "functional",
        "parameter layers",
        "models",
        "optimizers metrics data training memory inference selftest",
        "runs report.plots",
        "evaluation report",
        "experiment",
        "prediction doctor study",
        "verbs",
        "cli",
        "__main__",
    )
]
# these stand on the three floors at the ground alone
GROUND = {"minibrain.data", "minibrain.metrics"}


def imports(name):
    """Every module of the package that this one imports, wherever in the file."""
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.partition(".")[0] == "minibrain")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            for alias in node.names:
                module = f"{node.module}.{alias.name}"  # `from minibrain import checkpoint`
                if module in FILES:
                    yield module
                elif node.module in FILES:
                    yield node.module


def floor(name):
    """Number of the floor on which the module, or the package it lies in, is."""
    numbers = [number for number, entries in enumerate(FLOORS) if is_in(name, entries)]
    assert numbers, f"{name} has no floor: give it one in this test"
    return numbers[0]


def is_in(name, packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("name", sorted(FILES.keys() - {"minibrain"}))
def test_imports_go_downwards(name):
    for imported in set(imports(name)) - {"minibrain"}:
        assert floor(imported) <= floor(name), f"{name} imports {imported} from above"
        if is_in(name, GROUND):
            allowed = is_in(imported, GROUND) or floor(imported) <= 2
            assert allowed, f"{name} imports {imported}: it stands on the ground alone"


def test_the_package_itself_imports_nothing():
    assert not list(imports("minibrain"))


def test_no_imports_go_in_a_circle():
    above = {name: set(imports(name)) for name in FILES}
    while free := {name for name, below in above.items() if not below & above.keys()}:
        for name in free:
            del above[name]
    assert not above, f"among {sorted(above)}"


def test_the_test_sees_the_imports():
    assert "minibrain.functional" in set(imports("minibrain.layers"))
    assert "minibrain.runs.checkpoint" in set(imports("minibrain.experiment"))
    assert floor("minibrain.functional.conv") == 3


def test_the_mathematics_stays_small():
    counted = ["minibrain.functional", "minibrain.layers", "minibrain.models"]
    lines = sum(
        len(path.read_text().splitlines()) for name, path in FILES.items() if is_in(name, counted)
    )
    assert lines < 2_500


OPERATIONS = """
    attention_gate batch_norm cce_dice_loss concat conv conv_transpose cross_entropy dice_loss
    dropout instance_norm max_pool relu sigmoid softmax upsample
"""


def test_operations_come_in_pairs():
    public = set(functional.__all__)
    for operation in OPERATIONS.split():
        assert {f"{operation}_forward", f"{operation}_backward"} <= public
    for name in public:
        operation, _, direction = name.rpartition("_")
        assert f"{operation}_{'backward' if direction == 'forward' else 'forward'}" in public
        assert callable(getattr(functional, name))


@pytest.mark.parametrize("name", functional.__all__)
def test_every_operation_is_explained(name):
    assert getattr(functional, name).__doc__


HEAVY = ["cupy", "torch", "matplotlib", "sklearn", "nibabel", "onnx"]


def test_importing_the_core_brings_in_nothing_heavy():
    """Only a fresh interpreter can tell; NumPy alone is needed to study or to train."""
    core = [
        "arrays",
        "functional",
        "models",
        "optimizers",
        "metrics",
        "training",
        "runs.checkpoint",
    ]
    program = "\n".join(
        [
            "import sys, minibrain",
            *(f"import minibrain.{module}" for module in [*core, "inference", "runs.checkpoint"]),
            f"loaded = set({HEAVY}) & set(sys.modules)",
            "assert not loaded, loaded",
        ]
    )
    subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=PACKAGE.parent, check=True, timeout=60
    )
