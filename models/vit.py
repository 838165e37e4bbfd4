"""What the vision transformers share: attention, blocks, the loop over them, and the tower.

Shape letters: B batch, N tokens, S landmarks, H heads, D head dimension, C width.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from fna_jax import FNAConfig
from fna_jax.landmarks import Landmarks
from models.attends import attend_exactly, vision_attends
from models.configs import ACTIVATIONS, EncoderConfig
from models.embeddings import PatchEmbedding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VisionOutput:
    """What a vision backbone returns.

    Attributes:
      tokens: `[B, N, C]`, Hugging Face's `last_hidden_state`.
      pooled: `[B, C]`.
      landmarks: those of the last FNA block; None without FNA.
      attention_error: float32 `[L, B]`, one row per FNA block; None unless asked for.
    """

    tokens: jax.Array
    pooled: jax.Array
    landmarks: Landmarks | None = None
    attention_error: jax.Array | None = None


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
        heads = (config.num_heads, config.width // config.num_heads)
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
    """Two linear layers, the first gated by a third: `fc2(activation(gate(x)) · fc1(x))`."""

    def __init__(self, config: EncoderConfig, *, dtype, param_dtype, rngs):
        linear = functools.partial(nnx.Linear, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
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


def _identity(x):
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
            LayerScale(config.width, param_dtype=param_dtype) if config.layer_scale else _identity
            for _ in range(2)
        )

    def __call__(self, x, landmarks, attend):
        """x `[B, N, C]` and the landmarks after this block, and what `attend` recorded."""
        query, key, value = self.attention.project(self.norm1(x))
        out, landmarks, record = attend(x, query, key, value, landmarks)
        x = x + self.scale1(self.attention.out(out))
        return x + self.scale2(self.mlp(self.norm2(x))), landmarks, record


class Encoder(nnx.Module):
    """Blocks in sequence; which attention each runs is decided by the caller."""

    def __init__(self, config: EncoderConfig, *, dtype, param_dtype, rngs):
        self.blocks = nnx.List(
            [
                Block(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
                for _ in range(config.depth)
            ]
        )

    def __call__(self, x, attends):
        """x `[B, N, C]` after all blocks, the last landmarks, and each block's record.

        Args:
          attends: one callable per block, `(x, query, key, value, landmarks) -> (out, landmarks,
            record)`, with x the block's input.
        """
        landmarks, records = None, []
        for block, attend in zip(self.blocks, attends, strict=True):
            x, landmarks, record = block(x, landmarks, attend)
            records.append(record)
        return x, landmarks, records

    def hidden_states(self, x, attends):
        """x `[B, N, C]` before the first block and after each of them."""

        def recording_input(attend):
            return lambda x, *states: (*attend(x, *states)[:2], x)

        tokens, _, inputs = self(x, [recording_input(attend) for attend in attends])
        return [*inputs, tokens]


class VisionTower(nnx.Module):
    """Images to tokens. A family's tower is this with its own `embed` and `finish`.

    Attributes:
      fna: the attention of some blocks; None for exact attention in all. Not saved.
      num_prefix: tokens in front of the patches: class token and registers.
    """

    def __init__(self, config, *, num_prefix, patch_bias=True, dtype, param_dtype, rngs):
        """Of a config with `patch_size` and `encoder`: the patch embedding and the blocks."""
        self.fna: FNAConfig | None = None
        self.num_prefix = num_prefix
        self.patch_embedding = PatchEmbedding(
            config.encoder.width,
            config.patch_size,
            use_bias=patch_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.encoder = Encoder(config.encoder, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def embed(self, images):
        """Tokens `[B, N, C]` before the first block, those in front of the patches first."""
        raise NotImplementedError

    def finish(self, tokens):
        """The tower's tokens `[B, N, C]` and pooled state `[B, C]`, of the last block's tokens."""
        raise NotImplementedError

    def position_attends(self, attends, images):
        """The blocks' attentions with what positions do to them: nothing, unless rotary."""
        del images
        return attends

    def __call__(self, images, *, rng=None, compare=False) -> VisionOutput:
        """Tokens `[B, N, C]` and their pooled state `[B, C]`.

        Args:
          images: floats `[B, height, width, 3]`, preprocessed; any size that divides by the patch.
          rng: key of random landmarks, if the attention draws them.
          compare: run exactly, and report each FNA block's error on the exact inputs.

        Raises:
          ValueError: an image size that does not divide, or an argument that nothing would use.
        """
        images = jnp.asarray(images)
        attends = vision_attends(
            self.fna, len(self.encoder.blocks), num_prefix=self.num_prefix, rng=rng, compare=compare
        )
        tokens = self.embed(images)
        tokens, landmarks, records = self.encoder(tokens, self.position_attends(attends, images))
        errors = jnp.stack([records[i] for i in self.fna.layers]) if compare else None
        return VisionOutput(*self.finish(tokens), landmarks, errors)

    def hidden_states(self, images):
        """Tokens `[B, N, C]` after the embedding and after each block, with exact attention."""
        images = jnp.asarray(images)
        attends = self.position_attends([attend_exactly] * len(self.encoder.blocks), images)
        return self.encoder.hidden_states(self.embed(images), attends)
