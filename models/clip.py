"""CLIP (arXiv 2103.00020): a vision tower and a causal text tower with a shared embedding space.

Shape letters: B batch, N tokens, T text tokens, C width, P projection dimension.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from fna_jax import FNAConfig
from models.vit import (
    Encoder,
    EncoderConfig,
    LayerNorm,
    PatchEmbedding,
    VisionOutput,
    attend_causally,
    check_positive,
    resize_positions,
    vision_attends,
)


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower: square `image_size` in pixels, at which positions were learned."""

    image_size: int
    patch_size: int
    encoder: EncoderConfig

    def __post_init__(self):
        check_positive(self, "image_size", "patch_size")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} does not divide by patch_size {self.patch_size}"
            )


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text tower. `eos_token_id` None pools at the largest id, as OpenAI's checkpoints do."""

    vocab_size: int
    context_length: int
    eos_token_id: int | None
    encoder: EncoderConfig

    def __post_init__(self):
        check_positive(self, "vocab_size", "context_length")


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """A CLIP model. `dtype` is the computation's, `param_dtype` the weights'."""

    vision: VisionConfig
    text: TextConfig
    projection_dim: int
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        check_positive(self, "projection_dim")
        for name in ("dtype", "param_dtype"):
            if getattr(self, name) not in ("float32", "bfloat16"):
                raise ValueError(f"{name} must be float32 or bfloat16, got {getattr(self, name)!r}")


def _openai(projection_dim, *, image_size, patch_size, vision, text):
    """OpenAI's released sizes; `vision` and `text` are (width, depth, heads)."""

    def encoder(width, depth, num_heads):
        return EncoderConfig(width, depth, num_heads, 4 * width, "quick_gelu", 1e-5)

    return CLIPConfig(
        VisionConfig(image_size, patch_size, encoder(*vision)),
        TextConfig(49408, 77, None, encoder(*text)),
        projection_dim,
    )


VARIANTS = {
    "clip-vit-b-32": _openai(
        512, image_size=224, patch_size=32, vision=(768, 12, 12), text=(512, 12, 8)
    ),
    "clip-vit-b-16": _openai(
        512, image_size=224, patch_size=16, vision=(768, 12, 12), text=(512, 12, 8)
    ),
    "clip-vit-l-14": _openai(
        768, image_size=224, patch_size=14, vision=(1024, 24, 16), text=(768, 12, 12)
    ),
    "clip-vit-l-14-336": _openai(
        768, image_size=336, patch_size=14, vision=(1024, 24, 16), text=(768, 12, 12)
    ),
}


class VisionTower(nnx.Module):
    """Images to tokens; a class token in front, layer norm before the blocks."""

    def __init__(self, config: VisionConfig, *, dtype, param_dtype, rngs):
        self.fna: FNAConfig | None = None
        width = config.encoder.width
        num_positions = 1 + (config.image_size // config.patch_size) ** 2
        normal = nnx.initializers.normal(width**-0.5)
        self.patch_embedding = PatchEmbedding(
            width,
            config.patch_size,
            use_bias=False,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.class_token = nnx.Param(normal(rngs.params(), (width,), param_dtype))
        self.positions = nnx.Param(normal(rngs.params(), (num_positions, width), param_dtype))
        self.pre_norm = LayerNorm(config.encoder, param_dtype=param_dtype, rngs=rngs)
        self.encoder = Encoder(config.encoder, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.post_norm = LayerNorm(config.encoder, param_dtype=param_dtype, rngs=rngs)

    def embed(self, images):
        """Tokens `[B, 1 + h·w, C]` before the first block, class token first."""
        images = jnp.asarray(images)
        grid = self.patch_embedding.grid(images)
        patches = self.patch_embedding(images)
        first = jnp.broadcast_to(self.class_token[...], (patches.shape[0], 1, patches.shape[-1]))
        positions = self.positions[...]
        positions = jnp.concatenate([positions[:1], resize_positions(positions[1:], grid)])
        tokens = jnp.concatenate([first.astype(patches.dtype), patches], axis=1)
        return self.pre_norm(tokens + positions.astype(patches.dtype))

    def __call__(self, images, *, rng=None, compare=False) -> VisionOutput:
        """See `CLIP.__call__`."""
        attends = vision_attends(
            self.fna, len(self.encoder.blocks), num_prefix=1, rng=rng, compare=compare
        )
        tokens, landmarks, records = self.encoder(self.embed(images), attends)
        errors = jnp.stack([records[i] for i in self.fna.layers]) if compare else None
        return VisionOutput(tokens, self.post_norm(tokens[:, 0]), landmarks, errors)


class TextTower(nnx.Module):
    """Token ids to the state of the end-of-text token."""

    def __init__(self, config: TextConfig, *, dtype, param_dtype, rngs):
        self.eos_token_id = config.eos_token_id
        width = config.encoder.width
        normal = nnx.initializers.normal(0.02)
        self.token_embedding = nnx.Embed(
            config.vocab_size,
            width,
            dtype=dtype,
            param_dtype=param_dtype,
            embedding_init=normal,
            rngs=rngs,
        )
        positions = normal(rngs.params(), (config.context_length, width), param_dtype)
        self.positions = nnx.Param(positions)
        self.encoder = Encoder(config.encoder, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.final_norm = LayerNorm(config.encoder, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, token_ids):
        """Pooled text states `[B, C]` of int token_ids `[B, T]`, T up to the context length."""
        token_ids = jnp.asarray(token_ids)
        context_length, num_blocks = self.positions.shape[0], len(self.encoder.blocks)
        if token_ids.ndim != 2 or not 1 <= token_ids.shape[1] <= context_length:
            raise ValueError(
                f"token_ids must be [B, T] with T in 1..{context_length}, got {token_ids.shape}"
            )
        x = self.token_embedding(token_ids)
        x = x + self.positions[: token_ids.shape[1]].astype(x.dtype)
        x, _, _ = self.encoder(x, [attend_causally] * num_blocks)
        if self.eos_token_id is None:
            last = jnp.argmax(token_ids, axis=-1)
        else:
            last = jnp.argmax(token_ids == self.eos_token_id, axis=-1)  # the first one
        return self.final_norm(x[jnp.arange(x.shape[0]), last])


class CLIP(nnx.Module):
    """CLIP with exact attention; `models.with_attention` gives a view that runs FNA."""

    def __init__(self, config: CLIPConfig, *, rngs):
        self.config = config
        dtypes = dict(dtype=jnp.dtype(config.dtype), param_dtype=jnp.dtype(config.param_dtype))
        self.vision = VisionTower(config.vision, **dtypes, rngs=rngs)
        self.text = TextTower(config.text, **dtypes, rngs=rngs)
        self.vision_projection = nnx.Linear(
            config.vision.encoder.width,
            config.projection_dim,
            use_bias=False,
            **dtypes,
            rngs=rngs,
        )
        self.text_projection = nnx.Linear(
            config.text.encoder.width, config.projection_dim, use_bias=False, **dtypes, rngs=rngs
        )
        initial = jnp.log(1 / 0.07)  # CLIP §2.5
        self.logit_scale = nnx.Param(jnp.asarray(initial, dtypes["param_dtype"]))

    def __call__(self, images, *, rng=None, compare=False) -> VisionOutput:
        """Vision tokens `[B, N, C]` and the pooled state `[B, C]` before projection.

        Args:
          images: floats `[B, height, width, 3]`, preprocessed; any size that divides by the patch.
          rng: key of random landmarks, if the attention draws them.
          compare: run exactly, and report each FNA block's error on the exact inputs.

        Raises:
          ValueError: an image size that does not divide, or an argument that nothing would use.
        """
        return self.vision(images, rng=rng, compare=compare)

    def encode_image(self, images, *, rng=None):
        """Image embeddings `[B, P]`, not normalised. Arguments and errors as in `__call__`."""
        return self.vision_projection(self.vision(images, rng=rng).pooled)

    def encode_text(self, token_ids):
        """Text embeddings `[B, P]`, not normalised, of int token_ids `[B, T]`.

        Raises:
          ValueError: token_ids that are not `[B, T]` with T up to the context length.
        """
        return self.text_projection(self.text(token_ids))


def similarity(image_embeddings, text_embeddings):
    """Cosine similarities `[B_image, B_text]` of embeddings `[B, P]`, float32."""

    def unit(x):
        x = x.astype(jnp.float32)
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    return jnp.matmul(
        unit(image_embeddings), unit(text_embeddings).T, precision=jax.lax.Precision.HIGHEST
    )
