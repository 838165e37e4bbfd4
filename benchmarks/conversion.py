"""Memory and time of `python -m convert` on a checkpoint of published size with random weights.

    python -m benchmarks.conversion [--variant dinov2-vit-g-14]

The conversion is a process of its own; its peak is the most memory that was resident at once. Needs
torch, for the pickled file.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import models.registry
from benchmarks.published import layouts_of, write_random_checkpoint
from benchmarks.rows import write_rows
from evals.workdir import ROOT

# Linux counts the memory of the process that starts another as the other's peak: start it from a
# small one.
LAUNCHER = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
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
    (family,) = (f for f in models.registry.FAMILIES.values() if arguments.variant in f.variants)
    config = family.variants[arguments.variant]
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
    command = [sys.executable, "-m", "convert", str(file), str(destination), "--dtype", dtype]
    start = time.perf_counter()
    launched = subprocess.run(
        [sys.executable, "-c", LAUNCHER, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - start
    size, peak = file.stat().st_size, 1024 * int(launched.stdout)
    return {
        "dtype": dtype,
        "file_gb": round(size / 1e9, 3),
        "peak_gb": round(peak / 1e9, 3),
        "peak_over_file": round(peak / size, 2),
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
