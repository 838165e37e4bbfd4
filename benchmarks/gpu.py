"""NVIDIA GPUs: what a layer launches, which needs none, and what it takes, which does.

    pip install --no-deps -r requirements-gpu.txt && JAX_PLATFORMS=cpu python -m benchmarks.gpu
    XLA_PYTHON_CLIENT_PREALLOCATE=false python -m benchmarks.gpu --measure

The first compiles layers ahead of time for an H100 and writes results/gpu_launches.csv: kernels and
library calls of one run, and temporary memory. Without a GPU nothing is tuned, and cuDNN's
attention cannot be compiled: times it does not tell.

The second measures on the GPU that JAX finds, and writes results/gpu.csv as it goes: first how far
every arm is from the same formula in float64 on the CPU, and it stops where one is wrong; then
layers, sampling, the inverse, and whole towers with random weights. Arms of a size run in turns of
random order, each a number of times without waiting in between, as in a model. What would begin
after `--seconds` is left out, and said so; `--match` measures that alone. PyTorch's arms take part
where it sees the GPU.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import importlib.resources
import math
import operator
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies

import models
from benchmarks import layers, peers
from benchmarks.attention import blocking, random_states
from benchmarks.launches import count_launches
from benchmarks.models import attentions, hugging_face, run, sized_config
from benchmarks.rows import benchmark_parser, matching, timing_columns, write_rows
from evals.jobs.cost import vision_cost
from evals.running.timing import time_in_turns
from fna_jax import (
    FNAConfig,
    exact_attention,
    fast_nystrom_attention,
    newton_schulz_inverse,
    select_landmarks,
)

TOKENS = (1025, 4097, 16385, 65537)  # 32², 64², 128² and 256² patches
TOWERS = (("clip-vit-l-14", 448), ("clip-vit-l-14", 896))
TOWERS += (("dinov3-vit-l-16", 1024), ("dinov3-vit-l-16", 2048))
# Of the same formula in float64: half precision rounds the weights to 2⁻⁸, and products of float32
# are made of TF32, whose 10 bits are XLA's default on GPUs.
ERROR_LIMIT = {"bfloat16": 2e-2, "float32": 5e-3}


def main(argv=None):
    parser = benchmark_parser("gpu", repeats=5)
    parser.add_argument("--measure", action="store_true", help="on a GPU; else compile for one")
    parser.add_argument("--seconds", type=float, default=440, help="nothing begins later")
    parser.add_argument("--match", default="", help="measure only errors and parts so named")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="squares plus one")
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--head_dim", type=int, default=64)
    parser.add_argument("--landmarks", type=int, default=64, help="and clusters, and windows")
    parser.add_argument("--batch", type=int, default=4, help="one from 65,537 tokens on")
    parser.add_argument("--towers", nargs="*", default=[f"{m}:{p}" for m, p in TOWERS])
    arguments = parser.parse_args(argv)
    if arguments.measure:
        measure(arguments)
    else:
        launches(arguments)


def launches(arguments):
    """Rows of what is launched, by ahead-of-time compilation for an H100."""
    device = h100()
    sharding = jax.sharding.SingleDeviceSharding(device)
    rows = []
    for num_tokens in arguments.tokens:
        for dtype in ("bfloat16", "float32"):
            sizes = sizes_of(num_tokens, dtype, arguments)
            shapes = layers.shapes(*sizes.values(), sharding)
            with jax.default_device(device):  # what chooses kernels looks there
                programs = compiled_together(layer_functions(sizes), *shapes)
            for name, (program, seconds) in programs.items():
                row = {"arm": name, **sizes, "launches": count_launches(program.as_text())}
                rows.append(row | {"temporary_mb": megabytes(program), "compile_s": seconds})
                print(*rows[-1].values(), sep="\t", flush=True)
    output = pathlib.Path(arguments.output)
    write_rows(output.with_stem(f"{output.stem}_launches"), rows)


def h100():
    """A device that programs can be compiled for, which is not there."""
    target = importlib.resources.files("benchmarks").joinpath("h100.txtpb").read_text()
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="h100", topology="1x1x1", target_config=target
    )
    return topology.devices[0]


def measure(arguments):
    """Rows of all measurements, the most asked for first."""
    if jax.default_backend() != "gpu":
        sys.exit(f"--measure needs a GPU, but JAX computes on {jax.default_backend()}")
    start, rows, left = time.perf_counter(), [], []
    versions = peers.versions("torch", "transformers")
    for name, part in chosen_parts(arguments):
        if time.perf_counter() - start > arguments.seconds:
            left.append(name)
            continue
        print(f"{time.perf_counter() - start:.0f} s: {name}", flush=True)
        for row in part():
            rows.append(row)
            print(*row.values(), sep="\t", flush=True)
            write_rows(arguments.output, rows, **versions)
        # Not >, which NaN would pass.
        if wrong := [row for row in rows if not row.get("error", 0) <= ERROR_LIMIT[row["dtype"]]]:
            sys.exit(f"wrong beyond rounding: {wrong}")
    if left:
        print(f"left out after {arguments.seconds:.0f} s: {', '.join(left)}", file=sys.stderr)


def chosen_parts(arguments):
    """The errors, and the other parts that `--match` names; exits where it names none."""
    errors, *others = parts(arguments)
    name_of = operator.itemgetter(0)
    return [errors, *matching(arguments.match, others, kind="part", name_of=name_of)]


def parts(arguments):
    """Names and functions, in order, each of which gives rows."""
    tokens, towers = sorted(arguments.tokens), [t.split(":") for t in arguments.towers]
    layer = lambda n, dtype: (
        f"layers, {n:,} tokens, {dtype}",
        lambda: layer_rows(sizes_of(n, dtype, arguments), arguments),
    )
    tower = lambda model, pixels, dtype: (
        f"{model}, {pixels} px, {dtype}",
        lambda: tower_rows(model, int(pixels), dtype, arguments),
    )
    yield "errors", lambda: error_rows(arguments)
    yield from (layer(n, "bfloat16") for n in tokens)
    yield "sampling and the inverse", lambda: piece_rows(arguments)
    yield from (layer(n, "float32") for n in tokens)
    yield from (tower(*sizes, "bfloat16") for sizes in towers)
    yield from (tower(*sizes, "float32") for sizes in towers)


def sizes_of(num_tokens, dtype, arguments) -> dict:
    """What a layer's arrays are made of."""
    if math.isqrt(num_tokens - 1) ** 2 != num_tokens - 1:
        sys.exit(f"--tokens must be squares plus one, such as {TOKENS}, got {num_tokens}")
    batch = arguments.batch if num_tokens < 65537 else 1
    sizes = dict(batch=batch, tokens=num_tokens, heads=arguments.heads)
    return sizes | dict(head_dim=arguments.head_dim, landmarks=arguments.landmarks, dtype=dtype)


def error_rows(arguments):
    """‖arm − float64‖ / ‖float64‖ of one image of the smallest size, in both dtypes.

    Landmarks and clusters are given. Of sampling, the share of landmarks that the CPU takes too.
    """
    num_tokens = min(arguments.tokens)
    functions = layers.given_functions(num_tokens, arguments.landmarks)
    cpu = jax.devices("cpu")[0]
    for dtype in ("bfloat16", "float32"):
        sizes = sizes_of(num_tokens, dtype, arguments) | {"batch": 1}
        *states, inputs = random_states(1, num_tokens, argparse.Namespace(**sizes))
        landmarks = select_landmarks(inputs, arguments.landmarks).indices
        on_cpu = jax.device_put((states, inputs, landmarks), cpu)
        with jax.enable_x64(True), jax.default_device(cpu):
            doubles = [x.astype(jnp.float64) for x in on_cpu[0]]
            right = {
                name: np.asarray(jax.jit(f)(*doubles, on_cpu[2])) for name, f in functions.items()
            }
        programs = compiled_together(functions, *states, landmarks)
        for name, (program, _) in programs.items():
            error = np.asarray(program(*states, landmarks), np.float64) - right[name]
            error = np.linalg.norm(error) / np.linalg.norm(right[name])
            yield {"part": "error", "arm": name, **sizes, "error": float(f"{error:.2g}")}
        with jax.default_device(cpu):
            same = select_landmarks(on_cpu[1], arguments.landmarks).indices == on_cpu[2]
        yield {"part": "same landmarks", "arm": "sampling", **sizes, "share": float(same.mean())}


def layer_rows(sizes, arguments):
    """Every arm of one layer."""
    states = random_states(sizes["batch"], sizes["tokens"], argparse.Namespace(**sizes))
    indices = select_landmarks(states[-1], sizes["landmarks"]).indices
    calls = max(1, 2**16 // (sizes["batch"] * sizes["tokens"]))
    programs = compiled_together(layer_functions(sizes), *states, indices)
    compiled = {
        name: blocking(program, *states, indices, calls=calls)
        for name, (program, _) in programs.items()
    }
    eager = peers.attention_arms(*states, indices, calls=calls)
    timings = time_in_turns(compiled | eager, repeats=arguments.repeats)
    for name, timing in timings.items():
        row = {"part": "layer", "arm": name, **sizes, **times(timing, calls)}
        if name in programs:
            program, seconds = programs[name]
            row |= {"compile_s": seconds, "temporary_mb": megabytes(program)}
        yield row


def layer_functions(sizes) -> dict:
    """The arms of `layers.functions`, and with our kernel or without any where that differs."""
    functions = layers.functions(sizes["tokens"], sizes["landmarks"], sizes["landmarks"])
    functions["exact, pallas"] = lambda q, k, v, *_: exact_attention(
        q, k, v, implementation="pallas"
    )
    functions["exact, xla"] = lambda q, k, v, *_: exact_attention(q, k, v, implementation="xla")
    functions["FNA, landmarks given, xla"] = lambda q, k, v, _, s: fast_nystrom_attention(
        q, k, v, s, implementation="xla"
    )
    return functions


def piece_rows(arguments):
    """Sampling alone, on features of one head and of all, and the inverse alone."""
    num_heads, head_dim = arguments.heads, arguments.head_dim
    for num_tokens in arguments.tokens:
        sizes = sizes_of(num_tokens, "float32", arguments)
        arms = {}
        for width in (head_dim, num_heads * head_dim):
            shape = sizes["batch"], num_tokens, width
            points = jax.random.normal(jax.random.key(0), shape)
            sample = jax.jit(functools.partial(select_landmarks, num_landmarks=sizes["landmarks"]))
            arms[f"sampling, {width} features"] = blocking(sample, points, calls=4)
        yield from piece("sampling", arms, sizes, arguments)
    for num_landmarks in (arguments.landmarks, 4 * arguments.landmarks):
        sizes = sizes_of(min(arguments.tokens), "float32", arguments) | {"landmarks": num_landmarks}
        shape = sizes["batch"], num_heads, num_landmarks, num_landmarks
        kernel = jax.nn.softmax(3 * jax.random.normal(jax.random.key(0), shape))
        arm = blocking(jax.jit(newton_schulz_inverse), kernel, calls=4)
        yield from piece("inverse", {"inverse": arm}, sizes, arguments)


def piece(part, arms, sizes, arguments):
    """Rows of arms that make four calls a run."""
    for name, timing in time_in_turns(arms, repeats=arguments.repeats).items():
        yield {"part": part, "arm": name, **sizes, **times(timing, 4)}


def tower_rows(name, pixels, dtype, arguments):
    """A whole vision tower: exact, and approximate in the second half of its blocks or in all."""
    (family, _), config = models.registry.published(name), sized_config(name, pixels, dtype)
    model = family.model(config, rngs=nnx.Rngs(0))
    encoder = models.registry.vision_config(config).encoder
    images = jax.random.normal(jax.random.key(0), (arguments.batch, pixels, pixels, 3))
    second_half = FNAConfig(range(encoder.depth // 2, encoder.depth), arguments.landmarks)
    settings = attentions(second_half, encoder.depth)
    towers = {
        arm: nnx.split(models.vision_tower(models.with_attention(model, configs)))
        for arm, configs in settings.items()
    }
    functions = {arm: functools.partial(run, graph) for arm, (graph, _) in towers.items()}
    state = towers["exact"][1]  # the weights are those of all
    programs = compiled_together(functions, state, images)
    compiled = {arm: blocking(program, state, images) for arm, (program, _) in programs.items()}
    num_tokens = jax.eval_shape(models.vision_tower(model).embed, images).shape[1]
    sizes = {"model": name, "pixels": pixels, "tokens": num_tokens}
    sizes |= {"batch": arguments.batch, "dtype": dtype}
    timings = time_in_turns(compiled | hugging_face(config, images), repeats=arguments.repeats)
    exact = timings["exact"]
    for arm, timing in timings.items():
        row = {"part": "tower", "arm": arm, **sizes, **times(timing, 1)}
        if arm in programs:
            program, seconds = programs[arm]
            row |= {"compile_s": seconds, "temporary_mb": megabytes(program)}
        if configs := settings.get(arm):
            counted = vision_cost(encoder, num_tokens, configs).speedup
            row["counted_times_exact"] = round(counted, 3)
        yield row | {"times_exact": round(timing.speedup(exact), 3)}


def compiled_together(functions, *arguments) -> dict:
    """Of each function its program for these arguments and the seconds to compile, four at a time.

    One that needs more memory than there is, or another device, is left out, and said so.
    """
    lowered = {}
    for name, function in functions.items():
        with left_out(name):
            lowered[name] = jax.jit(function).lower(*arguments)

    def compile_one(name):
        start = time.perf_counter()
        with left_out(name):
            return lowered[name].compile(), round(time.perf_counter() - start, 2)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        programs = dict(zip(lowered, pool.map(compile_one, lowered)))
    return {name: program for name, program in programs.items() if program}


@contextlib.contextmanager
def left_out(name):
    """Says on stderr what cannot run, and goes on behind."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        print(f"{name} is left out: {str(error).splitlines()[0]}", file=sys.stderr)


def times(timing, calls) -> dict:
    """Columns of the time of one of the calls of a run."""
    timing = dataclasses.replace(timing, seconds=timing.seconds / calls)
    return {"calls": calls} | timing_columns(timing, compiled=False)


def megabytes(program) -> float:
    """Temporary memory of a compiled program."""
    return round(program.memory_analysis().temp_size_in_bytes / 1e6, 1)


if __name__ == "__main__":
    main()
