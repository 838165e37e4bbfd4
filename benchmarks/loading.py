"""Images per second: reading them alone, the model alone, and both together.

    python -m benchmarks.loading

Makes a folder of JPEG images, smooth noise of 640 × 480 pixels, and reads it as the evaluations do:
decoded, preprocessed, in batches, by threads (0 workers) or by processes, whose start is part of
the time. `together` is the loop that embeds. All arms of a model take turns in one process: a
quarter of an hour on two cores.

`of_slower` is together over the slower of the two alone. Where both use the same cores (a model on
a CPU) it cannot reach 1: of a core's time each image takes what reading and the model take, so that
together does at most `shared_per_s` = 1 / (1 / loading + 1 / model), and `of_shared` says how much
of it. With an accelerator, cores only read, and `of_slower` is what counts: its stand-in
"waiting" sleeps for as long as `--waiting_per_s` says, and takes no core.
"""

import pathlib
import tempfile
import time

import jax
import numpy as np
import tqdm
from flax import nnx
from PIL import Image

import models
from benchmarks.rows import benchmark_parser, parse, write_rows
from evals.data import batches, image_files
from evals.running.devices import data_parallel, over_batches
from evals.running.embed import OUTPUTS
from evals.running.pretrained import EMBEDDED_MODEL, Backbone, open_backbone
from evals.running.timing import time_in_turns
from models.inputs.preprocessor import Preprocessor
from models.registry import vision_config

EMBEDDED = EMBEDDED_MODEL.name
WAITING = "waiting"
_SMOOTHED = 20  # pixels, of the noise


def main(argv=None):
    parser = benchmark_parser("loading", repeats=2)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, nargs=2, default=[640, 480], help="width, height")
    parser.add_argument(
        "--models",
        nargs="+",
        default=[WAITING, EMBEDDED, "vit-ti-16", "vit-s-16"],
        help=f"{WAITING}, {EMBEDDED} (embedded), or of models.list_models(), with random weights",
    )
    parser.add_argument("--waiting_per_s", type=float, default=100, help="images")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="0: threads")
    parser.add_argument("--batch", type=int, default=32)
    arguments = parse(parser, argv)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_images(pathlib.Path(folder), arguments.images, arguments.size)
        images = image_files(folder)
        for name in tqdm.tqdm(arguments.models, unit="model"):
            rows += measure(backbone_of(name), images, arguments)
    print(write_rows(arguments.output, rows))


def write_images(folder, count, size) -> None:
    """So many JPEGs of that width and height: smooth noise with a little grain, from one seed."""
    rng = np.random.default_rng(0)
    coarse = [max(side // _SMOOTHED, 1) for side in size]
    for index in range(count):
        noise = rng.integers(0, 256, (*coarse[::-1], 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC))
        grainy = smooth + rng.normal(0, 4, smooth.shape)
        image = Image.fromarray(np.clip(grainy, 0, 255).astype(np.uint8))
        image.save(folder / f"{index:06}.jpg", quality=90)


def backbone_of(name) -> Backbone:
    """The embedded model, or one of the zoo with random weights, or none, for images of 224."""
    if name == EMBEDDED:
        return open_backbone(str(EMBEDDED_MODEL))
    model = None if name == WAITING else models.create(name, rngs=nnx.Rngs(0))
    size = (224 if model is None else vision_config(model.config).image_size,) * 2
    return Backbone(name, model, Preprocessor(size, size, (0.5,) * 3, (0.5,) * 3))


def waiting(per_second):
    """A stand-in for a model on an accelerator: a function that only takes time."""

    def run(images, rng=None):
        time.sleep(len(images) / per_second)
        return np.zeros(len(images))

    return run


def measure(backbone, images, arguments) -> list[dict]:
    """A row for each number of workers."""
    if backbone.model is None:
        run = waiting(arguments.waiting_per_s)
    else:
        run = data_parallel(OUTPUTS["pooled"], backbone.model)
    first = next(batches(images, backbone.preprocess, arguments.batch))

    def load(workers):
        for _ in batches(images, backbone.preprocess, arguments.batch, workers=workers):
            pass

    def compute():
        steps = -(-len(images) // arguments.batch)
        jax.block_until_ready([run(first.images) for _ in range(steps)])

    def both(workers):
        steps = over_batches(run, images, backbone.preprocess, arguments.batch, workers=workers)
        for _ in steps:
            pass

    arms = {"model": compute}
    for workers in arguments.workers:
        arms[f"loading, {workers}"] = lambda workers=workers: load(workers)
        arms[f"together, {workers}"] = lambda workers=workers: both(workers)
    timings = time_in_turns(arms, repeats=arguments.repeats, progress=backbone.name)
    rate = {arm: len(images) / timing.median for arm, timing in timings.items()}
    fixed = {
        "model": pathlib.Path(backbone.name).name,
        "pixels": first.images.shape[1],
        "images": len(images),
        "batch": arguments.batch,
    }
    return [
        fixed
        | {"workers": workers}
        | shares(rate[f"loading, {workers}"], rate["model"], rate[f"together, {workers}"])
        for workers in arguments.workers
    ]


def shares(loading, model, together) -> dict:
    """The columns of three rates, in images per second."""
    shared = 1 / (1 / loading + 1 / model)
    return {
        "loading_per_s": round(loading, 1),
        "model_per_s": round(model, 1),
        "together_per_s": round(together, 1),
        "of_slower": round(together / min(loading, model), 3),
        "shared_per_s": round(shared, 1),
        "of_shared": round(together / shared, 3),
    }


if __name__ == "__main__":
    main()
