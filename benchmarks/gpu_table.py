"""The results of the GPU benchmark as Markdown."""


def markdown(content: dict) -> str:
    """Tables of the step, of the layers and of the checks; only what was measured appears."""
    results = content["results"]
    environment = results.get("environment", {})
    lines = [f"# {environment.get('gpu', 'no GPU')}, {content['mode']} run", ""]
    if content["mode"] == "smoke":
        lines += ["Toy sizes on a CPU, to test the benchmark itself: the figures mean nothing.", ""]
    described = ("nvidia-smi", "torch", "cudnn", "cupy", "numpy", "python")
    known = [f"{name} {environment[name]}" for name in described if name in environment]
    lines += [", ".join(known), "", *_checks(results)]
    if any(name.startswith("step ") for name in results):
        lines += ["", *_step(results, content["fastest"])]
    for name, table in (("ceilings", _ceilings), ("layers", _layers)):
        if name in results and "error" not in results[name]:
            lines += ["", *table(results[name])]
    return "\n".join(lines) + "\n"


def _checks(results: dict) -> list[str]:
    rows = ["| section | verdict |", "| --- | --- |"]
    for name, result in results.items():
        verdict = result.get("error") or "; ".join(result.get("wrong", [])) or "right"
        rows.append(f"| {name} | {verdict.splitlines()[-1]} |")
    return rows


def _ceilings(found: dict) -> list[str]:
    names, values = found.keys(), (f"{value:.3g}" for value in found.values())
    return ["## Ceilings", "", _row(*names), _row(*["---"] * len(found)), _row(*values)]


def _step(results: dict, fastest: dict) -> list[str]:
    lines = ["## Training step of the 3D reference network", ""]
    lines += [_row("engine", "ms, least", "median", "peak, GB"), _row(*["---"] * 4)]
    steps = {n.removeprefix("step "): r for n, r in results.items() if n.startswith("step ")}
    for name, result in steps.items():
        if "error" in result:
            lines.append(_row(name, "failed", result["error"].splitlines()[-1][:60], ""))
            continue
        least, median = (f"{ms:.2f}" for ms in result["milliseconds"])
        how = f", {result['recorded']}" if result.get("recorded") else ""
        lines.append(_row(f"{name}{how}", least, median, f"{result['peak_GB']:.2f}"))
    if "step_ratio" in fastest:
        lines += ["", f"Fastest PyTorch / fastest minibrain: **{fastest['step_ratio']:.2f}**"]
    if "memory_ratio" in fastest:
        lines += ["", f"Peak memory, minibrain / PyTorch: **{fastest['memory_ratio']:.2f}**"]
    return lines


def _layers(found: dict) -> list[str]:
    engines = list(next(iter(found.values()))["milliseconds"])
    lines = ["## Convolutions, forward + backward in ms", "", _row("layer", *engines)]
    lines.append(_row(*["---"] * (1 + len(engines))))
    for name, result in found.items():
        times = (result["milliseconds"][engine] for engine in engines)
        lines.append(
            _row(name, *(f"{forward:.3f} + {backward:.3f}" for forward, backward in times))
        )
    return lines


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
