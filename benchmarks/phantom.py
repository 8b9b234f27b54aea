"""Are the phantoms worth a network? The small main job on both families, beside single voxels.

    python -m benchmarks.phantom

Family a with seed 0 is what the recipe was tuned on; b has another contrast table and other heads.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks import results_file
from minibrain import experiment
from minibrain.runs.config import SMALL_3D


def main():
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for family, seed in (("a", 0), ("b", 1)):
            config = replace(
                SMALL_3D,
                output=str(Path(folder, family)),
                device="cpu",
                phantom_family=family,
                phantom_seed=seed,
            )
            summary = json.loads((experiment.run(config) / "summary.json").read_text())
            scores = {
                name: {
                    "mean foreground IoU": round(iou["pooled_foreground_mean"], 3),
                    "IoU per class": [round(score, 3) for score in iou["pooled"][:4]],
                }
                for name in ("network", "voxelwise classifier")
                for iou in [summary[name]["iou"]]
            }
            results.append({"family": family, "seed": seed, **scores})
    print(json.dumps(results, indent=1))
    print("written to", results_file.write("phantom", results))


if __name__ == "__main__":
    main()
