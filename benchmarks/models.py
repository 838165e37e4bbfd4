"""Whole vision models: exact, FNA and centroid attention, and Hugging Face's model in PyTorch.

    python -m benchmarks.models

Random weights of a published size, at resolutions of your choice, for which positions are made
(nothing is resized). All arms of a size run in one process, in turns of random order, after a
warm-up. Centroid attention is in the blocks of FNA, with clusters by k-means from windows, and, as
another arm, in all blocks, with a near field in the others. `speedup` is over our exact model;
`counted_speedup` is what counting multiply-adds allows (`evals.jobs.cost`), `share_of_counted` one
over the other; `times_hugging_face` is the time over that of Hugging Face's model with
`scaled_dot_product_attention`.
"""

import functools
import sys

import jax
import tqdm
from flax import nnx

import models
import models.registry
from benchmarks import peers, tables
from benchmarks.attention import blocking
from benchmarks.plots import Panel, write_plot
from benchmarks.published import layouts_of
from benchmarks.rows import benchmark_parser, parse, timing_columns, write_rows
from convert.originals import prepare_libraries
from evals.jobs.cost import vision_cost
from evals.running.timing import time_in_turns
from fna_jax.config import FEATURES, FNAConfig
from models.configs import DTYPES

HUGGING_FACE = "exact, Hugging Face"


def main(argv=None):
    parser = benchmark_parser("models", repeats=5)
    parser.add_argument("--model", default="clip-vit-l-14", help="one of models.list_models()")
    parser.add_argument("--pixels", type=int, nargs="+", default=[448, 896], help="sides of images")
    parser.add_argument("--landmarks", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--layers", help="of FNA, as in 12:24; by default the second half")
    parser.add_argument("--features", choices=FEATURES, default="q")
    parser.add_argument("--resample", action="store_true", help="choose landmarks in each layer")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    arguments = parse(parser, argv)
    rows = []
    for pixels in tqdm.tqdm(arguments.pixels, unit="size"):
        rows += measure(sized_config(arguments.model, pixels, arguments.dtype), arguments)
    write_rows(arguments.output, rows, **peers.versions("torch", "transformers"))
    print(tables.models(rows))
    fast = [row for row in rows if "layers" in row and "speedup" in row]
    fast += [
        row | {"arm": f"{row['arm']}, counted", "speedup": row["counted_speedup"]} for row in fast
    ]
    faster = "times faster than our exact model"
    speedup = Panel(fast, "pixels", "speedup", y_label=faster, y_scale="linear")
    write_plot(arguments.output, [Panel(rows, "pixels"), speedup])


def sized_config(name, pixels, dtype):
    """The config of a published model for square images of so many pixels a side.

    Raises:
      ValueError: an unknown model, or a size that does not divide by its patches.
    """
    for family in models.registry.FAMILIES.values():
        if name in family.variants:
            config = family.variants[name]
            size = {"image_size": pixels}
            size = {"vision": size} if hasattr(config, "vision") else size
            dtypes = {"dtype": dtype, "param_dtype": dtype}
            return models.registry.override(config, size | dtypes)
    known = models.list_models()
    raise ValueError(f"unknown model {name!r}{models.registry.did_you_mean(name, known)}")


def measure(config, arguments) -> list[dict]:
    """One row per arm."""
    (family,) = (f for f in models.registry.FAMILIES.values() if f.config is type(config))
    model = family.model(config, rngs=nnx.Rngs(0))
    vision = models.registry.vision_config(config)
    arms = attentions(fna_config(vision.encoder.depth, arguments), vision.encoder.depth)
    views = {name: models.with_attention(model, configs) for name, configs in arms.items()}
    towers = {name: models.vision_tower(view) for name, view in views.items()}
    shape = arguments.batch, vision.image_size, vision.image_size, 3
    images = jax.random.normal(jax.random.key(0), shape)
    compiled = {name: blocking(run, *nnx.split(tower), images) for name, tower in towers.items()}
    timings = time_in_turns(
        compiled | hugging_face(config, images), repeats=arguments.repeats, settle=peers.SETTLE
    )
    num_tokens = jax.eval_shape(towers["exact"].embed, images).shape[1]
    fixed = {"model": arguments.model, "pixels": vision.image_size, "tokens": num_tokens}
    fixed |= {name: getattr(arguments, name) for name in ("batch", "dtype", "repeats")}
    rows = []
    for name, timing in timings.items():
        row = {"arm": name, **fixed, **timing_columns(timing, compiled=name in compiled)}
        configs = arms.get(name)
        if configs:
            row["layers"] = f"{configs[0].layers[0]} to {configs[-1].layers[-1]}"
            fields = ("num_landmarks", "features", "resample")
            row |= {field: getattr(configs[-1], field) for field in fields}
        counted = vision_cost(vision.encoder, num_tokens, configs).speedup if configs else 1
        rows.append(row | ratios(timing, timings, counted))
    return rows


def fna_config(depth, arguments):
    """FNA as the options say, in a vision encoder with so many blocks."""
    options = {"features": arguments.features, "resample": arguments.resample}
    layers = arguments.layers or f"{depth // 2}:{depth}"
    return FNAConfig(layers, arguments.landmarks, **options)


def attentions(fna, depth) -> dict:
    """The arms of a vision encoder of so many blocks: a tuple of `FNAConfig` by name.

    Args:
      fna: those of FNA, `FNAConfig`; centroid attention gets as many clusters and windows.
      depth: of the encoder.
    """
    size, others = fna.num_landmarks, sorted({*range(depth)} - {*fna.layers})
    centroid = functools.partial(
        FNAConfig, num_landmarks=size, features="k", approximation="centroid", partition="kmeans"
    )
    arms = {"exact": (), "FNA": (fna,), "centroid": (centroid(fna.layers),)}
    if others:
        arms["centroid, all blocks"] = centroid(tuple(others), windows=size), *arms["centroid"]
    return arms


def ratios(timing, timings, counted) -> dict:
    """An arm against the exact models that ran, and against what counting allows."""
    columns = {}
    if exact := timings.get("exact"):
        speedup = timing.speedup(exact)
        columns["speedup"] = round(speedup, 3)
        columns["counted_speedup"] = round(counted, 3)
        columns["share_of_counted"] = round(speedup / counted, 3)
    if original := timings.get(HUGGING_FACE):
        columns["times_hugging_face"] = round(original.speedup(timing), 3)
    return columns


@functools.partial(jax.jit, static_argnums=0)
def run(graphdef, state, images):
    """The pooled output of a vision tower."""
    return nnx.merge(graphdef, state)(images).pooled


def hugging_face(config, images) -> dict:
    """The arm of the same architecture in transformers, or nothing, said so on stderr."""
    if peers.device() is None or (model := original_model(config)) is None:
        return {}
    pixels = peers.as_tensor(images, config.dtype).permute(0, 3, 1, 2).contiguous()
    model = model.to(pixels.device, pixels.dtype).eval()
    return {HUGGING_FACE: peers.blocking(lambda: model(pixel_values=pixels).pooler_output)}


def original_model(config):
    """The vision model of transformers with such a config and random weights, or None, said so."""
    prepare_libraries()
    if (transformers := peers.library("transformers")) is None:
        return None
    layouts = {layout.library: values for layout, values in layouts_of(config)}
    if (values := layouts.get("transformers")) is None:
        print(f"{HUGGING_FACE} is left out: the model is not one of transformers", file=sys.stderr)
        return None
    original = transformers.CONFIG_MAPPING[values["model_type"]].from_dict(values)
    original = getattr(original, "vision_config", original)
    return transformers.AutoModel.from_config(original, attn_implementation="sdpa")


if __name__ == "__main__":
    main()
