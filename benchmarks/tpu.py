"""Attention layers and whole towers on TPUs, by their compiler: none is needed, none measured.

    pip install -r requirements-tpu.txt
    python -m benchmarks.tpu [--chips v5e v6e v5p] [--tokens 1025 4097 16385] [--match FNA]

libtpu compiles each arm ahead of time. `estimate_us` is made from the instructions it gives, as
`benchmarks.estimate` says, whose limits hold: nothing ran, and what has thousands of operations is
flattered. `temporary_mb` is what the compiled program allocates, `floor_us` the time of its
arguments and results alone at the full bandwidth of HBM; `compiles` is yes, or the error.

"sampled" arms choose their landmarks on the queries averaged over heads, centroid attention its
clusters on the keys likewise, by two steps of k-means from windows. Windows of a near field have
8 × 8 patches.
Flash and splash attention are those of jax.experimental.pallas, their padding included.
"""

import argparse
import atexit
import datetime
import functools
import importlib.metadata
import math
import os
import pathlib
import shutil
import tempfile
import time

import jax
import jax.numpy as jnp
import tqdm
from flax import nnx

import models
from benchmarks.bundles import DUMP_FLAGS, read_dump
from benchmarks.estimate import CHIPS, estimate
from benchmarks.rows import read_rows, write_rows
from evals.running.workdir import ROOT
from fna_jax import (
    FNAConfig,
    Windows,
    centroid_attention,
    exact_attention,
    fast_nystrom_attention,
    kmeans_clusters,
    select_landmarks,
)

_KEY = ("arm", "chip", "tokens", "batch", "landmarks", "dtype")  # what a row is of
_TOWERS = {  # model, side in pixels, the blocks that approximate: the second half
    "CLIP L/14, 448 px": ("clip-vit-l-14", 448, range(12, 24)),
    "CLIP L/14, 896 px": ("clip-vit-l-14", 896, range(12, 24)),
    "DINOv2 L/14, 1,036 px": ("dinov2-vit-l-14", 1036, range(12, 24)),
    "DINOv3 B/16, 1,024 px": ("dinov3-vit-b-16", 1024, range(6, 12)),
    "DINOv3 B/16, 2,048 px": ("dinov3-vit-b-16", 2048, range(6, 12)),
    "DINOv3 L/16, 1,024 px": ("dinov3-vit-l-16", 1024, range(12, 24)),
    "DINOv3 L/16, 2,048 px": ("dinov3-vit-l-16", 2048, range(12, 24)),
}


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tpu")
    parser.add_argument("--chips", nargs="+", choices=CHIPS, default=["v5e"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1025, 4097, 16385])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--landmarks", type=int, default=64, help="and clusters")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--towers", action="store_true", help="whole towers in place of layers")
    parser.add_argument("--match", default="", help="only arms with this in their names")
    parser.add_argument("--resume", action="store_true", help="keep other rows of the output file")
    parser.add_argument("--before", help="a result file of other code, for the column before_us")
    parser.add_argument("--output", default=str(ROOT / "results" / "tpu.csv"))
    arguments = parser.parse_args(argv)
    rows = read_rows(arguments.output) if arguments.resume else []
    before = {_key(row): row["estimate_us"] for row in _rows_of(arguments.before)}
    told = lambda row: row | ({"before_us": before.get(_key(row), "")} if before else {})
    rows = [told(row) for row in rows]
    for labels, function, specs in tqdm.tqdm(_todo(arguments), unit="program"):
        row = told(labels | compile_for(labels["chip"], function, specs))
        rows = [other for other in rows if _key(other) != _key(row)] + [row]
        write_rows(arguments.output, rows)  # what is done stays
    write_rows(arguments.output, rows)
    print(as_markdown(rows))


def as_markdown(rows) -> str:
    """A line for each row: what it takes, and the time of its arguments and results alone."""
    from evals.jobs.tables import markdown_table

    names = ("arm", "chip", "tokens", "estimate_us", "before_us", "floor_us", "temporary_mb")
    lines = [[str(row.get(name, "")) for name in (*names, "operations")] for row in rows]
    return markdown_table([*names, "operations"], lines)


def _rows_of(file):
    return read_rows(file) if file else []


def _key(row):
    return tuple(str(row[name]) for name in _KEY)


def _todo(arguments) -> list[tuple]:
    """What rows are of, the function to compile, and its arguments."""
    options = dict(batch=arguments.batch, landmarks=arguments.landmarks, dtype=arguments.dtype)
    made = []
    for chip in arguments.chips:
        if arguments.towers:
            labels = options | {"batch": 1}
            arms = {None: towers(arguments.landmarks, arguments.dtype)}
        else:
            labels, arms = options, {n: layers(n, **options) for n in arguments.tokens}
        for tokens, functions in arms.items():
            for name, (function, specs) in functions.items():
                of_row = {"arm": name, "chip": chip, "tokens": tokens or "", **labels}
                made += [(of_row, function, specs)] * (arguments.match in name)
    return made


def layers(tokens, *, batch, landmarks, dtype, heads=16, head_dim=64) -> dict:
    """Functions of one layer, by name, and the shapes of their arguments."""
    state = jax.ShapeDtypeStruct((batch, tokens, heads, head_dim), dtype)
    indices = jax.ShapeDtypeStruct((batch, landmarks), jnp.int32)
    points = jax.ShapeDtypeStruct((batch, tokens, head_dim), jnp.float32)
    inputs = jax.ShapeDtypeStruct((batch, tokens, heads * head_dim), dtype)
    side = math.isqrt(tokens - 1)
    centroid = functools.partial(_centroid, side=side, landmarks=landmarks)
    sample = lambda x: select_landmarks(x, landmarks)
    states = (state, state, state)
    arms = {
        "exact": (exact_attention, states),
        "exact, jax.nn": (jax.nn.dot_product_attention, states),
        "exact, Pallas flash": (flash, states),
        "exact, Pallas splash": (splash, states),
        "FNA, landmarks given": (fast_nystrom_attention, (*states, indices)),
        "FNA, q sampled": (
            lambda q, k, v: fast_nystrom_attention(q, k, v, sample(_mean_of_heads(q))),
            states,
        ),
        "sampling alone, 64 features": (lambda x: sample(x).indices, (points,)),
        "sampling alone, 1,024 features": (lambda x: sample(x).indices, (inputs,)),
    }
    if side**2 == tokens - 1:
        arms |= {
            "centroids, k-means": (centroid, states),
            "centroids, k-means, near own": (functools.partial(centroid, near=True), states),
        }
    return arms


def _mean_of_heads(x):
    return jnp.mean(x.astype(jnp.float32), axis=-2)


def _centroid(query, key, value, *, side, landmarks, near=False):
    """Centroid attention of a square grid behind a class token, so many clusters with it."""
    grid, batch = (side, side), query.shape[:1]
    start = Windows.at_most(landmarks - 1, grid, num_prefix=1).clusters(batch)
    clusters = kmeans_clusters(_mean_of_heads(key), start, steps=2)
    windows = Windows.at_most(max(side // 8, 1) ** 2, grid, num_prefix=1) if near else None
    return centroid_attention(query, key, value, clusters, windows=windows)


def flash(query, key, value, *, block=None):
    """Attention by jax's Pallas kernel, `[B, N, H, D]`, filled up to blocks."""
    from jax.experimental.pallas.ops.tpu import flash_attention as pallas

    tokens = query.shape[1]
    block = block or (512 if tokens < 2048 else 1024)
    padded = [_heads_first(x, block) for x in (query, key, value)]
    size = padded[0].shape[2]
    filling = jnp.broadcast_to((jnp.arange(size) >= tokens).astype(jnp.int32), (len(query), size))
    output = pallas.flash_attention(
        *padded,
        segment_ids=pallas.SegmentIds(filling, filling) if size > tokens else None,
        sm_scale=query.shape[-1] ** -0.5,
        block_sizes=pallas.BlockSizes(block, block, block, 1),
    )
    return jnp.swapaxes(output, 1, 2)[:, :tokens]


def splash(query, key, value, *, block=512):
    """As `flash`, by jax's Pallas kernel for sparse masks, with a full one."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as mask

    tokens, heads, dim = query.shape[1:]
    padded = [_heads_first(x, block) for x in (query * jnp.asarray(dim**-0.5, query.dtype), key)]
    padded.append(_heads_first(value, block))
    size = padded[0].shape[2]
    attend = kernel.make_splash_mha(
        mask.MultiHeadMask([mask.FullMask((size, size))] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=kernel.BlockSizes(block_q=block, block_kv=block, block_kv_compute=block),
    )
    filling = (jnp.arange(size) >= tokens).astype(jnp.int32)
    segments = kernel.SegmentIds(filling, filling) if size > tokens else None
    output = jax.vmap(functools.partial(attend, segment_ids=segments))(*padded)
    return jnp.swapaxes(output, 1, 2)[:, :tokens]


def _heads_first(x, block):
    """`[B, N, H, D]` as `[B, H, N', D]`, N' the next multiple of a block."""
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % block), (0, 0), (0, 0)])
    return jnp.swapaxes(x, 1, 2)


def towers(landmarks, dtype) -> dict:
    """Whole vision towers for one image, by name, and the shapes of weights and image."""
    arms = {}
    for name, (model, side, blocks) in _TOWERS.items():
        model = _abstract(model, dtype)
        image = jax.ShapeDtypeStruct((1, side, side, 3), dtype)
        fna = FNAConfig(tuple(blocks), landmarks)
        settings = {
            "exact": None,
            "FNA": fna,
            "centroids": FNAConfig(
                tuple(blocks), landmarks, features="k", approximation="centroid", partition="kmeans"
            ),
        }
        for attention, config in settings.items():
            tower = models.registry.vision_tower(models.with_attention(model, config))
            graphdef, state = nnx.split(tower)
            run = lambda state, image, graphdef=graphdef: nnx.merge(graphdef, state)(image).tokens
            arms[f"{name}, {attention}"] = run, (state, image)
    return arms


def _abstract(name, dtype):
    """A model of the zoo without memory, whose weights and products are of this dtype."""
    family = next(f for f in models.registry.FAMILIES.values() if name in f.variants)
    overrides = dict(dtype=dtype, param_dtype=dtype)
    config = models.registry.override(family.variants[name], overrides)
    return models.registry.abstract_model(family.model, config)


def prepare():
    """Lets libtpu compile without a TPU, before it is loaded. The rest of jax runs on the CPU."""
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "LIBTPU_INIT_ARGS": DUMP_FLAGS.format(folder=_dump_folder()),
    }
    jax.config.update("jax_platforms", "cpu")
    # What comes from a cache is not compiled, and dumps nothing.
    jax.config.update("jax_enable_compilation_cache", False)
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def _dump_folder():
    folder = tempfile.mkdtemp(prefix="fna-jax-bundles-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def topology(chip):
    """The devices that programs for a chip are compiled for."""
    prepare()
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip].topology)


def compile_for(chip, function, specs, sharding=None) -> dict:
    """The columns of a row: a function compiled for a chip, for arguments of these shapes."""
    sharding = sharding or jax.sharding.SingleDeviceSharding(topology(chip).devices[0])
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    for file in pathlib.Path(_dump_folder()).iterdir():
        file.unlink()
    start = time.perf_counter()
    try:
        compiled = jax.jit(function).lower(*jax.tree.map(place, specs)).compile()
    except Exception as error:  # whatever the compiler says is the result
        return {"compiles": str(error).splitlines()[0][:200]} | _versions()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    result = estimate(compiled.as_text(), read_dump(_dump_folder()), CHIPS[chip])
    moved = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return {
        "compiles": "yes",
        "estimate_us": round(1e6 * result.seconds, 1),
        "floor_us": round(1e6 * moved / CHIPS[chip].bandwidth, 1),
        "temporary_mb": round(memory.temp_size_in_bytes / 1e6, 1),
        "operations": result.operations,
        "guessed": len(result.guessed),
        "collectives_mb": round(sum(result.collectives.values()) / 1e6, 2),
        "compile_s": round(seconds, 1),
    } | _versions()


def _versions():
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"date": today, "libtpu": importlib.metadata.version("libtpu")}


if __name__ == "__main__":
    main()
