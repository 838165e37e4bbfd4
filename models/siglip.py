"""SigLIP (arXiv 2303.15343) and SigLIP 2 (arXiv 2502.14786), NaFlex too.

Shape letters: B batch, N tokens, T text tokens, C width of the vision tower.
"""

import dataclasses
import math

import jax.numpy as jnp
from flax import nnx

from fna_jax import exact_attention

from .blocks import Attention, LayerNorm, Mlp
from .clip import similarity
from .configs import (
    EncoderConfig,
    ModelConfig,
    VisionConfig,
    check_choice,
    check_image_sides,
    image_shape,
    position_grid,
)
from .embeddings import POSITION_RESIZES, resize_positions
from .inputs.naflex_images import Patches
from .naflex import RULE as NAFLEX
from .naflex import encode_patches
from .text import TextConfig, TextTower
from .vit import VisionOutput, VisionTower


@dataclasses.dataclass(frozen=True)
class SigLIPVisionConfig(VisionConfig):
    """The vision tower. `image_size` need not divide by the patch: So400m/14 was trained at 384."""

    def __post_init__(self):
        check_image_sides(self)
        check_choice(self, "position_resize", POSITION_RESIZES)
        for name, pixels in zip(("image_size", "image_width"), image_shape(self)):
            if pixels < self.patch_size:
                raise ValueError(f"{name} {pixels} is less than patch_size {self.patch_size}")


@dataclasses.dataclass(frozen=True)
class SigLIPConfig(ModelConfig):
    """A SigLIP model. Its embeddings have the width of the vision tower."""

    vision: SigLIPVisionConfig
    text: TextConfig


_TOWERS = {  # (width, depth, heads, MLP width)
    "b": (768, 12, 12, 3072),
    "l": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "giant-opt": (1536, 40, 16, 6144),
}


def _released(
    size, patch_size, image_size, *, vocab_size, context_length=64, position_resize="bicubic"
):
    """A released model; its text tower has the size of the vision tower, So400m for giant."""

    def encoder(size):
        return EncoderConfig(*_TOWERS[size], "gelu_pytorch_tanh", 1e-6)

    text_size = "so400m" if size == "giant-opt" else size
    return SigLIPConfig(
        SigLIPVisionConfig(image_size, patch_size, position_resize, encoder(size)),
        TextConfig(vocab_size, context_length, encoder(text_size)),
    )


_SIGLIP2 = {  # image sizes by (size, patch)
    ("b", 32): (256,),
    ("b", 16): (224, 256, 384, 512),
    ("l", 16): (256, 384, 512),
    ("so400m", 14): (224, 384),
    ("so400m", 16): (256, 384, 512),
    ("giant-opt", 16): (256, 384),
}
VARIANTS = (
    {
        "siglip-vit-b-16-224": _released("b", 16, 224, vocab_size=32000),
        "siglip-vit-b-16-256": _released("b", 16, 256, vocab_size=32000),
        "siglip-vit-b-16-384": _released("b", 16, 384, vocab_size=32000),
        "siglip-vit-b-16-512": _released("b", 16, 512, vocab_size=32000),
        "siglip-vit-b-16-256-i18n": _released("b", 16, 256, vocab_size=250000),
        "siglip-vit-l-16-256": _released("l", 16, 256, vocab_size=32000),
        "siglip-vit-l-16-384": _released("l", 16, 384, vocab_size=32000),
        "siglip-vit-so400m-14-224": _released(
            "so400m", 14, 224, vocab_size=32000, context_length=16
        ),
        "siglip-vit-so400m-14-384": _released("so400m", 14, 384, vocab_size=32000),
        "siglip-vit-so400m-16-256-i18n": _released("so400m", 16, 256, vocab_size=250000),
    }
    | {
        f"siglip2-vit-{size}-{patch}-{image}": _released(size, patch, image, vocab_size=256000)
        for (size, patch), images in _SIGLIP2.items()
        for image in images
    }
    | {
        f"siglip2-vit-{size}-16-naflex": _released(
            size, 16, 256, vocab_size=256000, position_resize=NAFLEX
        )
        for size in ("b", "so400m")
    }
)


class AttentionPooling(nnx.Module):
    """A learned probe attends to all tokens, then a residual MLP: `[B, N, C]` to `[B, C]`."""

    def __init__(self, config: EncoderConfig, *, dtype, param_dtype, rngs):
        dtypes = dict(dtype=dtype, param_dtype=param_dtype)
        normal = nnx.initializers.normal(config.width**-0.5)
        self.probe = nnx.Param(normal(rngs.params(), (config.width,), param_dtype))
        self.attention = Attention(config, **dtypes, rngs=rngs)
        self.norm = LayerNorm(config, param_dtype=param_dtype, rngs=rngs)
        self.mlp = Mlp(config, **dtypes, rngs=rngs)

    def __call__(self, tokens, *, key_mask=None):
        # One query per image: exact attention costs O(N) here, and FNA has nothing to save.
        probe = jnp.broadcast_to(
            self.probe[...].astype(tokens.dtype), (tokens.shape[0], 1, tokens.shape[-1])
        )
        attention = self.attention
        out = exact_attention(
            attention.query(probe),
            attention.key(tokens),
            attention.value(tokens),
            key_mask=key_mask,
        )
        x = attention.out(out)[:, 0]  # [B, C]
        return x + self.mlp(self.norm(x))


class SigLIPVisionTower(VisionTower):
    """Patches only, no token in front; an attention pooling head.

    Where `image_size` does not divide by the patch (So400m/14 at 384), images of that size lose the
    pixels beyond the last whole patch, as they did in training. Any other size must divide.
    """

    def __init__(self, config: SigLIPVisionConfig, *, dtype, param_dtype, rngs):
        dtypes = dict(dtype=dtype, param_dtype=param_dtype)
        super().__init__(config, num_prefix=0, **dtypes, rngs=rngs)
        self.config = config
        width = config.encoder.width
        num_positions = math.prod(position_grid(config))
        normal = nnx.initializers.normal(width**-0.5)
        self.positions = nnx.Param(normal(rngs.params(), (num_positions, width), param_dtype))
        if config.head:
            self.post_norm = LayerNorm(config.encoder, param_dtype=param_dtype, rngs=rngs)
            self.pooling = AttentionPooling(config.encoder, **dtypes, rngs=rngs)

    def embed(self, images):
        """Tokens `[B, h·w, C]` before the first block."""
        learned = position_grid(self.config)
        if images.shape[1:3] == image_shape(self.config):
            height, width = (n * self.config.patch_size for n in learned)
            images = images[:, :height, :width]
        grid = self.patch_embedding.grid(images)
        positions = resize_positions(
            self.positions[...],
            grid,
            learned=learned,
            rule=self.config.position_resize,
            num_prefix=0,
        )
        tokens = self.patch_embedding(images)
        return tokens + positions.astype(tokens.dtype)

    def finish(self, tokens, *, key_mask=None):
        """The tokens after layer norm, and what the pooling head makes of the real ones."""
        if not self.config.head:
            return self.headless(tokens)
        tokens = self.post_norm(tokens)
        return tokens, self.pooling(tokens, key_mask=key_mask)


class SigLIPTextTower(TextTower):
    """Not causal; the state of the last token is pooled, whatever it is: pad as in training."""

    causal = False

    def pool(self, tokens, token_ids):
        """The last token's state `[B, C]`."""
        del token_ids
        return tokens[:, -1]


class SigLIP(nnx.Module):
    """SigLIP with exact attention; `models.with_attention` gives a view that runs FNA."""

    def __init__(self, config: SigLIPConfig, *, rngs):
        self.config = config
        dtypes = config.dtypes()
        self.vision = SigLIPVisionTower(config.vision, **dtypes, rngs=rngs)
        self.text = SigLIPTextTower(config.text, **dtypes, rngs=rngs)
        self.text_projection = nnx.Linear(
            config.text.encoder.width, config.vision.encoder.width, **dtypes, rngs=rngs
        )
        param_dtype = dtypes["param_dtype"]
        self.logit_scale = nnx.Param(jnp.log(jnp.asarray(10.0, param_dtype)))  # SigLIP §3.2
        self.logit_bias = nnx.Param(jnp.asarray(-10.0, param_dtype))

    def __call__(
        self, images, *, rng=None, compare=False, tokens=None, capture=None
    ) -> VisionOutput:
        """Vision tokens and the image embeddings; see `VisionTower.__call__`."""
        return self.vision(images, rng=rng, compare=compare, tokens=tokens, capture=capture)

    def vision_projection(self, pooled):
        """Image embeddings `[B, C]` of pooled states: the same, only texts are projected."""
        return pooled

    def encode_image(self, images, *, rng=None, tokens=None):
        """Image embeddings `[B, C]`, not normalised. Arguments and errors as in `__call__`."""
        return self.vision(images, rng=rng, tokens=tokens).pooled

    def encode_patches(self, patches: Patches, *, rng=None) -> VisionOutput:
        """Vision tokens and the embeddings of images of any sizes, padded to one length: NaFlex.

        Arguments and errors as in `naflex.encode_patches`.
        """
        return encode_patches(self.vision, patches, rng=rng)

    def encode_text(self, token_ids):
        """Text embeddings `[B, C]`, not normalised, of int token_ids `[B, T]`.

        Raises:
          ValueError: token_ids that are not `[B, T]` with T up to the context length.
        """
        return self.text_projection(self.text(token_ids))

    def logits(self, image_embeddings, text_embeddings):
        """`exp(scale) cos + bias`, float32 `[B_image, B_text]`; a sigmoid makes probabilities."""
        scale, bias = (x[...].astype(jnp.float32) for x in (self.logit_scale, self.logit_bias))
        return jnp.exp(scale) * similarity(image_embeddings, text_embeddings) + bias
