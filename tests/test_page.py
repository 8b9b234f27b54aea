"""The report page: what is packed into it, and what it does in a browser when it is used."""

import base64
import io
import re
import zlib
from itertools import combinations, permutations, product

import numpy as np
import pytest
from browser import Browser
from PIL import Image

from minibrain.data import nifti, phantom
from minibrain.data.decathlon import CaseData
from minibrain.data.nifti import Volume
from minibrain.evaluation.background import false_alarms
from minibrain.evaluation.scores import evaluate
from minibrain.report.page import JudgedRun, write_page
from minibrain.report.slices import pack_case, representative_cases

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>&amp;\"'"
CLASSES = ("background", "edema", f"non-enhancing {HOSTILE}", "enhancing tumour")
MODALITIES = ("FLAIR", f"T1 {HOSTILE}")
CASES = ("BRATS_001", f"B {HOSTILE}", "BRATS_003")
SIZE = (20, 24, 18)


def unpacked(text):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)


def mosaic(url):
    head, _, content = url.partition(",")
    assert head == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


# What is packed


@pytest.fixture(scope="module")
def head():
    """An image with a mark, and its label: in RAS+, more to the right, front and top."""
    image, label = np.zeros((*SIZE, 2), np.float32), np.zeros(SIZE, np.uint8)
    image[2:18, 2:22, 3:17] = 100
    image[14:18, 18:22, 5:17, 0] = 400
    label[12:15, 16:20, 8:11] = 1
    label[13, 17, 9] = 3
    label[5, 5, 12] = 2
    return image, label


def turned(array, order, signs):
    steps = tuple(slice(None, None, sign) for sign in signs)
    return np.ascontiguousarray(array.transpose(*order, *range(3, array.ndim))[steps])


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_all_48_orientations_are_shown_alike_and_numbered_as_in_the_file(order, head):
    image, label = head
    straight = pack_case("A", "", CaseData(image, label, np.diag([1.0, 2, 3, 1])), [label])
    for signs in product((1, -1), repeat=3):
        affine = np.zeros((4, 4))
        affine[3, 3] = 1
        for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
            affine[world, axis] = sign * (1, 2, 3)[world]
        stored = turned(label, order, signs)
        packed = pack_case("A", "", CaseData(turned(image, order, signs), stored, affine), [stored])
        for key in ("truth", "predictions", "size", "aspect", "pixel", "start", "depth"):
            assert packed[key] == straight[key], key
        along = np.moveaxis(stored, order.index(2), 0)
        labels = unpacked(packed["truth"]).reshape(len(packed["slices"]), -1)
        for number, shown in zip(packed["slices"], labels, strict=True):
            assert np.bincount(shown, minlength=4)[1:].tolist() == [
                np.sum(along[number] == c) for c in (1, 2, 3)
            ]


def test_rows_run_from_front_to_back_and_columns_from_left_to_right(head):
    image, label = head
    packed = pack_case("A", "", CaseData(image, label, np.eye(4)), [label * 0, label])
    width, height = packed["size"]
    assert (width, height, packed["slices"], packed["depth"]) == (16, 20, list(range(3, 17)), 18)
    volume = unpacked(packed["truth"]).reshape(-1, height, width)
    expected = label[2:18, 2:22, 3:17][:, ::-1].transpose(2, 1, 0)
    np.testing.assert_array_equal(volume, expected)
    np.testing.assert_array_equal(unpacked(packed["predictions"][0]), 0)
    np.testing.assert_array_equal(unpacked(packed["predictions"][1]), expected.ravel())

    picture, across = mosaic(packed["images"][0]), packed["across"]
    assert picture.shape == (-(-14 // across) * height, across * width)
    at = packed["start"]
    tile = picture[at // across * height :, at % across * width :][:height, :width]
    assert tile[:4, -4:].mean() > 230  # bright in front at the right
    assert tile[-4:, :4].mean() < 60


@pytest.mark.parametrize("fullest", [8, 9, 10])
def test_slices_are_left_out_to_keep_to_the_size_but_never_the_fullest(head, fullest):
    image, label = head[0], head[1].copy()
    label[12, 16, [z for z in (8, 9, 10) if z != fullest]] = 0
    packed = pack_case("A", "", CaseData(image, label, np.eye(4)), [label], pixels=5 * 16 * 20 * 2)
    assert len(packed["slices"]) in (4, 5)
    assert set(np.diff(packed["slices"])) == {3}
    assert packed["slices"][packed["start"]] == fullest


@pytest.mark.parametrize("value", [0, 7])
def test_an_empty_case_can_be_shown(value):
    image = np.full((5, 6, 1, 1), value, np.float32)
    label = np.zeros((5, 6, 1), np.uint8)
    packed = pack_case("A", "", CaseData(image, label, np.eye(4)), [label])
    assert (packed["size"], packed["slices"]) == ((5, 6), [0])
    assert mosaic(packed["images"][0]).shape == (6, 5)


def test_the_worst_the_best_and_two_between_are_shown():
    truth = np.ones((10, 1, 1), np.uint8)
    affine = np.eye(4)
    pairs = [
        (str(right), Volume(truth, affine), (np.arange(10) < right).astype(np.uint8)[:, None, None])
        for right in (3, 9, 1, 5, 7, 8, 2)
    ]
    pairs.append(("none", Volume(truth * 0, affine), truth * 0))
    chosen = representative_cases(evaluate(pairs, ("background", "tumour")))
    assert list(chosen) == ["1", "3", "7", "9"]
    assert chosen["1"] == pytest.approx(2 / 11)
    only = representative_cases(evaluate(pairs[:1], ("background", "tumour")))
    assert list(only) == ["3"]


# What it does


def make_report(path, names):
    rng = np.random.default_rng(0)
    heads = [phantom.make_case(i, size=SIZE, seed=0, family="a") for i in (1, 2, 3)]
    affine = np.diag([5.0, 5, 5, 1])
    runs, predictions = [], []
    for number, name in enumerate(names):
        found = [np.roll(label, number + 1, axis=rng.integers(3)) for _, label in heads]
        pairs = [
            (case, Volume(label, affine), guess)
            for case, (_, label), guess in zip(CASES, heads, found, strict=True)
        ]
        history = [
            {"epoch": e, "train_loss": 1 / e, "validation_loss": 1.2 / e, "validation_iou": 0.1 * e}
            for e in range(1, 7)
        ]
        history[2]["validation_iou"] = float("nan")
        settings = {
            "Parameters": {"value": 100 - number, "text": f"{100 - number}"},
            "Initialiser": {"value": "he", "text": "he"},
        }
        background = [(c, Volume(truth.array * 0, affine), guess) for c, truth, guess in pairs]
        difference = {"value": -0.1, "interval": [-0.2, 0.05]} if number else None
        runs.append(
            JudgedRun(
                name,
                evaluate(pairs, CLASSES),
                settings,
                history,
                false_alarms(background),
                difference,
            )
        )
        predictions.append(found)
    slices = [
        pack_case(
            case,
            "Dice 0.5",
            CaseData(image[..., :2].astype(np.float32), label, affine),
            [guesses[i] for guesses in predictions],
        )
        for i, (case, (image, label)) in enumerate(zip(CASES, heads, strict=True))
    ]
    write_page(path, f"Report {HOSTILE}", f"Task {HOSTILE}", MODALITIES, runs, slices)
    return path


@pytest.fixture(scope="module")
def run_page(tmp_path_factory):
    return make_report(tmp_path_factory.mktemp("page") / "report.html", ["a run"])


@pytest.fixture(scope="module")
def comparison_page(tmp_path_factory):
    names = ["three", f"two {HOSTILE}", "attention"]
    return make_report(tmp_path_factory.mktemp("page") / "comparison.html", names)


def test_a_page_needs_no_other_file(run_page):
    text = run_page.read_text()
    assert text.count("<script") == 2  # the data and the program: names add none
    assert "script-src 'sha256-" in text
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert not re.search(r"<(link|img|iframe|object)\b", text)
    assert not list(run_page.parent.glob("*.tmp"))


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture
def page(browser, run_page):
    return opened(browser, run_page)


def opened(browser, path):
    browser.problems.clear()
    browser.open(path)
    browser.wait("document.getElementById('slices').dataset.slice")
    return browser


def state(page, key):
    return page.evaluate(f"document.getElementById('slices').dataset.{key}")


def focus(page, selector):
    page.evaluate(f"document.querySelector({selector!r}).focus()")


def picture_of(page, panel):
    """A number that changes with any pixel of a panel's canvas."""
    return page.evaluate(f"document.querySelectorAll('#slices canvas')[{panel}].toDataURL()")


def test_it_opens_without_errors_and_asks_for_nothing(page):
    assert page.problems == []
    loaded = page.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []
    heads = page.evaluate("[...document.querySelectorAll('h2')].map(h => h.textContent)")
    expected = ["Slices", "Scores", "Cases", "Confusion", "Curves", "Background test", "Settings"]
    assert heads == expected


def test_names_are_text_and_never_html(page):
    assert page.evaluate("document.title") == f"Report {HOSTILE}"
    assert page.evaluate("document.querySelector('h1').textContent") == f"Report {HOSTILE}"
    assert page.evaluate("document.querySelectorAll('img, script:not(#data)').length") == 1
    shown = page.evaluate("document.body.innerText")
    for name in (CLASSES[2], CASES[1], MODALITIES[1]):
        assert name in shown


def test_the_keys_move_through_a_case(page):
    focus(page, "#slices")
    before, first = int(state(page, "slice")), picture_of(page, 1)
    page.press("ArrowUp")
    assert int(state(page, "slice")) == before + 1
    assert picture_of(page, 1) != first
    page.press("ArrowDown")
    assert picture_of(page, 1) == first
    page.press("m")
    assert state(page, "modality") == "1"
    assert picture_of(page, 1) != first
    page.press("m")
    page.press("t")
    assert state(page, "truth") == "true"
    assert picture_of(page, 1) == picture_of(page, 0) != first
    page.press("t")
    page.press("h")
    assert state(page, "view") == "none"
    assert picture_of(page, 1) == picture_of(page, 0) != first
    page.press("h")
    page.press("e")
    assert state(page, "view") == "mistakes"
    assert picture_of(page, 1) not in (first, picture_of(page, 0))
    page.press("e")
    assert picture_of(page, 1) == first
    page.press("n")
    page.wait("document.getElementById('slices').dataset.case === 'BRATS_003'")


def test_the_controls_do_what_the_keys_do(page):
    """A slider and radio buttons answer to arrow keys of their own."""
    focus(page, "#slices .scrubber input")
    before = int(state(page, "slice"))
    page.press("ArrowRight")
    assert int(state(page, "slice")) == before + 1
    first = picture_of(page, 1)
    focus(page, "input[name=Modality]:checked")
    page.press("ArrowRight")
    assert state(page, "modality") == "1"
    focus(page, "#slices .controls input[type=range]")
    page.press("ArrowRight")
    assert state(page, "opacity") == "0.75"
    assert picture_of(page, 1) != first
    page.evaluate("document.querySelector('#slices button').click()")
    assert state(page, "truth") == "true"


def colours(page, panel):
    """All colours in a panel's canvas, as "red,green,blue"."""
    return set(
        page.evaluate(
            f"""(() => {{
            const canvas = document.querySelectorAll("#slices canvas")[{panel}];
            const {{ data }} = canvas.getContext("2d")
                .getImageData(0, 0, canvas.width, canvas.height);
            const seen = new Set();
            for (let i = 0; i < data.length; i += 4) seen.add(data.slice(i, i + 3).join());
            return [...seen];
            }})()"""
        )
    )


def test_classes_and_mistakes_have_their_colours(page):
    """At full opacity the border of an area has exactly the colour of its class."""
    page.evaluate(
        """(() => { const slider = document.querySelector("#slices .controls input[type=range]");
        slider.value = 1; slider.dispatchEvent(new Event("input")); })()"""
    )
    edema, enhancing = "47,192,138", "255,176,32"
    missed, false_alarm = "255,77,141", "34,199,242"
    assert {edema, enhancing} <= colours(page, 0)
    assert not {missed, false_alarm} & colours(page, 1)
    focus(page, "#slices")
    page.press("e")
    assert {missed, false_alarm} <= colours(page, 1)
    assert not {edema, enhancing} & colours(page, 1)
    assert {edema, enhancing} <= colours(page, 0)  # the truth has no mistakes


@pytest.mark.parametrize("section", ["scores", "cases", "settings"])
def test_every_column_sorts_both_ways(page, section):
    columns = page.evaluate(f"document.querySelectorAll('#{section} th button').length")
    assert columns > 1
    for column in range(columns):
        orders = []
        for _ in range(2):
            focus(page, f"#{section} th:nth-child({column + 1}) button")
            page.press("Enter")
            state = page.evaluate(
                f"document.querySelectorAll('#{section} th')[{column}].getAttribute('aria-sort')"
            )
            cells = page.evaluate(
                f"""[...document.querySelectorAll("#{section} tbody tr")].map(row =>
                row.children[{column}].firstChild.textContent.replace("−", "-"))"""
            )
            orders.append((state, [cell for cell in cells if cell != "–"]))
        assert {order for order, _ in orders} == {"ascending", "descending"}
        for order, cells in orders:
            try:
                values = [float(cell.split(" ")[0].replace(",", "")) for cell in cells]
            except ValueError:
                continue
            assert values == sorted(values, reverse=order == "descending"), (section, column)


def test_what_has_no_score_is_last_either_way(page):
    for _ in range(2):
        focus(page, "#scores th:nth-child(6) button")  # the background has no Hausdorff distance
        page.press("Enter")
        last = page.evaluate("document.querySelector('#scores tbody tr:last-child').innerText")
        assert last.startswith("background")


def test_scores_can_be_pooled_or_per_case(page):
    def shown():
        return page.evaluate("document.querySelector('#scores .forest').innerText")

    first = shown()
    focus(page, "input[name=Average]:checked")
    page.press("ArrowRight")
    assert shown() != first
    focus(page, "input[name=Score]:checked")
    page.press("ArrowRight")
    assert page.evaluate("document.querySelector('input[name=Score]:checked').value") == "iou"


def test_a_case_of_the_table_is_shown(page):
    page.evaluate("document.querySelectorAll('#cases td button')[2].click()")
    page.wait("document.getElementById('slices').dataset.case === 'BRATS_003'")
    assert page.evaluate("document.activeElement.id") == "slices"


def test_curves_answer_to_the_pointer(page):
    said = page.evaluate(
        """(() => {
        const svg = document.querySelector("#curves svg"), box = svg.getBoundingClientRect();
        svg.dispatchEvent(new PointerEvent("pointermove", { clientX: box.right - 10 }));
        return document.querySelector("#curves output").value;
        })()"""
    )
    assert said == "epoch 6: training 0.167, validation 0.200"


def test_a_comparison_shows_every_run_beside_the_truth(browser, comparison_page):
    page = opened(browser, comparison_page)
    assert page.problems == []
    captions = page.evaluate(
        "[...document.querySelectorAll('figcaption > span')].map(s => s.textContent.trim())"
    )
    assert captions == ["Truth", "three", f"two {HOSTILE}", "attention"]
    assert len({picture_of(page, panel) for panel in range(4)}) == 4
    assert page.evaluate("document.querySelectorAll('#confusion .matrix').length") == 3
    assert page.evaluate("document.querySelectorAll('#curves path').length") == 9
    text = page.evaluate("document.getElementById('comparison').innerText")
    assert "−0.100" in text
    assert "−0.200 to +0.050" in text


def test_a_report_on_predictions_alone_has_what_there_is(browser, tmp_path):
    """No slices, settings, curves, background test or regions; a score that no case has."""
    empty = np.zeros((3, 3, 1), np.uint8)
    evaluation = evaluate([("A", Volume(empty, np.eye(4)), empty)], ("background", "heart"))
    write_page(tmp_path / "r.html", "t", "task", ["CT"], [JudgedRun("a", evaluation)])
    browser.problems.clear()
    browser.open(tmp_path / "r.html")
    assert browser.problems == []
    heads = browser.evaluate("[...document.querySelectorAll('h2')].map(h => h.textContent)")
    assert heads == ["Scores", "Cases", "Confusion"]
    assert "–" in browser.evaluate("document.querySelector('.tile strong').textContent")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_at_the_side(width, run_page, comparison_page, browser):
    browser.resize(width)
    for path in (run_page, comparison_page):
        opened(browser, path)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
    browser.resize(1280)


def test_the_button_lies_on_no_link(run_page, browser):
    """Where there is room for some of the links only, as on a phone, they end before it."""
    browser.resize(390)
    opened(browser, run_page)
    under = browser.evaluate(
        """(({ left, right, y, height }) => [left + 2, (left + right) / 2, right - 2].map(x =>
        document.elementsFromPoint(x, y + height / 2).map(element => element.tagName))
        )(document.querySelector("nav button").getBoundingClientRect())"""
    )
    browser.resize(1280)
    assert all(tags[0] == "BUTTON" and "A" not in tags for tags in under)


def test_curves_name_their_axis_and_say_whose_network_is_judged(page):
    for chart in range(2):
        texts = f"[...document.querySelectorAll('#curves svg')[{chart}].querySelectorAll('text')]"
        shown = page.evaluate(f"{texts}.map(text => text.textContent)")
        assert shown.count("epoch") == 1
        boxes = page.evaluate(
            f"""{texts}.map(text => text.getBoundingClientRect())
            .map(box => [box.left, box.top, box.right, box.bottom])"""
        )
        for one, other in combinations(boxes, 2):
            apart = (one[i] >= other[i + 2] or other[i] >= one[i + 2] for i in (0, 1))
            assert any(apart), shown
    text = page.evaluate("document.getElementById('curves').innerText")
    assert "the epoch with the highest IoU on the validation cases" in text


def test_dark_follows_the_system_and_the_button(browser, run_page):
    opened(browser, run_page)
    background = "getComputedStyle(document.body).backgroundColor"
    light = browser.evaluate(background)
    browser.prefer_dark(True)
    dark = browser.evaluate(background)
    assert dark != light
    browser.evaluate("document.querySelector('nav button').click()")
    assert browser.evaluate(background) == light
    browser.evaluate("document.querySelector('nav button').click()")
    assert browser.evaluate(background) == dark
    browser.prefer_dark(False)


def test_volumes_read_back_are_those_that_were_written(tmp_path):
    """The path from a prediction's file to the page keeps every label."""
    label = np.random.default_rng(0).integers(0, 4, (6, 5, 4)).astype(np.uint8)
    nifti.write_prediction(tmp_path / "p.nii.gz", label, np.eye(4))
    stored = nifti.read_label(tmp_path / "p.nii.gz")
    image = np.ones((6, 5, 4, 1), np.float32)
    packed = pack_case("A", "", CaseData(image, label, stored.affine), [stored.array])
    assert packed["truth"] == packed["predictions"][0]
