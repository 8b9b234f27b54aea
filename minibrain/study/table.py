"""A traced step as text, 100 columns wide: forward on the left, its mirror image on the right."""

from math import isfinite

COLUMNS = {"": 2, "ms": 6, "FLOP": 6, "bytes": 6, "max": 7, "std": 7, "mean": 8}
SPINE = 14  # name and channels, in the middle
WIDTH = 100


def mirrored_table(trace) -> str:
    """A line an operation. Forward is read down the left side, backward up the right side.

    Parameters
    ----------
    trace : minibrain.study.records.Trace
    """
    size = trace.nodes[0].inputs[0]
    lines = [
        f"one training step on {_times(size)} · loss {trace.loss:.4f} · {_totals(trace)}",
        "",
        "forward ↓".ljust(WIDTH // 2) + "backward ↑".rjust(WIDTH // 2),
        _heading(),
    ]
    group = None
    for node in trace.nodes:
        part, _, name = node.name.rpartition(".")
        if part not in ("", group):
            group = part
            lines.append(f" {part}  {_times(node.result.shape[1:-1])} ".center(WIDTH, "─"))
        channels = node.result.shape[-1] if node.result.shape else ""
        spine = f"{name:<9}{channels:>5}"
        lines.append(f"{_forward_side(node)}│{spine}│{_backward_side(trace, node)}".rstrip())
    return "\n".join([*lines, "─" * WIDTH, *_legend()])


def _totals(trace) -> str:
    passes = [each for node in trace.nodes for each in (node.forward, node.backward)]
    passes.append(trace.update)
    return (
        f"{1e3 * sum(each.seconds for each in passes):.1f} ms · "
        f"{_prefixed(sum(each.flops for each in passes))}FLOP · "
        f"{_prefixed(max(trace.bytes_held()))}B saved at the turn"
    )


def _heading() -> str:
    left, right = (
        [word if name == "bytes" else name for name in COLUMNS] for word in ("saved", "freed")
    )
    return f"{_row(left)}│{'y':^{SPINE}}│{_row(right, mirrored=True)}".rstrip()


def _forward_side(node) -> str:
    return _row(_cells(node.forward, node.bytes_saved, node.result))


def _backward_side(trace, node) -> str:
    return _row(_cells(node.backward, trace.freed_by(node), node.arriving), mirrored=True)


def _cells(each, size, measure) -> list[str]:
    mark = "• " if each.twin == "fast" else "◦ "
    numbers = [_short(value) for value in (measure.max, measure.std, measure.mean)]
    time, flops = _milliseconds(each.seconds), _prefixed(each.flops)
    return [mark, time, flops, _prefixed(size) if size else "–", *numbers]


def _row(cells, mirrored=False) -> str:
    texts = [f"{cell:>{width}}" for cell, width in zip(cells, COLUMNS.values(), strict=True)]
    return "".join([*texts[:0:-1], texts[0][::-1]] if mirrored else texts)


def _legend() -> list[str]:
    return [
        "left: the result y of an operation; right: the gradient that arrives there, dy",
        "max: largest magnitude;  • computed by a fast twin  ◦ by the readable body",
    ]


def _times(shape) -> str:
    return "×".join(map(str, shape))


def _milliseconds(seconds: float) -> str:
    ms = 1e3 * seconds
    return f"{ms:.{2 if ms < 10 else 1 if ms < 1000 else 0}f}"


def _short(value: float) -> str:
    """At most six characters, and a minus."""
    if not isfinite(value):
        return str(value)
    if value == 0 or 1e-2 <= abs(value) < 1e3:
        return f"{value:.3g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _prefixed(value: float) -> str:
    """Three digits and k, M, G or T: 1.23M."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5 or prefix == "T":
            return f"{value:.3g}{prefix}"
        value /= 1000
