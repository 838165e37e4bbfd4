"""Time and memory of `main.py --config analyze.py` with a random model of published size.

    python -m benchmarks.analysis

Each run is a process of its own, with loading, compiling and drawing; its peak is the most memory
that was resident at once. A random model is the slowest case: the search for sinks takes all its
rounds.
"""

import argparse
import json
import pathlib
import tempfile

import numpy as np
from flax import nnx
from PIL import Image

import models
from benchmarks.processes import run_measured
from benchmarks.rows import write_rows
from evals.running.workdir import ROOT
from models.registry import vision_config


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.analysis")
    parser.add_argument("--variant", default="vit-b-16", help="one of models.list_models()")
    parser.add_argument("--images", type=int, nargs="+", default=[20, 100], help="how many")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--output", default=str(ROOT / "results" / "analysis.csv"))
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        side = write_random_model(arguments.variant, folder)
        write_random_images(folder / "images", max(arguments.images), side)
        rows = [measure(folder, number, arguments.batch_size) for number in arguments.images]
    fixed = {"variant": arguments.variant, "side": side}
    print(write_rows(arguments.output, [fixed | row for row in rows]))


def measure(folder, number, batch_size) -> dict:
    """One run on that many images: seconds, and gigabytes at the peak."""
    seconds, peak = run_measured(
        "main.py",
        "--config=analyze.py",
        f"--config.model={folder / 'model'}",
        f"--config.images={folder / 'images'}",
        f"--config.num_images={number}",
        f"--config.batch_size={batch_size}",
        f"--workdir={folder / str(number)}",
    )
    results = json.loads((folder / str(number) / "analysis.json").read_text())
    weights = sum(f.stat().st_size for f in (folder / "model").rglob("*") if f.is_file())
    return {
        "images": results["num_images"],
        "batch_size": batch_size,
        "max_sinks": results["max_sinks"],
        "images_at_max_sinks": results["images_at_max_sinks"],
        "weights_gb": round(weights / 1e9, 3),
        "peak_gb": round(peak / 1e9, 3),
        "seconds": round(seconds, 1),
    }


def write_random_model(variant, folder) -> int:
    """Writes `folder/model` with its preprocessing; the side of its images in pixels."""
    model = models.create(variant, rngs=nnx.Rngs(0))
    side = vision_config(model.config).image_size
    preprocessing = folder / "preprocessor_config.json"
    size = {"height": side, "width": side}
    preprocessing.write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", "size": size})
    )
    models.save(model, folder / "model", companions=[preprocessing])
    return side


def write_random_images(folder, number, side):
    """Writes PNGs of noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(number):
        pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:04}.png")


if __name__ == "__main__":
    main()
