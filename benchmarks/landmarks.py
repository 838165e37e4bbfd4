"""Choice of landmarks by farthest point sampling: ours against torch-quickfps.

    python -m benchmarks.landmarks

Both start at the first token, and take turns in one process (`evals.timing`). `same_indices` tells
whether they chose the same tokens.
"""

import argparse

import jax
import numpy as np
import tqdm

from benchmarks.rows import write_rows
from evals.timing import time_in_turns
from evals.workdir import ROOT
from fna_jax import select_landmarks


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.landmarks")
    parser.add_argument("--tokens", type=int, nargs="+", default=[257, 1025, 4097, 16385])
    parser.add_argument("--features", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--landmarks", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", default=str(ROOT / "results" / "landmarks.csv"))
    arguments = parser.parse_args(argv)
    sizes = [(n, c) for n in arguments.tokens for c in arguments.features]
    rows = []
    for num_tokens, width in tqdm.tqdm(sizes, unit="size"):
        rows += measure(num_tokens, width, arguments)
    print(write_rows(arguments.output, rows))


def measure(num_tokens, width, arguments) -> list[dict]:
    """One row per arm."""
    shape = (arguments.batch, num_tokens, width)
    points = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    on_device = jax.device_put(points)
    select = jax.jit(lambda x: select_landmarks(x, arguments.landmarks).indices)
    arms = {"fna_jax": lambda: np.asarray(select(on_device))} | quickfps(points, arguments)
    chosen = {name: arm() for name, arm in arms.items()}
    timings = time_in_turns(arms, repeats=arguments.repeats)
    fixed = {"tokens": num_tokens, "features": width}
    fixed |= {name: getattr(arguments, name) for name in ("landmarks", "batch", "repeats")}
    rows = []
    for name, timing in timings.items():
        low, median, high = np.round(1000 * np.quantile(timing.seconds, [0.25, 0.5, 0.75]), 3)
        row = {"arm": name, **fixed, "median_ms": median, "quartile_1_ms": low}
        row |= {"quartile_3_ms": high, "times_faster": round(timings["fna_jax"].speedup(timing), 1)}
        same = np.array_equal(chosen[name], chosen["fna_jax"])
        rows.append(row | {"same_indices": same})
    return rows


def quickfps(points, arguments) -> dict:
    """torch-quickfps on the CPU, or nothing, said so."""
    try:
        import torch
        import torch_quickfps
    except ImportError as error:
        print(f"torch-quickfps is left out: {error}")
        return {}
    points = torch.from_numpy(points)
    sample = lambda: torch_quickfps.sample_idx(points, arguments.landmarks, start_idx=0).numpy()
    return {f"torch-quickfps {_version()}": sample}


def _version():
    import importlib.metadata

    return importlib.metadata.version("torch-quickfps")


if __name__ == "__main__":
    main()
