"""The guide: every snippet runs and prints what it says, and every pointer leads somewhere."""

import ast
import doctest
import re
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import pytest

from minibrain.cli import main

GUIDE = Path(__file__).parent.parent / "docs" / "guide"
CHAPTERS = sorted(path for path in GUIDE.glob("*.md") if path.name != "README.md")
every_page = pytest.mark.parametrize("page", sorted(GUIDE.glob("*.md")), ids=lambda p: p.stem)
every_chapter = pytest.mark.parametrize("page", CHAPTERS, ids=lambda p: p.stem)


@every_chapter
def test_the_snippets_print_what_they_say(page):
    text = re.sub(r"^```(python)?$", "", page.read_text(), flags=re.MULTILINE)
    examples = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    assert len(examples.examples) >= 5
    failures = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(examples, out=failures.append)
    assert not runner.failures, "".join(failures)


@every_page
def test_links_lead_to_files_and_names_to_definitions(page):
    links = re.findall(r"\[([^\]]+)\]\(([^)]+)\)", page.read_text())
    assert links
    for text, target in links:
        path = (page.parent / target).resolve()
        assert path.is_file(), target
        if name := re.fullmatch(r"`(\w+)`", text):
            assert name[1] in definitions(path), f"{target} defines no {name[1]}"


def definitions(path):
    """Functions and classes of a module, with their methods."""
    kinds = ast.FunctionDef | ast.ClassDef
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)}


def test_the_contents_list_every_chapter_once_and_the_chapters_form_a_chain():
    linked = re.findall(r"\]\((\S+\.md)\)", (GUIDE / "README.md").read_text())
    order = list(dict.fromkeys(linked))
    assert sorted(order) == [path.name for path in CHAPTERS]
    for before, after in pairwise(order):
        assert f" →]({after})" in (GUIDE / before).read_text()
        assert "[← " in (GUIDE / after).read_text().splitlines()[-1]
        assert before in (GUIDE / after).read_text().splitlines()[-1]


@every_chapter
def test_a_chapter_is_short(page):
    lines = page.read_text().splitlines()
    assert len(lines) <= 72
    assert max(map(len, lines)) <= 112


def test_the_formats_have_the_bits_that_the_guide_says():
    superscripts = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    text = (GUIDE / "rounding.md").read_text().translate(superscripts)
    rows = re.findall(
        r"\| (b?float\d+) \| (\d+) \| (\d+) \| 1 \+ 2(-\d+) \| (?:(\d)·)?10(-\d+)", text
    )
    assert len(rows) == 4
    for name, bits, exponent, step, digit, smallest in rows:
        about = ml_dtypes.finfo(name)
        assert (about.bits, about.nexp) == (int(bits), int(exponent))
        assert float(about.eps) == 2.0 ** int(step)
        assert f"{float(about.smallest_normal):.0e}" == f"{digit or 1}e{int(smallest):03}"


def test_the_command_prints_what_the_guide_shows(capsys):
    shown = (
        (GUIDE / "gradient-checking.md").read_text().partition("$ minibrain gradcheck conv\n")[2]
    )
    assert main(["gradcheck", "conv"]) == 0
    for printed, line in zip(
        capsys.readouterr().out.splitlines(), shown.splitlines(), strict=False
    ):
        error = r" \S+e-\d\d +ok"  # the rounding, which differs between machines
        assert re.sub(error, "", line) == "    " + re.sub(error, "", printed)
