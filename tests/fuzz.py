"""One coverage-guided fuzzing campaign: python tests/fuzz.py TARGET SEED_FILE RUNS. See test_fuzz.

It ends with an error at the first input that raises anything but the library's own error.
"""

import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import atheris

with atheris.instrument_imports(include=["minibrain", "zipfile", "gzip"]):
    from minibrain.data import nifti
    from minibrain.data.decathlon import open_task
    from minibrain.errors import InputError
    from minibrain.runs.checkpoint import describe

NAMES = {"nifti": "image.nii", "dataset": "dataset.json", "checkpoint": "last.npz"}
READERS = {
    "nifti": lambda path: (nifti.read(path, max_bytes=2**20), nifti.read_label(path)),
    "dataset": lambda path: open_task(path.parent),
    "checkpoint": describe,
}


def main(target: str, seed: str, runs: str) -> None:
    with TemporaryDirectory() as folder:
        corpus, path = Path(folder, "corpus"), Path(folder, NAMES[target])
        corpus.mkdir()
        (corpus / "seed").write_bytes(Path(seed).read_bytes())

        def read(data: bytes) -> None:
            path.write_bytes(data)
            try:
                READERS[target](path)
            except InputError as error:
                if str(path.parent) not in str(error):
                    raise AssertionError(f"the error does not name the file: {error}") from error

        warnings.simplefilter("ignore")
        atheris.Setup([sys.argv[0], str(corpus), f"-runs={runs}", "-max_len=20000"], read)
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
