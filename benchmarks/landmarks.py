"""Choice of landmarks by farthest point sampling: ours against torch-quickfps.

    python -m benchmarks.landmarks

Both start at the first token, and take turns in one process (`evals.running.timing`).
`same_indices` tells whether they chose the same tokens.
"""

import jax
import numpy as np
import tqdm

from benchmarks import layer_tables, peers
from benchmarks.plots import Panel, write_plot
from benchmarks.rows import benchmark_parser, parse, timing_columns, write_rows
from evals.running.timing import time_in_turns
from fna_jax import select_landmarks


def main(argv=None):
    parser = benchmark_parser("landmarks", repeats=9)
    parser.add_argument("--tokens", type=int, nargs="+", default=[257, 1025, 4097, 16385])
    parser.add_argument("--features", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--landmarks", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    arguments = parse(parser, argv)
    sizes = [(n, c) for n in arguments.tokens for c in arguments.features]
    rows = []
    for num_tokens, width in tqdm.tqdm(sizes, unit="size"):
        rows += measure(num_tokens, width, arguments)
    write_rows(arguments.output, rows, **peers.versions("torch", "torch-quickfps"))
    print(layer_tables.landmarks(rows))
    panels = [
        Panel(
            [row for row in rows if row["features"] == width], "tokens", title=f"{width} features"
        )
        for width in arguments.features
    ]
    write_plot(arguments.output, panels)


def measure(num_tokens, width, arguments) -> list[dict]:
    """One row per arm."""
    shape = (arguments.batch, num_tokens, width)
    points = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    on_device = jax.device_put(points)
    select = jax.jit(lambda x: select_landmarks(x, arguments.landmarks).indices)
    arms = {"fna_jax": lambda: np.asarray(select(on_device))}
    if sample := peers.sampler(arguments.landmarks):
        arms["torch-quickfps"] = peers.blocking(sample, peers.as_tensor(points))
    timings = time_in_turns(arms, repeats=arguments.repeats, settle=peers.SETTLE)
    chosen = {name: np.array(arms[name]().tolist()) for name in timings}
    fixed = {"tokens": num_tokens, "features": width}
    fixed |= {name: getattr(arguments, name) for name in ("landmarks", "batch", "repeats")}
    return [
        {
            "arm": name,
            **fixed,
            **timing_columns(timing, compiled=name == "fna_jax"),
            "times_faster": round(timings["fna_jax"].speedup(timing), 1),
            "same_indices": np.array_equal(chosen[name], chosen["fna_jax"]),
        }
        for name, timing in timings.items()
    ]


if __name__ == "__main__":
    main()
