"""CLIP (arXiv 2103.00020): a vision tower and a causal text tower with a shared embedding space.

Shape letters: B batch, N tokens, T text tokens, C width, P projection dimension.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from .blocks import LayerNorm
from .configs import EncoderConfig, ModelConfig, VisionConfig, check_positive, position_grid
from .embeddings import prepend, resize_positions
from .text import TextConfig, TextTower
from .vit import VisionOutput, VisionTower


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig(TextConfig):
    """The text tower. `eos_token_id` None pools at the largest id, as OpenAI's checkpoints do."""

    eos_token_id: int | None


@dataclasses.dataclass(frozen=True)
class CLIPConfig(ModelConfig):
    """A CLIP model."""

    vision: VisionConfig
    text: CLIPTextConfig
    projection_dim: int

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "projection_dim")


def _sizes(
    projection_dim,
    image_size,
    patch_size,
    vision,
    text,
    *,
    activation,
    position_resize="bicubic_antialias",
    cleaning="lower",
):
    """A released model, by default as open_clip has it.

    `vision` and `text` are (width, depth, heads), vision's with MLP width.
    """
    width, depth, num_heads, *mlp_dim = vision
    encoder = EncoderConfig(width, depth, num_heads, *(mlp_dim or [4 * width]), activation, 1e-5)
    text_width, text_depth, text_heads = text
    text_encoder = EncoderConfig(
        text_width, text_depth, text_heads, 4 * text_width, activation, 1e-5
    )
    return CLIPConfig(
        VisionConfig(image_size, patch_size, position_resize, encoder),
        CLIPTextConfig(49408, 77, text_encoder, None, cleaning=cleaning),
        projection_dim,
    )


_B_32 = (512, 224, 32, (768, 12, 12), (512, 12, 8))
_B_16 = (512, 224, 16, (768, 12, 12), (512, 12, 8))
_L_14 = (768, 224, 14, (1024, 24, 16), (768, 12, 12))
_L_14_336 = (768, 336, 14, (1024, 24, 16), (768, 12, 12))
_H_14 = (1024, 224, 14, (1280, 32, 16), (1024, 24, 16))
_H_14_378 = (1024, 378, 14, (1280, 32, 16), (1024, 24, 16))
_G_14 = (1024, 224, 14, (1408, 40, 16, 6144), (1024, 24, 16))
_BIGG_14 = (1280, 224, 14, (1664, 48, 16, 8192), (1280, 32, 20))

# OpenAI's models; LAION's and others of open_clip; of these, the ones of DFN and MetaCLIP, which
# were trained with quick GELU.
_OPENAI = {"b-32": _B_32, "b-16": _B_16, "l-14": _L_14, "l-14-336": _L_14_336}
_OPEN_CLIP = {
    "b-32": _B_32,
    "b-16": _B_16,
    "l-14": _L_14,
    "h-14": _H_14,
    "g-14": _G_14,
    "bigg-14": _BIGG_14,
}
_QUICK = {"b-32": _B_32, "b-16": _B_16, "l-14": _L_14, "h-14": _H_14, "h-14-378": _H_14_378}

VARIANTS = {
    f"clip-vit-{name}": _sizes(
        *sizes, activation="quick_gelu", position_resize="bicubic", cleaning="none"
    )
    for name, sizes in _OPENAI.items()
}
VARIANTS |= {
    f"open-clip-vit-{name}": _sizes(*sizes, activation="gelu") for name, sizes in _OPEN_CLIP.items()
}
VARIANTS |= {
    f"open-clip-vit-{name}-quickgelu": _sizes(*sizes, activation="quick_gelu")
    for name, sizes in _QUICK.items()
}


class CLIPVisionTower(VisionTower):
    """A class token in front, layer norm before the blocks; the class token's state is pooled."""

    def __init__(self, config: VisionConfig, *, dtype, param_dtype, rngs):
        dtypes = dict(dtype=dtype, param_dtype=param_dtype)
        super().__init__(config, num_prefix=1, patch_bias=False, **dtypes, rngs=rngs)
        self.config = config
        width = config.encoder.width
        num_positions = 1 + math.prod(position_grid(config))
        normal = nnx.initializers.normal(width**-0.5)
        self.class_token = nnx.Param(normal(rngs.params(), (width,), param_dtype))
        self.positions = nnx.Param(normal(rngs.params(), (num_positions, width), param_dtype))
        self.pre_norm = LayerNorm(config.encoder, param_dtype=param_dtype, rngs=rngs)
        if config.head:
            self.post_norm = LayerNorm(config.encoder, param_dtype=param_dtype, rngs=rngs)

    def embed(self, images):
        """Tokens `[B, 1 + h·w, C]` before the first block, class token first."""
        grid = self.patch_embedding.grid(images)
        tokens = prepend(self.patch_embedding(images), self.class_token[...])
        positions = resize_positions(
            self.positions[...],
            grid,
            learned=position_grid(self.config),
            rule=self.config.position_resize,
            num_prefix=1,
        )
        return self.pre_norm(tokens + positions.astype(tokens.dtype))

    def finish(self, tokens):
        """The tokens as they are, and the class token after layer norm."""
        if not self.config.head:
            return self.headless(tokens)
        return tokens, self.post_norm(tokens[:, 0])


class CLIPTextTower(TextTower):
    """Causal; the state of the end-of-text token is pooled."""

    causal = True

    def __init__(self, config: CLIPTextConfig, *, dtype, param_dtype, rngs):
        super().__init__(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.eos_token_id = config.eos_token_id

    def pool(self, tokens, token_ids):
        """The state `[B, C]` of the first end-of-text token, or of the largest id."""
        is_last = token_ids if self.eos_token_id is None else token_ids == self.eos_token_id
        return tokens[jnp.arange(tokens.shape[0]), jnp.argmax(is_last, axis=-1)]


class CLIP(nnx.Module):
    """CLIP with exact attention; `models.with_attention` gives a view that runs FNA."""

    def __init__(self, config: CLIPConfig, *, rngs):
        self.config = config
        dtypes = config.dtypes()
        self.vision = CLIPVisionTower(config.vision, **dtypes, rngs=rngs)
        self.text = CLIPTextTower(config.text, **dtypes, rngs=rngs)
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

    def __call__(
        self, images, *, rng=None, compare=False, tokens=None, capture=None
    ) -> VisionOutput:
        """Vision tokens and the pooled state before projection; see `VisionTower.__call__`."""
        return self.vision(images, rng=rng, compare=compare, tokens=tokens, capture=capture)

    def encode_image(self, images, *, rng=None, tokens=None):
        """Image embeddings `[B, P]`, not normalised. Arguments and errors as in `__call__`."""
        return self.vision_projection(self.vision(images, rng=rng, tokens=tokens).pooled)

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
