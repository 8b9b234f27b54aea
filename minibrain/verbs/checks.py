"""Verbs that look at what is there: the cases of a task, this installation, a checkpoint."""

from pathlib import Path

from minibrain.verbs.parser import add_verb


def declare_inspect(verbs) -> None:
    add = add_verb(
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


def declare_doctor(verbs) -> None:
    add_verb(
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
