"""Peak memory of one attention layer, exact and FNA with sampling, against the number of tokens.

    python -m benchmarks.memory

Two measures of one peak, in MB and over the size of query, key, value and output together:

- compiled: arguments, output and temporaries of the program, by XLA's own account; nothing runs.
- resident, on a CPU: how much higher memory rises in a process that runs the program once than in
  one that compiles the same program for the same states, and then only makes an output; plus the
  size of states and output. A process is good for some 10 MB of noise.
"""

import functools
import math

import jax
import jax.numpy as jnp
import tqdm

from benchmarks import layer_tables
from benchmarks.attention import functions, layer_parser
from benchmarks.plots import Panel, write_plot
from benchmarks.processes import run_measured
from benchmarks.rows import write_rows

ARMS = ("exact, jax.nn", "exact", "FNA, q sampled")  # the first is quadratic, and only compiled
STATES = "query, key, value and output"
OPTIONS = ("batch", "heads", "head_dim", "landmarks", "dtype")


def main(argv=None):
    parser = layer_parser("memory")
    sizes = [1025, 4097, 16385, 65537]
    parser.add_argument("--tokens", type=int, nargs="+", default=sizes)
    parser.add_argument("--landmarks", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    most = "exact attention is not run for more tokens than these"
    parser.add_argument("--exact_tokens", type=int, default=16385, help=most)
    alone = "only run this arm once; what the benchmark starts to measure it"
    parser.add_argument("--run", choices=ARMS, help=alone)
    parser.add_argument("--hold", choices=ARMS, help="the same without running the arm")
    arguments = parser.parse_args(argv)
    if arguments.run or arguments.hold:
        run_alone(arguments)
        return
    jobs = [(arm, num_tokens) for arm in ARMS for num_tokens in arguments.tokens]
    rows = [measure(*job, arguments) for job in tqdm.tqdm(jobs, unit="size")]
    write_rows(arguments.output, rows)
    print(layer_tables.memory(rows))
    panels = []
    for how in ("compiled", "resident"):
        sizes = {row["tokens"]: row["states_mb"] for row in rows}
        states = [{"arm": STATES, "tokens": n, f"{how}_mb": mb} for n, mb in sizes.items()]
        panel = Panel(rows + states, "tokens", f"{how}_mb", title=how, y_label="peak, MB")
        panels.append(panel)
    write_plot(arguments.output, panels)


def measure(arm, num_tokens, arguments) -> dict:
    """One row: both peaks, and both over the size of query, key, value and output."""
    spec = state_spec(num_tokens, arguments)
    states = 4 * math.prod(spec.shape) * spec.dtype.itemsize
    options = {name: getattr(arguments, name) for name in OPTIONS}
    row = {"arm": arm, "tokens": num_tokens, **options, "states_mb": round(states / 1e6, 1)}
    peaks = {"compiled": compiled_peak(compiled(arm, spec, arguments.landmarks))}
    most_tokens = {"exact, jax.nn": 0, "exact": arguments.exact_tokens}.get(arm, num_tokens)
    if jax.default_backend() == "cpu" and num_tokens <= most_tokens:
        peaks["resident"] = resident_rise(arm, num_tokens, arguments) + states
    for how, peak in peaks.items():
        row |= {f"{how}_mb": round(peak / 1e6, 1), f"{how}_over_states": round(peak / states, 2)}
    return row


def state_spec(num_tokens, arguments):
    """Shape and dtype of query, key, value and output."""
    shape = arguments.batch, num_tokens, arguments.heads, arguments.head_dim
    return jax.ShapeDtypeStruct(shape, jnp.dtype(arguments.dtype))


def compiled(arm, spec, num_landmarks):
    """The program of an arm for a query, key and value like that."""
    function = functions(num_landmarks)[arm]
    return jax.jit(lambda q, k, v: function(q, k, v, None, None)).lower(spec, spec, spec).compile()


def compiled_peak(program) -> int:
    """Bytes of a program's arguments, output and temporaries."""
    sizes = program.memory_analysis()
    kinds = ("argument", "output", "temp")
    return sum(getattr(sizes, f"{kind}_size_in_bytes") for kind in kinds)


def resident_rise(arm, num_tokens, arguments) -> int:
    """Bytes at the peak of a process that runs an arm beyond those of one that does not."""
    options = [f"--{name}={getattr(arguments, name)}" for name in OPTIONS]
    options.append(f"--tokens={num_tokens}")
    peak = lambda how: run_measured("-m", "benchmarks.memory", f"--{how}={arm}", *options)[1]
    return peak("run") - peak("hold")


def run_alone(arguments):
    """Makes the states and compiles the program; then runs it, or makes an output instead."""
    spec = state_spec(arguments.tokens[0], arguments)
    states = [state(spec, offset) for offset in range(3)]
    program = compiled(arguments.run or arguments.hold, spec, arguments.landmarks)
    jax.block_until_ready(program(*states) if arguments.run else state(spec, 3))


@functools.partial(jax.jit, static_argnums=0)
def state(spec, offset):
    """Some numbers, made without temporaries, which random ones would need."""
    numbers = jnp.sin(jnp.arange(math.prod(spec.shape)) + offset)
    return numbers.astype(spec.dtype).reshape(spec.shape)


if __name__ == "__main__":
    main()
