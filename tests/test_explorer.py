"""The explorer's page: whole, safe, and right; its arithmetic is held against minibrain's."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from browser import Browser

from minibrain.cli import main
from minibrain.data import phantom_task
from minibrain.errors import InputError
from minibrain.functional import (
    conv_backward,
    conv_forward,
    conv_transpose_forward,
    cross_entropy_backward,
    cross_entropy_forward,
    dice_loss_backward,
    dice_loss_forward,
)
from minibrain.geometry import conv_geometry, conv_transpose_geometry
from minibrain.models import UNet
from minibrain.models.attention_unet import AttentionUNet
from minibrain.optimizers import Adam
from minibrain.study.explain import explain, load_case
from minibrain.study.formulas import FORMULAS
from minibrain.study.page import page, trace_data, write_page
from minibrain.study.pictures import slicer
from minibrain.study.sources import operation_sources
from minibrain.study.sources import source as source_of
from minibrain.study.trace import trace_step

EXPLORER = files("minibrain.study") / "explorer"
COMMITTED = Path(__file__).parent.parent / "docs" / "explorer.html"
HOSTILE = "</script><script>document.title = 'broken'</script> & \"quoted\" <b>'"
LIMIT = 3_000_000  # bytes


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    model = UNet(3, 4, 4, channels=(4, 6, 8), up="transposed")
    images = rng.standard_normal((1, 8, 8, 8, 4)).astype(np.float32)
    labels = rng.integers(0, 4, (1, 8, 8, 8))
    picture = slicer(0.5)
    trace = trace_step(model, Adam(model.named_parameters()), images, labels, 0, picture)
    scene = {"image": images, "labels": labels[..., None], "prediction": labels[..., None]}
    scene = {name: picture(array).as_json() for name, array in scene.items()}
    names = {"channels": list("abcd"), "classes": ["none", HOSTILE, "other", "third"]}
    return {"title": HOSTILE, **trace_data(trace), "scene": scene, **names}


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.scripts = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        self.text[tag] = self.text.get(tag, "") + data
        if tag == "script":
            self.scripts.append((attributes, data))


def test_the_page_needs_nothing_else(data):
    text = page("a title", data)
    assert set(re.findall(r"https?://[\w./]*", text)) == {"http://www.w3.org/2000/svg"}  # a name
    assert not re.search(r"@import|\bfetch\(|XMLHttpRequest|import\(|WebSocket|url\(", text)
    for tag, attributes in Elements(text).tags:
        assert "src" not in attributes, tag
        assert attributes.get("href", "#").startswith(("#", "data:,")), tag
    assert "default-src 'none'" in text


def test_nothing_breaks_out_of_its_place(data):
    data = json.loads(json.dumps(data))
    data["nodes"][0]["name"] = data["sources"]["conv"]["forward"][0]["text"] = HOSTILE
    found = Elements(page(HOSTILE, data))
    assert [tag for tag, _ in found.tags].count("script") == 2
    assert found.text["title"].strip().endswith(HOSTILE)
    kept = next(text for attributes, text in found.scripts if attributes.get("id") == "data")
    assert json.loads(kept) == data


def test_text_of_scripts_and_styles_stays_as_it_is(data):
    text = page("{{script}} \\1 \\g<0>", data)
    for name in ("page.css", "arithmetic.js", "page.js"):
        assert (EXPLORER / name).read_text() in text
    assert "{{script}}" in text  # a title is no template


@pytest.mark.parametrize("path", [pytest.param(COMMITTED, id="docs"), None])
def test_a_page_is_small(path, data):
    size = path.stat().st_size if path else len(page("a title", data).encode())
    assert 100_000 < size < LIMIT


def test_the_committed_example_needs_nothing_else():
    text = COMMITTED.read_text()
    assert set(re.findall(r"https?://[\w./]*", text)) == {"http://www.w3.org/2000/svg"}


def without_measurements(path):
    """All of a page but what differs between machines and runs: times, statistics, pictures."""
    text = path.read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)
    data = json.loads(found[1])
    for node in data["nodes"]:
        for direction in ("forward", "backward"):
            node[direction]["seconds"] = None
            results = node[direction]["results"].items()
            node[direction]["results"] = {name: result["shape"] for name, result in results}
        node["arriving"] = node["arriving"]["shape"]
        node["meeting"] = [meeting["from"] for meeting in node["meeting"]]
        del node["picture"], node["gradient"]
    scene = {name: (p["channels"], p["width"]) for name, p in data["scene"].items()}
    ignored = {"title": None, "loss": None, "update": None, "scene": scene}
    frame = text.replace(found[1], "").replace(data["title"], "")
    return {"frame": frame.split("\n"), **data, **ignored}


def test_the_committed_example_is_what_the_code_makes_today(tmp_path):
    explain(steps=0, output=str(tmp_path / "page.html"), device="cpu")
    today, committed = map(without_measurements, (tmp_path / "page.html", COMMITTED))
    stale = [name for name in today if today[name] != committed.get(name)]
    command = "minibrain explain --device cpu --output docs/explorer.html"
    assert not stale, f"docs/explorer.html is of other code; make it again with `{command}`"


def test_pictures_are_the_slice_with_x_to_the_right_and_y_upwards():
    array = np.random.default_rng(1).standard_normal((2, 5, 7, 10, 12)).astype(np.float32)
    picture = slicer(0.35)(array)
    assert picture.values.shape == (8, 7, 5)
    shown = array[0, :, :, 3, 2]
    low, high = array[0, :, :, 3, :8].min(), array[0, :, :, 3, :8].max()
    assert (picture.low, picture.high) == (low, high)
    back = picture.low + picture.values[2] / 255 * (high - low)
    assert np.allclose(back[::-1].T, shown, atol=(high - low) / 509)
    large = slicer(0.0)(np.random.default_rng(2).standard_normal((1, 130, 100, 2)))
    assert (large.values.shape, large.every) == ((2, 34, 44), 3)
    flat = slicer(0.0)(np.zeros((1, 4, 6, 3)))
    assert flat.values.shape == (3, 6, 4)
    assert not flat.values.any()
    assert slicer(0.0)(np.ones((1, 9, 2))).values.shape == (2, 1, 9)


@pytest.mark.parametrize("operation", sorted(FORMULAS))
def test_sources_are_those_of_the_package(operation):
    sources = operation_sources(operation)
    for direction in ("forward", "backward"):
        first = sources[direction][0]
        assert first["name"] == f"{operation}_{direction}"
        for source in sources[direction]:
            file = Path(__file__).parent.parent / source["file"]
            assert f"{source['text']}\n" in file.read_text()
            assert "_check" not in source["name"]


def test_the_lines_pointed_at_are_those_where_gradients_add(data):
    for place, direction, line in (
        ("skip", "forward", "skips.append(x)"),
        ("skip", "backward", "dx += dskips.pop()"),
        ("signal", "forward", "gated, gate_saved = attention_gate_forward(skip, x, "),
        ("signal", "backward", "return dx + dsignal, dskip"),
    ):
        [source] = data["sources"][place][direction]
        assert source["text"].split("\n")[source["mark"]].strip().startswith(line)
        assert source["text"].startswith(f"def {direction}(self, ")
    with pytest.raises(ValueError, match="unpack"):
        source_of(UNet.forward, mark="a line that has gone")


def test_each_pair_of_gradients_is_shown_with_the_code_that_adds_it():
    rng = np.random.default_rng(1)
    model = AttentionUNet(2, 1, 3, channels=(2, 3, 4))
    images, labels = rng.standard_normal((1, 8, 8, 1)), rng.integers(0, 3, (1, 8, 8))
    trace = trace_step(model, Adam(model.named_parameters()), images, labels)
    nodes = trace_data(trace)["nodes"]
    meeting = {node["name"]: node["meets_in"] for node in nodes if node["meeting"]}
    assert {name.partition(".")[0]: place for name, place in meeting.items()} == {
        **{"encoder0": "skip", "encoder1": "skip"},
        **{"up0": "signal", "up1": "signal"},
    }


def test_a_step_without_a_loss_is_shown_too(tmp_path, browser):
    """Where a training goes wrong, one wants to see where its numbers cease to be any."""
    model = UNet(2, 1, 3, channels=(2, 3))
    images, labels = np.full((1, 8, 8, 1), np.nan, np.float32), np.zeros((1, 8, 8), int)
    images[0, :4] = 1
    optimizer, picture = Adam(model.named_parameters()), slicer(0.0)
    trace = trace_step(model, optimizer, images, labels, 0, picture)
    assert "loss nan" in str(trace)
    assert json.loads(json.dumps(trace.as_json(), allow_nan=False))["loss"] == "nan"
    pictures = {name: picture(images) for name in ("image", "labels", "prediction")}
    write_page(tmp_path / "a.html", "nan", trace, pictures, {"channels": ["a"], "classes": []})
    browser.problems.clear()
    browser.open(tmp_path / "a.html")
    for step in range(len(trace.nodes)):
        browser.evaluate(f"location.hash = 'network/{step}'")
    browser.wait("document.querySelector('.lens .big')?.textContent === 'nan'")
    assert browser.problems == []


def test_what_an_operation_calls_comes_with_it():
    sources = operation_sources("conv")
    assert {"correlate", "_windows"} <= {source["name"] for source in sources["forward"]}
    assert {"spread", "weight_gradient"} <= {source["name"] for source in sources["backward"]}


# The page's own arithmetic


def in_node(program: str, settings):
    """What a few lines of JavaScript make of every setting, with `arithmetic` at hand."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not here")
    script = (
        f"const arithmetic = require({json.dumps(str(EXPLORER / 'arithmetic.js'))});"
        f"const settings = JSON.parse(require('fs').readFileSync(0, 'utf8'));"
        f"process.stdout.write(JSON.stringify(settings.map((setting) => {{ {program} }})));"
    )
    done = subprocess.run(
        [node, "-e", script], input=json.dumps(settings), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def random_settings(count=200):
    rng = np.random.default_rng(7)
    ranges = {"n": (1, 11), "k": (1, 7), "s": (1, 5), "p": (0, 6), "d": (1, 4), "e": (0, 4)}
    settings = []
    for _ in range(count):
        setting = {name: int(rng.integers(*span)) for name, span in ranges.items()}
        rank = int(rng.integers(1, 4))
        if rank == 3:
            setting |= {"n": min(setting["n"], 5), "k": min(setting["k"], 3)}
        settings.append({"rank": rank, "transposed": bool(rng.integers(2)), **setting})
    return settings


def geometry_of(setting):
    """minibrain's geometry of a setting, or None where it refuses."""
    n, k, s, p, d, e = (setting[name] for name in "nkspde")
    size, kernel = (n,) * setting["rank"], (k,) * setting["rank"]
    try:
        if setting["transposed"]:
            return conv_transpose_geometry(size, kernel, s, p, d, e)
        return conv_geometry(size, kernel, s, p, d)
    except ValueError:
        return None


def test_sizes_and_refusals_in_javascript_are_minibrains():
    settings = random_settings()
    answers = in_node(
        "return [arithmetic.obstacle(setting.transposed, setting),"
        " arithmetic.convSize(setting), arithmetic.transposedSize(setting)];",
        settings,
    )
    refused = 0
    for setting, (obstacle, conv, transposed) in zip(settings, answers, strict=True):
        geometry = geometry_of(setting)
        assert (obstacle is None) == (geometry is not None), setting
        refused += geometry is None
        if geometry and setting["transposed"]:
            assert geometry.input_size[0] == transposed
        elif geometry:
            assert geometry.output_size[0] == conv
    assert 20 < refused < 180


def test_convolutions_in_javascript_are_minibrains():
    rng = np.random.default_rng(3)
    settings = [setting for setting in random_settings(400) if geometry_of(setting)][:200]
    assert len(settings) == 200
    for setting in settings:
        rank, n, k = setting["rank"], setting["n"], setting["k"]
        setting["x"] = rng.standard_normal(n**rank).tolist()
        setting["w"] = rng.standard_normal(k**rank).tolist()
    answers = in_node(
        "const { rank, transposed, x, w } = setting;"
        "const shape = arithmetic.geometry(transposed, setting);"
        "const pass = transposed ? arithmetic.spread : arithmetic.correlate;"
        "return [pass(rank, shape, x, w), arithmetic.coverage(rank, shape)];",
        settings,
    )
    for setting, (y, count) in zip(settings, answers, strict=True):
        expected, expected_count = with_minibrain(setting)
        np.testing.assert_allclose(y, expected.ravel(), rtol=1e-12, atol=1e-12)
        assert np.array_equal(count, expected_count.ravel())


def with_minibrain(setting):
    """Result, and how many taps meet each voxel of the larger side, as a transposed convolution
    of ones counts them."""
    rank, (n, k, s, p, d, e) = setting["rank"], (setting[name] for name in "nkspde")
    x = np.reshape(setting["x"], (1, *(n,) * rank, 1))
    w = np.reshape(setting["w"], (*(k,) * rank, 1, 1))
    options = {"stride": s, "padding": p, "dilation": d}
    if setting["transposed"]:
        options["output_padding"] = e
        y, _ = conv_transpose_forward(x, w, **options)
        count, _ = conv_transpose_forward(np.ones_like(x), np.ones_like(w), **options)
        return y, count
    y, saved = conv_forward(x, w, **options)
    ones = saved._replace(weight=np.ones_like(w), x=np.ones_like(x))
    return y, conv_backward(np.ones_like(y), ones)[0]


def test_losses_in_javascript_are_minibrains():
    rng = np.random.default_rng(5)
    settings = [
        {
            "logits": (rng.standard_normal((v, c)) * 10 ** rng.uniform(-1, 1.5)).tolist(),
            "labels": rng.integers(0, c, v).tolist(),
            "counts": rng.integers(1, 60, v).tolist(),
        }
        for v, c in zip(rng.integers(1, 5, 200), rng.integers(2, 6, 200), strict=True)
    ]
    answers = in_node(
        "const { logits, labels, counts } = setting;"
        "return [arithmetic.crossEntropy(logits, labels, counts),"
        " arithmetic.diceLoss(logits, labels, counts), logits.map(arithmetic.softmax)];",
        settings,
    )
    pairs = (cross_entropy_forward, cross_entropy_backward), (dice_loss_forward, dice_loss_backward)
    for setting, (*losses, p) in zip(settings, answers, strict=True):
        counts = setting["counts"]
        logits = np.repeat(setting["logits"], counts, axis=0)[None]
        labels = np.repeat(setting["labels"], counts)[None]
        first = np.cumsum([0, *counts[:-1]])  # of the voxels that are alike
        for (forward, backward), answer in zip(pairs, losses, strict=True):
            loss, saved = forward(logits, labels)
            assert answer["loss"] == pytest.approx(float(loss), rel=1e-12, abs=1e-12)
            gradient = backward(1.0, saved)[0, first]
            np.testing.assert_allclose(answer["gradient"], gradient, rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(p, saved.p[0, first], rtol=1e-12)


# The page in a browser

DRIVE = Path(__file__).with_name("drive_explorer.js").read_text()
CONTRAST = Path(__file__).with_name("contrast.js").read_text()


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


def drive(browser, path, rooms, width, dark):
    """Open the page and move everything in these rooms; how often was looked for a fault where."""
    browser.resize(width)
    browser.prefer_dark(dark)
    browser.problems.clear()
    browser.open(path)
    assert browser.evaluate("document.documentElement.dataset.theme") == (
        "dark" if dark else "light"
    )
    driven = browser.evaluate(f"{DRIVE}; drive({rooms})")
    assert driven["problems"] == browser.problems == []
    for formula in driven["formulas"]:
        left, _, size = formula.lstrip("= ").replace("−", "-").replace("·", "*").rpartition(" = ")
        assert int(size) == eval(re.sub(r"⌊(.*) / (\d+)⌋", r"(\1) // \2", left)), formula
    return {**driven["counts"], "formulas": len(driven["formulas"])}


def test_every_slider_at_its_extremes_on_a_phone(browser, data, tmp_path):
    path = tmp_path / "explorer.html"
    path.write_text(page(HOSTILE, data))
    counts = drive(browser, path, ["network", "convolution", "loss"], width=390, dark=False)
    assert counts["convolution"] > 6 * 64
    assert counts["identities"] > 200
    assert min(counts["sums"], counts["slices"], counts["formulas"]) > 50
    assert counts["loss sliders"] == 12
    assert counts["loss"] > 2**3 + 2 * 12
    assert counts["network"] > 2 * len(data["nodes"])
    assert counts["mostKept"] > len(data["nodes"]) / 2


@pytest.mark.parametrize(
    ("rooms", "width", "dark"),
    [(["network", "loss"], 1280, True), (["network"], 390, False)],
    ids=["dark desktop", "phone"],
)
def test_the_committed_example(browser, rooms, width, dark):
    counts = drive(browser, COMMITTED, rooms, width=width, dark=dark)
    assert counts["network"] > 60


def test_it_is_operated_by_keys_alone(browser):
    """With the keys of a keyboard: rooms, steps, and a slider and a button reached by Tab."""

    def focus(condition):
        for _ in range(40):
            browser.press("Tab")
            if browser.evaluate(f"document.activeElement.matches('{condition}')"):
                return
        raise AssertionError(f"Tab does not lead to {condition}")

    browser.resize(1280)
    browser.open(COMMITTED)
    browser.press("1")
    browser.press("ArrowRight")
    assert browser.evaluate("document.querySelector('.status span').textContent").startswith(
        "step 2 of "
    )
    browser.press("2")
    browser.wait("!document.getElementById('convolution').hidden")
    focus("#convolution .choice button[aria-pressed=false]")
    browser.press("Enter")
    assert browser.evaluate("document.querySelector('.size .quiet').textContent").endswith(
        "output padding"
    )
    focus("input[name=k]")
    before = browser.evaluate("document.querySelector('.size b').textContent")
    browser.press("ArrowRight")
    assert int(browser.evaluate("document.querySelector('.size b').textContent")) == int(before) + 1
    browser.press("3")
    browser.wait("!document.getElementById('loss').hidden")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_stands_out_from_its_ground(browser, dark):
    browser.resize(1280)
    browser.prefer_dark(dark)
    browser.open(COMMITTED)
    data = "JSON.parse(document.getElementById('data').textContent)"
    kinds = browser.evaluate(f"u.eventsOf({data}).map(({{ kind }}) => kind)")
    steps = [0, kinds.index("backward"), kinds.index("meet")]
    places = [f"network/{step}" for step in steps]
    places += [f"{room}/{example}" for room in ("convolution", "loss") for example in range(4)]
    for place in places:
        browser.evaluate(f"location.hash = '{place}'")
        browser.wait(f"!document.getElementById('{place.partition('/')[0]}').hidden")
        assert browser.evaluate(CONTRAST) == [], place


# From a name to a page


def test_explain_makes_a_page_of_a_phantom(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("minibrain.study.explain.PHANTOM_SIZE", (24, 24, 16))
    output = tmp_path / "page.html"
    line = ["explain", "--network", "brain_2d_small", "--steps", "1", "--output", str(output)]
    assert main(line) == 0
    printed = capsys.readouterr().out
    assert "forward ↓" in printed
    assert str(output) in printed
    found = Elements(output.read_text())
    kept = next(text for attributes, text in found.scripts if attributes.get("id") == "data")
    record = json.loads(kept)
    assert record["title"].startswith("brain_2d_small on a phantom, slice")
    assert record["scene"]["image"]["channels"] == 2  # FLAIR and T1gd
    assert record["nodes"][0]["picture"]["channels"] == 8
    assert record["nodes"][-1]["name"] == "loss"
    assert all(node["backward"] for node in record["nodes"])


def test_explain_gives_the_record_as_json(tmp_path, monkeypatch):
    monkeypatch.setattr("minibrain.study.explain.PHANTOM_SIZE", (24, 24, 16))
    output = tmp_path / "trace.json"
    assert main(["explain", "--network=brain_2d_small", "--steps=0", f"--output={output}"]) == 0
    record = json.loads(output.read_text())
    assert record["title"].startswith("brain_2d_small on a phantom")
    assert [node["name"] for node in record["nodes"]][-2:] == ["head", "loss"]
    assert record["nodes"][0]["backward"]["results"].keys() == {"dweight", "dbias"}
    assert "picture" not in output.read_text()


def test_explain_takes_a_case_of_a_task(tmp_path):
    task = phantom_task.write_task(tmp_path / "Task", cases=1, size=(24, 24, 16))
    volume = load_case(f"{task}/BRATS_001", None, rank=3)
    flat = load_case(f"{task}/BRATS_001", (0, 2), rank=2)
    assert volume.images.shape == (*volume.labels.shape, 4)
    z = int(volume.depth * volume.labels.shape[3])
    assert np.array_equal(flat.labels, volume.labels[:, :, :, z])
    assert np.array_equal(flat.images, volume.images[:, :, :, z, ::2])
    assert flat.channels == ("FLAIR", "t1gd")
    assert (flat.labels > 0).sum() == (volume.labels > 0).sum(axis=(0, 1, 2)).max()
    for other in (f"{task}/BRATS_009", f"{task}"):
        with pytest.raises(InputError, match=rf"data: got '{other}', .* as TASK/CASE, such as .*1"):
            load_case(other, None, rank=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "brain"}, "network: got 'brain'.*brain_3d"),
        ({"steps": -1}, "steps: got -1"),
        ({"output": "nowhere/page.html"}, "nowhere/page.html: .*folder that is there"),
        ({"output": "."}, "cannot be written"),
        ({"data": "nowhere/case"}, "nowhere"),
    ],
)
def test_explain_refuses_in_one_line(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        explain(**options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_whether_the_page_can_be_written_is_asked_before_the_training(tmp_path, monkeypatch):
    def refuse(path):
        raise InputError(f"{path}: cannot be written")

    monkeypatch.setattr("minibrain.study.explain.require_writable", refuse)
    monkeypatch.setattr("minibrain.study.explain.load_case", lambda *_: pytest.fail("read"))
    with pytest.raises(InputError, match=f"^{tmp_path}: cannot be written"):
        explain(output=str(tmp_path / "page.html"), device="cpu")


def test_a_page_is_written_whole_or_not_at_all(tmp_path, data, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("before")
    monkeypatch.setattr("minibrain.study.page.page", lambda *_: 1 / 0)
    trace = type("Broken", (), {})()
    with pytest.raises((ZeroDivisionError, AttributeError)):
        write_page(path, "title", trace, {}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    assert path.read_text() == "before"
