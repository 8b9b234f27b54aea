"""What was promised beside what the tests measured.

    pytest -m '' -o junit_family=xunit1 --junitxml=report.xml $(python tests/reliability_table.py)
    python tests/reliability_table.py report.xml

Without a report it names the files with the tests, with one or more it writes RELIABILITY.md: what
a later one has replaces what an earlier one has. -m '' includes the slow tests.
"""

import platform
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

TABLE = Path(__file__).with_name("RELIABILITY.md")
PROMISES = {  # what is promised: (its file, its tests)
    "kill -9 at random times, 20 in CI: 0 unreadable, every final bit-equal": (
        "test_reliability.py",
        ["test_killed_at_random_times"],
    ),
    "the same, 200 nightly": ("test_reliability.py", ["test_killed_at_random_times_often"]),
    "stop at every iteration of a 3-epoch run, resume: 100 % bit-equal": (
        "test_reliability.py",
        ["test_stopped_at_every_iteration_and_resumed"],
    ),
    "disk full at 50 write offsets: the previous checkpoint loads, the error names the path": (
        "test_reliability_files.py",
        ["test_full_disk_at_50_offsets"],
    ),
    "any write of a run fails: the error names the path, resuming loses nothing": (
        "test_reliability.py",
        ["test_nothing_is_lost_where_a_file_cannot_be_written"],
    ),
    "1,000 bit flips of a checkpoint: 0 silent": (
        "test_reliability_files.py",
        ["test_flipped_bits"],
    ),
    "1,000 truncations of a checkpoint: 0 silent": (
        "test_reliability_files.py",
        ["test_truncations"],
    ),
    "20 hostile checkpoints: nothing executed, memory growth < 200 MB": (
        "test_reliability_files.py",
        ["test_a_forged_file_is_refused"],
    ),
    "fuzzed checkpoints: refused, or read right": ("test_reliability_files.py", ["test_fuzz"]),
    "corrupt NIfTI, 500 flips: 0 silent": (
        "test_nifti.py",
        ["test_bit_flips_in_a_compressed_file_are_never_silent"],
    ),
    "corrupt NIfTI, 400 truncations: all refused": (
        "test_nifti.py",
        ["test_every_truncation_is_refused"],
    ),
    "NIfTI header fuzz: no foreign exception": (
        "test_nifti.py",
        [
            "test_mutated_header_bytes_raise_nothing_foreign",
            "test_mutated_header_fields_raise_nothing_foreign",
        ],
    ),
    "dataset.json fuzz: no foreign exception, no path outside the root": (
        "test_decathlon.py",
        [
            "test_mutated_descriptions_raise_only_task_errors",
            "test_paths_that_leave_the_folder_are_refused_unopened",
            "test_links_that_leave_the_folder_are_refused_unopened",
        ],
    ),
    "check of a dataset with many faults: reports all": (
        "test_inspection.py",
        ["test_every_fault_of_a_broken_task_is_reported_at_once"],
    ),
    "label round trip: exact through every dtype": (
        "test_nifti.py",
        ["test_labels_survive_every_type"],
    ),
    "48 axis codes: the prediction overlays the input exactly": (
        "test_prepare.py",
        ["test_every_orientation_is_prepared_alike_and_restored_to_itself"],
    ),
    "prediction memory, 240x240x155x4: at most 1.0 GB": (
        "test_prediction.py",
        ["test_a_full_size_case_needs_at_most_a_gigabyte"],
    ),
    "SIGINT, SIGTERM: saved within one step, exit 130 and 143, resume exact": (
        "test_reliability.py",
        ["test_a_signal_saves_within_one_step"],
    ),
    "a second signal ends at once": ("test_reliability.py", ["test_a_second_signal_ends_at_once"]),
    "two runs in one folder: the second is refused naming the pid; free after kill -9": (
        "test_reliability.py",
        ["test_a_second_run_is_refused_until_the_first_is_killed"],
    ),
    "not finite: the step is skipped, the cases named, N in a row are an error": (
        "test_reliability.py",
        [
            "test_a_step_without_finite_loss_is_skipped",
            "test_many_in_a_row_are_an_error_and_the_weights_stay",
        ],
    ),
    "threads 1, 2, 4: identical bits": (
        "test_cpu_twins.py",
        ["test_the_number_of_threads_does_not_change_a_bit"],
    ),
}


def measured(cases: list[ET.Element]) -> str:
    """How many of these tests passed, and the figures they recorded."""
    failed = [case for case in cases if {"failure", "error"} & {child.tag for child in case}]
    skipped = [case for case in cases if case.find("skipped") is not None]
    if failed:
        return f"FAILED: {', '.join(case.get('name') for case in failed)}"
    if len(skipped) == len(cases):
        return "not run"
    figures = [p.get("value") for case in cases for p in case.iter("property")]
    megabytes = [int(figure.removesuffix(" MB")) for figure in figures if figure.endswith(" MB")]
    if megabytes:
        figures = [f"at most {max(megabytes)} MB"]
    passed = f"{len(cases) - len(skipped)} passed" if len(cases) > 1 or not figures else ""
    return "; ".join(filter(None, [passed, *dict.fromkeys(figures)]))


def main(reports: list[str]) -> None:
    by_test: dict[str, list[ET.Element]] = {}
    for report in reports:
        found: dict[str, list[ET.Element]] = {}
        for case in ET.parse(report).iter("testcase"):
            found.setdefault(case.get("name").partition("[")[0], []).append(case)
        by_test |= found
    lines = [
        "# Promised and measured",
        "",
        f"Made by `reliability_table.py` from a run of the tests on {platform.system()} "
        f"{platform.machine()}, Python {platform.python_version()}.",
        "",
        "| promised | measured | test |",
        "| --- | --- | --- |",
    ]
    for promise, (file, tests) in PROMISES.items():
        figures = measured([case for test in tests for case in by_test.get(test, [])])
        lines.append(f"| {promise} | {figures} | {file}: {', '.join(tests)} |")
    TABLE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(*sorted({f"tests/{file}" for file, _ in PROMISES.values()}))
    else:
        main(sys.argv[1:])
