"""One attention layer: exact against FNA, by number of tokens.

    python -m benchmarks.attention

All arms of a size run in one process, in turns of random order, after a warm-up; compilation is
counted apart. PyTorch's exact attention takes part where torch is installed.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from benchmarks.rows import write_rows
from evals.timing import time_in_turns
from evals.workdir import ROOT
from fna_jax import exact_attention, fast_nystrom_attention, select_landmarks


def main(argv=None):
    arguments = _parser().parse_args(argv)
    rows = []
    for num_tokens in tqdm.tqdm(arguments.tokens, unit="size"):
        rows += measure(num_tokens, arguments)
    print(write_rows(arguments.output, rows))


def measure(num_tokens, arguments) -> list[dict]:
    """One row per arm: milliseconds of the median run and of the quartiles, seconds to compile."""
    shape = (arguments.batch, num_tokens, arguments.heads, arguments.head_dim)
    query, key, value = jax.random.normal(jax.random.key(0), (3, *shape), arguments.dtype)
    compiled = jax_arms(query, key, value, arguments.landmarks)
    arms = compiled | torch_arms(query, key, value, arguments.landmarks)
    sizes = {name: getattr(arguments, name) for name in ("batch", "heads", "head_dim", "landmarks")}
    rows = []
    for name, timing in time_in_turns(arms, repeats=arguments.repeats).items():
        low, median, high = np.round(1000 * np.quantile(timing.seconds, [0.25, 0.5, 0.75]), 3)
        row = {"arm": name, "tokens": num_tokens, **sizes, "dtype": arguments.dtype}
        row |= {"median_ms": median, "quartile_1_ms": low, "quartile_3_ms": high}
        if name in compiled:  # PyTorch does not compile
            row["compile_s"] = round(timing.compile_seconds, 2)
        rows.append(row | {"repeats": arguments.repeats})
    return rows


def jax_arms(query, key, value, num_landmarks):
    """Functions without arguments that run one arm to its end."""

    def fna(query, key, value, indices):
        return fast_nystrom_attention(query, key, value, indices)

    def fna_with_sampling(query, key, value):
        landmarks = select_landmarks(jnp.mean(query, axis=-2), num_landmarks)
        return fast_nystrom_attention(query, key, value, landmarks)

    indices = select_landmarks(jnp.mean(query, axis=-2), num_landmarks).indices
    arms = {
        "exact": (exact_attention, (query, key, value)),
        "exact, jax.nn": (jax.nn.dot_product_attention, (query, key, value)),
        "FNA, landmarks given": (fna, (query, key, value, indices)),
        "FNA, q sampled": (fna_with_sampling, (query, key, value)),
    }
    return {
        name: functools.partial(lambda f, args: jax.block_until_ready(f(*args)), jax.jit(f), args)
        for name, (f, args) in arms.items()
    }


def torch_arms(query, key, value, num_landmarks):
    """PyTorch's exact attention and FNA built on it, on the CPU, or nothing, said so."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        import torch
    except ImportError:
        print("torch is not installed: its exact attention and FNA are left out")
        return {}
    indices = select_landmarks(jnp.mean(query, axis=-2), num_landmarks).indices
    indices = torch.from_numpy(np.array(indices, np.int64))[:, None, :, None]
    heads_first = [
        torch.from_numpy(np.array(x, np.float32)).transpose(1, 2).contiguous()
        for x in (query, key, value)
    ]
    heads_first = [x.to(getattr(torch, str(query.dtype))) for x in heads_first]
    attend = torch.nn.functional.scaled_dot_product_attention

    def fna():
        query, key, value = heads_first  # [B, H, N, D]
        at_landmarks = indices.expand(-1, query.shape[1], -1, query.shape[3])
        landmark_query, landmark_key = query.gather(2, at_landmarks), key.gather(2, at_landmarks)
        scale = query.shape[-1] ** -0.5
        logits = scale * landmark_query.float() @ landmark_key.float().transpose(-1, -2)
        kernel = logits.softmax(-1)
        eye = torch.eye(kernel.shape[-1])
        inverse = kernel.transpose(-1, -2) / kernel.sum(-2).amax(-1)[..., None, None]
        for _ in range(6):
            product = kernel @ inverse
            inner = 15 * eye - product @ (7 * eye - product)
            inverse = 0.25 * inverse @ (13 * eye - product @ inner)
        landmark_value = inverse @ attend(landmark_query, key, value).float()
        return attend(query, landmark_key, landmark_value.to(value.dtype))

    version = torch.__version__
    return {
        f"exact, torch {version}": functools.partial(attend, *heads_first),
        f"FNA, landmarks given, torch {version}": fna,
    }


def _parser():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention")
    parser.add_argument("--tokens", type=int, nargs="+", default=[257, 1025, 4097, 16385])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--head_dim", type=int, default=64)
    parser.add_argument("--landmarks", type=int, default=64)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", default=str(ROOT / "results" / "attention.csv"))
    return parser


if __name__ == "__main__":
    main()
