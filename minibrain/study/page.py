"""The explorer: one HTML file that needs nothing else, made of a trace and the parts beside it;
or the trace alone."""

import json
from importlib.resources import files
from pathlib import Path

from minibrain.files import replacing
from minibrain.layers import GatedConcat
from minibrain.models import UNet
from minibrain.report.html_page import html_page
from minibrain.study.formulas import FORMULAS
from minibrain.study.pictures import Picture
from minibrain.study.records import Measure, Node, Trace
from minibrain.study.sources import operation_sources, source

SCRIPTS = (
    *("arithmetic", "draw", "controls", "code", "u", "lens", "network"),
    *("rows", "grids", "slices", "facts", "bench", "convolution", "kinds", "loss", "page"),
)


def write_page(path: Path, title: str, trace: Trace, scene: dict[str, Picture], names) -> None:
    """Write the explorer of one traced step.

    Parameters
    ----------
    title : of the page; any text
    trace : made with pictures, see `minibrain.study.pictures.slicer`
    scene : what there is to see besides: "image", "labels" and "prediction"
    names : those of the image's "channels", and of all "classes"
    """
    pictures = {name: picture.as_json() for name, picture in scene.items()}
    data = {"title": title, **trace_data(trace), "scene": pictures, **names}
    with replacing(path) as file:
        file.write(page(title, data).encode())


def write_record(path: Path, title: str, trace: Trace) -> None:
    """Write one traced step as JSON, without pictures."""
    with replacing(path) as file:
        file.write(json.dumps({"title": title, **trace.as_json()}, indent=1).encode())


def page(title: str, data: dict) -> str:
    """The whole page; nothing in title or data can break out of its place."""
    return html_page(files("minibrain.study") / "explorer", SCRIPTS, title, data)


def trace_data(trace: Trace) -> dict:
    """What the page knows of a step: its record with pictures, formulas and sources."""
    operations = sorted({node.operation for node in trace.nodes})
    record = trace.as_json()
    results = {node["name"]: node["backward"]["results"] for node in record["nodes"]}
    return {
        "loss": record["loss"],
        "update": record["update"],
        "held": trace.bytes_held(),
        "nodes": [
            kept | _pictures(trace, node, results)
            for node, kept in zip(trace.nodes, record["nodes"], strict=True)
        ],
        "formulas": {name: FORMULAS[name]._asdict() for name in operations},
        "sources": {
            **{name: operation_sources(name) for name in operations},
            "skip": {
                "forward": [source(UNet.forward, mark="skips.append(")],
                "backward": [source(UNet.backward, mark="dskips.pop()")],
            },
            "signal": {
                "forward": [source(GatedConcat.forward, mark="attention_gate_forward(")],
                "backward": [source(GatedConcat.backward, mark="dx + dsignal")],
            },
        },
    }


def _pictures(trace: Trace, node: Node, results: dict[str, dict]) -> dict:
    """The pictures of a node and, of a result used twice, the gradients that meet.

    Parameters
    ----------
    results : what the backward of every node returned, as in the record
    """
    uses = node.uses if len(node.uses) > 1 else []
    meeting = trace.meeting_gradients(node)
    return {
        "picture": _json(node.result),
        "gradient": _json(node.arriving),
        "meets_in": "signal" if any(use.gradient == "dsignal" for use in uses) else "skip",
        "meeting": [
            {"from": use.by, **results[use.by][use.gradient], "picture": _json(meeting[use.by])}
            for use in uses
        ],
    }


def _json(measure: Measure) -> dict | None:
    return measure.picture and measure.picture.as_json()
