"""What was promised beside what the tests measured.

    pytest -m '' -o junit_family=xunit1 --junitxml=report.xml $(python tests/reliability_table.py)
    python tests/reliability_table.py report.xml

Without a report it names the files with the tests, with one or more it writes RELIABILITY.md: what
a later one has replaces what an earlier one has. -m '' includes the slow tests.
"""

import base64
import platform
import re
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
    "kill -9 in the first checkpoint, and nightly before every fsync and rename of a run": (
        "test_reliability.py",
        ["test_killed_while_the_first_checkpoint_is_written", "test_killed_at_every_write"],
    ),
    "stop at every iteration of a 3-epoch run, resume: 100 % bit-equal": (
        "test_reliability.py",
        ["test_stopped_at_every_iteration_and_resumed"],
    ),
    "disk full at 50 write offsets: the previous checkpoint loads, the error names the path": (
        "test_reliability_files.py",
        ["test_full_disk_at_50_offsets"],
    ),
    "any write of a run fails: the error names the path, the run goes on from its last checkpoint, "
    "or anew": (
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
    "corrupt NIfTI, 60 made by hand: all refused, naming the file": (
        "test_nifti.py",
        [
            "test_headers_that_cannot_be_right_are_refused",
            "test_what_is_no_nifti_is_refused",
            "test_names_that_are_no_readable_file_are_refused_without_waiting",
            "test_wrong_labels_are_listed",
            "test_bytes_after_the_voxels_are_refused",
            "test_a_gzip_bomb_is_refused_from_its_header",
            "test_float64_beyond_float32_is_not_finite",
            "test_nonfinite_voxels_are_refused_or_repaired_and_counted",
            "test_an_intensity_image_given_as_label_lists_ten_values",
        ],
    ),
    "NIfTI header fuzz, 2,000 in CI: no foreign exception": (
        "test_nifti.py",
        [
            "test_mutated_header_bytes_raise_nothing_foreign",
            "test_mutated_header_fields_raise_nothing_foreign",
        ],
    ),
    "dataset.json fuzz, 2,000 in CI: no foreign exception, no path outside the root": (
        "test_decathlon.py",
        [
            "test_mutated_descriptions_raise_only_task_errors",
            "test_paths_that_leave_the_folder_are_refused_unopened",
            "test_links_that_leave_the_folder_are_refused_unopened",
        ],
    ),
    "fuzzing by coverage, nightly where atheris is installed: no foreign exception": (
        "test_fuzz.py",
        ["test_no_input_raises_a_foreign_exception"],
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
    "the same, through networks and files": (
        "test_prediction.py",
        ["test_every_orientation_is_predicted_alike_and_overlays_its_image"],
    ),
    "prediction memory, 240x240x155x4, from file to file: at most 1.0 GB": (
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
    "what permissions forbid: one line that names it": (
        "test_files.py",
        ["test_what_permissions_forbid_is_one_line_that_names_it"],
    ),
    "a prepared case that changes on the disk: seen, prepared again": (
        "test_prepare.py",
        ["test_a_bit_that_has_flipped_in_the_cache_is_seen"],
    ),
    "a run is judged again, and compared, only by the labels it was judged by": (
        "test_judging.py",
        [
            "test_a_run_is_not_judged_again_by_other_labels",
            "test_runs_over_other_cases_are_refused",
        ],
    ),
    "threads 1, 2, 4: identical bits": (
        "test_cpu_twins.py",
        ["test_the_number_of_threads_does_not_change_a_bit"],
    ),
    "workers 1, 3: identical bits": (
        "test_prepare.py",
        ["test_prepared_cases_are_mapped_arrays_of_what_prepare_image_gives"],
    ),
    "20 identical runs on a GPU: identical bits": (
        "cuda/test_identical_runs.py",
        ["test_20_runs_on_a_gpu_are_identical"],
    ),
    "the same by its kernels emulated on a CPU, in 20 orders and on other memory": (
        "cuda/test_identical_runs.py",
        ["test_20_emulated_runs_are_identical"],
    ),
}


def measured(cases: list[ET.Element], examples: int) -> str:
    """How many of these tests passed, how many files and examples they tried, their figures."""
    failed = [case for case in cases if {"failure", "error"} & {child.tag for child in case}]
    skipped = [case for case in cases if case.find("skipped") is not None]
    if failed:
        return f"FAILED: {', '.join(case.get('name') for case in failed)}"
    if len(skipped) == len(cases):
        reasons = sorted({case.find("skipped").get("message") for case in skipped})
        return ": ".join(["not run", *reasons])
    properties = [(p.get("name"), p.get("value")) for case in cases for p in case.iter("property")]
    figures = [value for name, value in properties if name == "figure"]
    megabytes = [int(figure.removesuffix(" MB")) for figure in figures if figure.endswith(" MB")]
    if megabytes:
        figures = [f"at most {max(megabytes)} MB"]
    refused = sum(int(value) for name, value in properties if name == "refused")
    counts = [
        f"{len(cases) - len(skipped)} passed" if len(cases) > 1 or not figures else "",
        f"{refused} files refused" if refused else "",
        f"{examples:,} examples" if examples else "",
    ]
    return "; ".join(filter(None, [*counts, *dict.fromkeys(figures)]))


def read(report: str) -> tuple[dict[str, list[ET.Element]], dict[str, int]]:
    """The cases of every test, and how many examples hypothesis has tried in it."""
    tree, cases, examples = ET.parse(report), {}, {}
    for case in tree.iter("testcase"):
        cases.setdefault(case.get("name").partition("[")[0], []).append(case)
    for found in tree.iterfind("./testsuite/properties/property"):
        if found.get("name").startswith("hypothesis-statistics-"):
            test = found.get("name").rpartition("::")[2]
            statistics = base64.b64decode(found.get("value")).decode()
            examples[test] = sum(map(int, re.findall(r"(\d+) passing", statistics)))
    return cases, examples


def main(reports: list[str]) -> None:
    by_test, examples = {}, {}
    for report in reports:
        cases, tried = read(report)
        by_test |= cases
        examples |= tried
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
        found = [case for test in tests for case in by_test.get(test, [])]
        figures = measured(found, sum(examples.get(test, 0) for test in tests))
        lines.append(f"| {promise} | {figures} | {file}: {', '.join(tests)} |")
    TABLE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(*sorted({f"tests/{file}" for file, _ in PROMISES.values()}))
    else:
        main(sys.argv[1:])
