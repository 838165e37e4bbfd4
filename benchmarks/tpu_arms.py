"""What `benchmarks.tpu` compiles: functions by name, and the shapes of their arguments."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

import models
from benchmarks import attention, layers, tpu_compiler
from benchmarks.models import attentions, run, sized_config
from fna_jax import (
    Clusters,
    FNAConfig,
    Windows,
    centroid_attention,
    kmeans_clusters,
    select_landmarks,
    sharded,
)

_OF_LAYERS = ("exact", "exact, jax.nn", "FNA, landmarks given", "FNA, q sampled")
BATCH, TOKENS = PartitionSpec(tpu_compiler.AXIS), PartitionSpec(None, tpu_compiler.AXIS)


def layer_arms(tokens, *, batch, landmarks, dtype, heads=16, head_dim=64) -> dict:
    """Functions of one layer, by name, and the shapes of their arguments.

    Tokens are those of a square grid of patches behind a class token.
    """
    shapes = layers.shapes(batch, tokens, heads, head_dim, landmarks, dtype)
    *states, inputs, _ = shapes
    points = jax.ShapeDtypeStruct((batch, tokens, head_dim), jnp.float32)
    side = math.isqrt(tokens - 1)
    centroid = functools.partial(_centroid, side=side, landmarks=landmarks)
    sample = lambda x: select_landmarks(x, landmarks).indices
    functions = attention.functions(landmarks)
    return {name: (functions[name], shapes) for name in _OF_LAYERS} | {
        "exact, Pallas flash": (flash, states),
        "exact, Pallas splash": (splash, states),
        "sampling alone, 64 features": (sample, [points]),
        "sampling alone, 1,024 features": (sample, [inputs]),
        "centroids, k-means": (centroid, states),
        "centroids, k-means, near own": (functools.partial(centroid, near=True), states),
    }


def _mean_of_heads(x):
    return jnp.mean(x.astype(jnp.float32), axis=-2)


def _centroid(query, key, value, *, side, landmarks, near=False):
    """Centroid attention of a square grid behind a class token, so many clusters with it."""
    grid, batch = (side, side), query.shape[:1]
    start = Windows.at_most(landmarks - 1, grid, num_prefix=1).clusters(batch)
    clusters = kmeans_clusters(_mean_of_heads(key), start, steps=2)
    windows = Windows.at_most(max(side // 8, 1) ** 2, grid, num_prefix=1) if near else None
    return centroid_attention(query, key, value, clusters, windows=windows)


def split_arms(tokens, chip, *, batch, landmarks, dtype, heads=16, head_dim=64) -> dict:
    """As `layer_arms`, of a square grid without a class token, whose tokens are split."""
    *states, _, _ = layers.shapes(batch, tokens, heads, head_dim, landmarks, dtype)
    side, axis = math.isqrt(tokens), dict(axis_name=tpu_compiler.AXIS)
    windows = Windows.at_most(landmarks, (side, side))
    assignment = jax.ShapeDtypeStruct((batch, tokens), jnp.int32)

    def fna(query, key, value):
        chosen = sharded.select_landmarks(_mean_of_heads(query), landmarks, **axis)
        return sharded.fast_nystrom_attention(query, key, value, chosen, **axis)

    def centroid(query, key, value, assignment):
        start = Clusters(assignment, windows.num_windows)
        clusters = sharded.kmeans_clusters(_mean_of_heads(key), start, **axis)
        return sharded.centroid_attention(query, key, value, clusters, **axis)

    over = functools.partial(
        jax.shard_map, mesh=tpu_compiler.mesh(chip), in_specs=TOKENS, out_specs=TOKENS
    )
    return {
        "FNA, q sampled": (over(fna), states),
        "centroids, k-means": (over(centroid), [*states, assignment]),
    }


def tower_arms(name, pixels, *, batch, landmarks, dtype, depth) -> dict:
    """Vision towers of so many blocks, by attention, and the shapes of weights and images.

    The second half of the blocks is approximate.
    """
    (family, _), config = models.registry.published(name), sized_config(name, pixels, dtype)
    vision = {"encoder": {"depth": depth}}
    vision = {"vision": vision} if hasattr(config, "vision") else vision
    config = models.registry.override(config, vision)
    model = models.registry.abstract_model(family.model, config)
    images = jax.ShapeDtypeStruct((batch, pixels, pixels, 3), dtype)
    arms = {}
    for arm, configs in attentions(FNAConfig(range(depth // 2, depth), landmarks), depth).items():
        tower = models.vision_tower(models.with_attention(model, configs))
        graphdef, state = nnx.split(tower)
        arms[arm] = functools.partial(run, graphdef), (state, images)
    return arms


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
