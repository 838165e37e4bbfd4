"""Memory and time of `python -m convert` on a checkpoint of published size with random weights.

    python -m benchmarks.conversion [--variant dinov2-vit-g-14]

The conversion is a process of its own; its peak is the most memory that was resident at once. Needs
torch, for the pickled file.
"""

import argparse
import pathlib
import shutil
import tempfile

import models.registry
from benchmarks.processes import run_measured
from benchmarks.published import layouts_of, write_random_checkpoint
from benchmarks.rows import write_rows
from evals.running.workdir import ROOT

RUNS = (  # of the file, its dtype, and the dtype asked for
    ("model.safetensors", "float32", "float32"),
    ("model.safetensors", "float32", "bfloat16"),
    ("model.safetensors", "bfloat16", "bfloat16"),
    ("pytorch_model.bin", "float32", "float32"),
)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conversion")
    parser.add_argument("--variant", default="dinov2-vit-g-14", help="one of models.list_models()")
    parser.add_argument("--output", default=str(ROOT / "results" / "conversion.csv"))
    arguments = parser.parse_args(argv)
    _, config = models.registry.published(arguments.variant)
    layout, values = layouts_of(config)[0]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for kind, file_dtype, dtype in RUNS:
            source = folder / "source"
            file = write_random_checkpoint(source, layout, config, values, dtype=file_dtype)
            if kind.endswith(".bin"):
                file = as_pickle(file)
            row = measure(file, folder / "destination", dtype)
            fixed = {"variant": arguments.variant, "file": kind, "file_dtype": file_dtype}
            rows.append(fixed | row)
            shutil.rmtree(source)
            shutil.rmtree(folder / "destination")
    print(write_rows(arguments.output, rows))


def as_pickle(file):
    """The same tensors as torch pickles them, in place of a safetensors file."""
    import safetensors.torch
    import torch

    pickled = file.with_name("pytorch_model.bin")
    torch.save(safetensors.torch.load_file(file), pickled)
    file.unlink()
    return pickled


def measure(file, destination, dtype) -> dict:
    """Sizes in GB, the peak over the size of the file, and seconds of one conversion."""
    seconds, peak = run_measured("-m", "convert", file, destination, "--dtype", dtype)
    size = file.stat().st_size
    return {
        "dtype": dtype,
        "file_gb": round(size / 1e9, 3),
        "peak_gb": round(peak / 1e9, 3),
        "peak_over_file": round(peak / size, 2),
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
