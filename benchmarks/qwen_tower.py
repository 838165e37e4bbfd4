"""Qwen3-VL's vision tower from 1,024 to 65,536 patches: arithmetic, memory, and time of a block.

    python -m benchmarks.qwen_tower

A row for each size of image and attention, which is that of every block of the tower:

- gmacs: giga multiply-adds of the whole tower, counted, mergers included; `times_less` than exact.
- attention_share: exact attention's part of the whole tower's.
- block_temporaries_mb: of one block with its norms, projections and MLP, by XLA's own account of
  the compiled program, which does not run. Blocks follow each other: the tower needs no more.
- matrix_gb: of one matrix of weights for all heads, `H · N² · 4` bytes: what a port holds that
  forms it in float32.
- block_s: seconds of one block, not of the tower, up to `--most_patches`; `without_attention` with
  the values in attention's place.

Rows of the output that are complete stay as they are, so that a run can be continued.
"""

import dataclasses
import functools
import math
import pathlib
import time

import jax
import numpy as np
import tqdm
from flax import nnx

import models
from benchmarks import model_tables
from benchmarks.rows import benchmark_parser, parse, read_rows, write_rows
from evals.jobs.cost import vision_cost
from fna_jax import FNAConfig
from models.attends import Attended
from models.inputs.qwen_images import FRAMES

WITHOUT = "without attention"
_LEAST_SECONDS = 1.0  # of the timed runs of a block together


def main(argv=None):
    parser = benchmark_parser("qwen_tower")
    parser.add_argument("--model", default="qwen3-vl-2b-vision", help="a tower of Qwen3-VL")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    grids = ["32x32", "64x64", "128x128", "136x240", "256x256"]  # the fourth of 2160 × 3840 pixels
    parser.add_argument("--grids", nargs="+", default=grids, help="patches down and across")
    parser.add_argument("--landmarks", type=int, default=64)
    parser.add_argument("--windows", type=int, default=144, help="of the near field")
    most = "blocks are not run with more patches than these; 0 to compile alone"
    parser.add_argument("--most_patches", type=int, default=16384, help=most)
    arguments = parse(parser, argv)
    found = kept_rows(arguments)
    for grid, arm in tqdm.tqdm(jobs(arguments), unit="row"):
        if not is_complete(found.get(key_of(grid, arm, arguments)), grid, arguments):
            found[key_of(grid, arm, arguments)] = measure(grid, arm, arguments)
            write_rows(arguments.output, found.values())
    print(model_tables.qwen_tower(read_rows(arguments.output)))


def jobs(arguments) -> list[tuple]:
    """The grid and the arm of each row."""
    pairs = [(grid, arm) for grid in map(grid_of, arguments.grids) for arm in arms_of(arguments)]
    return [(grid, arm) for grid, arm in pairs if arm != WITHOUT or is_timed(grid, arguments)]


def grid_of(text) -> tuple[int, int]:
    """Patches down and across, of a text like "32x32"."""
    down, across = map(int, text.split("x"))
    return down, across


def kept_rows(arguments) -> dict:
    """The rows of an earlier run, by what they are of."""
    output = pathlib.Path(arguments.output)
    rows = read_rows(output) if output.is_file() else []
    return {tuple(row[name] for name in ("model", "dtype", "grid", "arm")): row for row in rows}


def key_of(grid, arm, arguments) -> tuple:
    """What a row is of."""
    return arguments.model, arguments.dtype, "{}x{}".format(*grid), arm


def is_complete(row, grid, arguments) -> bool:
    """Whether a row of an earlier run has all that it would get."""
    return row is not None and (not is_timed(grid, arguments) or bool(row["block_s"]))


def is_timed(grid, arguments) -> bool:
    """Whether a block is run on so many patches."""
    return math.prod(grid) <= arguments.most_patches


def arms_of(arguments) -> dict:
    """The attention of every block by name: settings of block 0, or None."""
    centroid = functools.partial(
        FNAConfig, (0,), features="k", approximation="centroid", partition="kmeans"
    )
    windows = arguments.windows
    return {
        "exact": None,
        "FNA": FNAConfig((0,), arguments.landmarks),
        "centroid": centroid(num_landmarks=arguments.landmarks),
        "centroid, near field": centroid(num_landmarks=windows, windows=windows, near=1),
        WITHOUT: None,
    }


def measure(grid, arm, arguments) -> dict:
    """One row."""
    family, config = published(arguments)
    one_block = models.registry.override(config, {"encoder": {"depth": 1}, "deepstack": ()})
    fna, num_patches = arms_of(arguments)[arm], math.prod(grid)
    row = dict(zip(("model", "dtype", "grid", "arm"), key_of(grid, arm, arguments)))
    row |= {"patches": num_patches}
    if arm != WITHOUT:
        row |= counted(config, num_patches, fna)
    program = block_program(family, one_block, fna, grid, arm)
    memory = program.memory_analysis().temp_size_in_bytes
    row |= {"block_temporaries_mb": round(memory / 1e6, 1), "block_s": "", "runs": ""}
    row |= {"matrix_gb": round(matrix_bytes(config, num_patches) / 1e9, 3)}
    if is_timed(grid, arguments):
        state = nnx.state(family.model(one_block, rngs=nnx.Rngs(0)))
        shape = 1, num_patches, config.encoder.width
        x = np.random.default_rng(0).standard_normal(shape, np.float32).astype(one_block.dtype)
        row |= timed(lambda: jax.block_until_ready(program(state, x)))
    return row


def published(arguments):
    """The family of the tower and its config."""
    family, config = models.registry.published(arguments.model)
    dtypes = {"dtype": arguments.dtype, "param_dtype": arguments.dtype}
    return family, models.registry.override(config, dtypes)


def counted(config, num_patches, fna) -> dict:
    """Multiply-adds of the whole tower with this attention in all blocks."""
    encoder = config.encoder
    everywhere = () if fna is None else (_in_all(fna, encoder.depth),)
    cost, rest = vision_cost(encoder, num_patches, everywhere), outside(config, num_patches)
    exact = cost.linear + cost.attention + rest
    return {
        "gmacs": round((cost.total + rest) / 1e9, 1),
        "times_less": round(exact / (cost.total + rest), 3),
        "attention_share": round(cost.attention / exact, 4),
    }


def _in_all(fna, depth):
    """The settings in all blocks; clusters and landmarks are chosen anew in each, as if alone."""
    return dataclasses.replace(fna, layers=tuple(range(depth)), resample=True)


def outside(config, num_patches) -> int:
    """Multiply-adds of the patch embedding and the mergers."""
    embedding = 3 * FRAMES * config.patch_size**2 * config.encoder.width
    square = config.merge_size**2 * config.encoder.width
    mergers = (1 + len(config.deepstack)) * square * (square + config.out_width)
    return num_patches * embedding + num_patches // config.merge_size**2 * mergers


def matrix_bytes(config, num_patches) -> int:
    """Of the weights of all heads in float32, in a port that forms them."""
    return config.encoder.num_heads * num_patches**2 * 4


def block_program(family, config, fna, grid, arm):
    """The compiled block of a tower that has one, of its state and x `[1, N, C]`."""
    view = models.with_attention(models.registry.abstract_model(family.model, config), fna)
    graphdef, state = nnx.split(view)
    shape = (1, *(side * config.patch_size for side in grid), 3)
    images = jax.ShapeDtypeStruct(shape, np.float32)

    def run(state, x):
        tower = nnx.merge(graphdef, state)
        attends = tower.attends_on(images)
        if arm == WITHOUT:
            attends = [lambda x, query, key, value, landmarks: Attended(value, landmarks)]
        return tower.encoder(x, attends, landmarks=(None,) * len(tower.fna))[0]

    x = jax.ShapeDtypeStruct((1, math.prod(grid), config.encoder.width), config.dtype)
    return jax.jit(run).lower(state, x).compile()


def timed(run) -> dict:
    """The median of some runs, of one where it takes long; what runs is compiled already."""
    seconds = []
    while sum(seconds) < _LEAST_SECONDS or len(seconds) == 2:
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return {"block_s": round(float(np.median(seconds)), 4), "runs": len(seconds)}


if __name__ == "__main__":
    main()
