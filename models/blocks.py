"""Pre-norm transformer blocks: norms, projections, MLPs, and the loop over blocks.

Shape letters: B batch, N tokens, H heads, D head dimension, C width.
"""

import functools

import jax.numpy as jnp
from flax import nnx

from .attends import observing
from .configs import ACTIVATIONS, EncoderConfig


class LayerNorm(nnx.LayerNorm):
    """Layer norm `[..., C]` computed in float32 whatever the dtype, by the two-pass variance."""

    def __init__(self, config: EncoderConfig, *, param_dtype, rngs):
        super().__init__(
            config.width,
            epsilon=config.layer_norm_epsilon,
            dtype=jnp.float32,
            param_dtype=param_dtype,
            use_fast_variance=False,  # E[x²] − E[x]² fails on massive tokens
            rngs=rngs,
        )

    def __call__(self, x):
        return super().__call__(x).astype(x.dtype)


class Attention(nnx.Module):
    """Projections of multi-head attention, leaf for leaf those of `nnx.MultiHeadAttention`."""

    def __init__(self, config: EncoderConfig, *, dtype, param_dtype, rngs):
        heads = (config.num_heads, config.head_dim)
        linear = functools.partial(
            nnx.LinearGeneral, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.query = linear(config.width, heads, use_bias="q" in config.biases)
        self.key = linear(config.width, heads, use_bias="k" in config.biases)
        self.value = linear(config.width, heads, use_bias="v" in config.biases)
        self.out = linear(heads, config.width, axis=(-2, -1))

    def project(self, x):
        """Query, key and value of x `[B, N, C]`, each `[B, N, H, D]`."""
        return self.query(x), self.key(x), self.value(x)


class Mlp(nnx.Module):
    """Two linear layers with an activation between, `[..., C]` to `[..., C]`."""

    def __init__(self, config: EncoderConfig, *, dtype, param_dtype, rngs):
        linear = functools.partial(nnx.Linear, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.fc1 = linear(config.width, config.mlp_dim)
        self.fc2 = linear(config.mlp_dim, config.width)
        self.activation = ACTIVATIONS[config.activation]

    def __call__(self, x):
        return self.fc2(self.activation(self.fc1(x)))


class GatedMlp(nnx.Module):
    """Two linear layers, the first gated by a third: `fc2(activation(gate(x)) · fc1(x))`.

    Of a config with `width`, `mlp_dim` and `activation`.
    """

    def __init__(self, config, *, use_bias=True, dtype, param_dtype, rngs):
        linear = functools.partial(
            nnx.Linear, use_bias=use_bias, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.gate = linear(config.width, config.mlp_dim)
        self.fc1 = linear(config.width, config.mlp_dim)
        self.fc2 = linear(config.mlp_dim, config.width)
        self.activation = ACTIVATIONS[config.activation]

    def __call__(self, x):
        return self.fc2(self.activation(self.gate(x)) * self.fc1(x))


class LayerScale(nnx.Module):
    """`[..., C]` times a learned factor per channel (arXiv 2103.17239, eq. 4)."""

    def __init__(self, width, *, param_dtype):
        self.scale = nnx.Param(jnp.ones(width, param_dtype))

    def __call__(self, x):
        return x * self.scale[...].astype(x.dtype)


def identity(x):
    """x, where a module has nothing to do."""
    return x


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: EncoderConfig, *, dtype, param_dtype, rngs):
        mlp = GatedMlp if config.gated_mlp else Mlp
        self.norm1 = LayerNorm(config, param_dtype=param_dtype, rngs=rngs)
        self.attention = Attention(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.norm2 = LayerNorm(config, param_dtype=param_dtype, rngs=rngs)
        self.mlp = mlp(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.scale1, self.scale2 = (
            LayerScale(config.width, param_dtype=param_dtype) if config.layer_scale else identity
            for _ in range(2)
        )

    def __call__(self, x, landmarks, attend):
        """x `[B, N, C]` and the landmarks after this block, and what `attend` recorded."""
        query, key, value = self.attention.project(self.norm1(x))
        attended = attend(x, query, key, value, landmarks)
        x = x + self.scale1(self.attention.out(attended.out))
        if attended.correction is not None:
            x = x + attended.correction
        if attended.reduce is not None:
            x = attended.reduce(x)
        return x + self.scale2(self.mlp(self.norm2(x))), attended.landmarks, attended.record

    def out_kernel(self):
        """What takes a head's result into the residual stream: W_O with LayerScale, `[H, D, C]`."""
        return self.scale1(self.attention.out.kernel[...])


class Encoder(nnx.Module):
    """Blocks in sequence; which attention each runs is decided by the caller."""

    def __init__(self, config: EncoderConfig, *, dtype, param_dtype, rngs):
        self.blocks = nnx.List(
            [
                Block(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
                for _ in range(config.depth)
            ]
        )

    def __call__(self, x, attends, *, start=0, landmarks=()):
        """x `[B, N, C]` after some blocks, the last landmarks, and each block's record.

        Args:
          x: `[B, N, C]`, in front of block `start`.
          attends: one for each block to run, as in `models.attends`.
          start: the first block to run.
          landmarks: chosen before it, as in `models.attends.Attended`.
        """
        blocks = list(self.blocks)[start : start + len(attends)]
        return run_blocks(blocks, x, attends, landmarks)

    def hidden_states(self, x, attends):
        """x `[B, N, C]` before the first block and after each of them."""
        return states_around(self.blocks, x, attends)


def run_blocks(blocks, x, attends, landmarks=()):
    """x `[B, N, C]` after these blocks, the last landmarks, and each block's record.

    Args:
      blocks: callables `(x, landmarks, attend)`, as `Block`.
      x: `[B, N, C]`, in front of the first.
      attends: one for each block, as in `models.attends`.
      landmarks: chosen before, as in `models.attends.Attended`.
    """
    records = []
    for block, attend in zip(blocks, attends, strict=True):
        x, landmarks, record = block(x, landmarks, attend)
        records.append(record)
    return x, landmarks, records


def adding(block, features):
    """The block, to whose tokens `[B, N, C]` features of this shape are added behind it."""

    def run(x, landmarks, attend):
        x, *rest = block(x, landmarks, attend)
        return x + features.astype(x.dtype), *rest

    return run


def states_around(blocks, x, attends):
    """x `[B, N, C]` before the first of these blocks and after each; arguments as `run_blocks`."""
    see_input = lambda x, *states: x
    attends = [observing(attend, see_input, lambda x: x) for attend in attends]
    tokens, _, records = run_blocks(blocks, x, attends)
    return [*(record.kept for record in records), tokens]
