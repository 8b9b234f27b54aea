"""Results as JSON, with the machine they were measured on."""

import json
import os
import platform
from datetime import date
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info

from minibrain.files import replacing

FOLDER = Path(__file__).parent / "results"


def machine() -> dict:
    """What decides speed and bits: processor, cores, versions, BLAS."""
    blas = next((info for info in threadpool_info() if info["user_api"] == "blas"), {})
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": f"{blas.get('internal_api')} {blas.get('version')} {blas.get('architecture')}",
    }


def write(name: str, results) -> Path:
    """Write benchmarks/results/NAME.json."""
    path = FOLDER / f"{name}.json"
    write_json(path, {"date": date.today().isoformat(), "machine": machine(), "results": results})
    return path


def write_json(path: Path, content) -> None:
    with replacing(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    wide = "with AVX-512" if any(" avx512f" in line for line in lines) else "without AVX-512"
    return f"{names[0] if names else platform.machine()} {wide}"
