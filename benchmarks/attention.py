"""One attention layer: exact against FNA, by number of tokens.

    python -m benchmarks.attention

All arms of a size run in one process, in turns of random order, after a warm-up; compilation is
counted apart. "sampled" arms choose their landmarks within the time, on the queries averaged over
heads or on a block's input of width C = H · D. PyTorch's take part where it is installed
(requirements-benchmarks.txt), on a GPU when JAX uses one.
"""

import functools

import jax
import jax.numpy as jnp
import tqdm

from benchmarks import layer_tables, peers
from benchmarks.plots import Panel, write_plot
from benchmarks.rows import benchmark_parser, parse, timing_columns, write_rows
from evals.running.timing import time_in_turns
from fna_jax import exact_attention, fast_nystrom_attention, select_landmarks
from fna_jax.fused import cudnn_obstacle


def main(argv=None):
    parser = layer_parser("attention", repeats=5)
    parser.add_argument("--tokens", type=int, nargs="+", default=[257, 1025, 4097, 16385])
    parser.add_argument("--landmarks", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    arguments = parse(parser, argv)
    rows = []
    for num_tokens in tqdm.tqdm(arguments.tokens, unit="size"):
        states = random_states(arguments.batch, num_tokens, arguments)
        indices = select_landmarks(states[-1], arguments.landmarks).indices
        compiled = jax_arms(*states, indices)
        eager = peers.attention_arms(*states, indices)
        sizes = {"tokens": num_tokens, "batch": arguments.batch, "landmarks": arguments.landmarks}
        rows += measure(compiled, eager, sizes, arguments)
    write_rows(arguments.output, rows, **peers.versions("torch", "torch-quickfps"))
    print(layer_tables.attention(rows))
    write_plot(arguments.output, [Panel(rows, "tokens")])


def layer_parser(name, *, repeats=None):
    """The options of a benchmark of one attention layer."""
    parser = benchmark_parser(name, repeats=repeats)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--head_dim", type=int, default=64)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    return parser


def random_states(batch, num_tokens, arguments):
    """Query, key and value `[B, N, H, D]`, and the block's input `[B, N, C]`."""
    shape = batch, num_tokens, arguments.heads, arguments.head_dim
    *states, inputs = jax.random.normal(jax.random.key(0), (4, *shape), arguments.dtype)
    return *states, inputs.reshape(batch, num_tokens, -1)


def measure(compiled, eager, sizes, arguments, *, fna_of=None) -> list[dict]:
    """One row per arm: of JAX, which compiles, or of PyTorch, which does not.

    `fna_of` names for some arms the one of FNA that `times_fna` compares their time with.
    """
    timings = time_in_turns(compiled | eager, repeats=arguments.repeats, settle=peers.SETTLE)
    options = {name: getattr(arguments, name) for name in ("heads", "head_dim", "dtype", "repeats")}

    def row(name, timing):
        row = {"arm": name, **sizes, **options}
        row |= timing_columns(timing, compiled=name in compiled)
        if (fna := timings.get((fna_of or {}).get(name))) is not None:
            row["times_fna"] = round(1 / timing.speedup(fna), 3)
        return row

    return [row(name, timing) for name, timing in timings.items()]


def functions(num_landmarks) -> dict:
    """What the arms of JAX compute from query, key, value, inputs and the landmarks given."""

    def fna_sampled_on(points):
        def fna(query, key, value, inputs, indices):
            landmarks = select_landmarks(points(query, inputs), num_landmarks)
            return fast_nystrom_attention(query, key, value, landmarks)

        return fna

    return {
        "exact": lambda q, k, v, *_: exact_attention(q, k, v),
        "exact, jax.nn": lambda q, k, v, *_: jax.nn.dot_product_attention(q, k, v),
        "FNA, landmarks given": lambda q, k, v, _, s: fast_nystrom_attention(q, k, v, s),
        "FNA, q sampled": fna_sampled_on(lambda query, inputs: jnp.mean(query, axis=-2)),
        "FNA, input sampled": fna_sampled_on(lambda query, inputs: inputs),
    }


def jax_arms(query, key, value, inputs, indices) -> dict:
    """Functions without arguments, by name, that run one arm to its end."""
    arms = functions(indices.shape[-1])
    if cudnn_obstacle(query, value, None) is None:
        cudnn = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
        arms["exact, cuDNN"] = lambda q, k, v, *_: cudnn(q, k, v)
    arguments = query, key, value, inputs, indices
    return {name: blocking(jax.jit(function), *arguments) for name, function in arms.items()}


def blocking(function, *arguments, calls=1):
    """An arm that calls the function so many times, as fast as they are taken, and waits."""

    def run():
        for _ in range(calls):
            out = function(*arguments)
        return jax.block_until_ready(out)

    return run


if __name__ == "__main__":
    main()
