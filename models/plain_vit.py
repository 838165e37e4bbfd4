"""The plain vision transformer (arXiv 2010.11929): supervised, AugReg and DeiT; MAE's encoder.

Shape letters: B batch, N tokens, C width.
"""

import dataclasses
import math

import jax.numpy as jnp
from flax import nnx

from .blocks import LayerNorm
from .configs import (
    EncoderConfig,
    ModelConfig,
    check_choice,
    check_not_negative,
    check_patches,
    position_grid,
)
from .embeddings import POSITION_RESIZES, prepend, resize_positions
from .vit import ClassifiesPooled, VisionTower

POOLS = ("token", "avg")


@dataclasses.dataclass(frozen=True)
class ViTConfig(ModelConfig):
    """A plain ViT; image sizes and `position_resize` as in `VisionConfig`.

    Attributes:
      class_token: whether one stands in front of the patches.
      pool: what the head sees: the class token, "token", or the mean of the patches, "avg".
      norm: what the last layer norm is of: all "tokens", or the "pooled" state, timm's `fc_norm`.
      num_classes: of the head; 0 for none.
    """

    image_size: int
    patch_size: int
    position_resize: str
    encoder: EncoderConfig
    class_token: bool = True
    pool: str = "token"
    norm: str = "tokens"
    num_classes: int = 0
    image_width: int | None = None

    def __post_init__(self):
        super().__post_init__()
        check_patches(self)
        check_choice(self, "position_resize", POSITION_RESIZES)
        check_choice(self, "pool", POOLS)
        check_choice(self, "norm", ("tokens", "pooled"))
        if self.pool == "token" and not self.class_token:
            raise ValueError('pool "token" needs class_token')
        check_not_negative(self, "num_classes")


def _published(size, patch_size, image_size, *, num_classes):
    width, depth, num_heads = {
        "ti": (192, 12, 3),
        "s": (384, 12, 6),
        "b": (768, 12, 12),
        "l": (1024, 24, 16),
        "h": (1280, 32, 16),
    }[size]
    encoder = EncoderConfig(width, depth, num_heads, 4 * width, "gelu", 1e-6)
    return ViTConfig(image_size, patch_size, "bicubic_antialias", encoder, num_classes=num_classes)


_AT_384 = (("ti", 16), ("s", 16), ("s", 32), ("b", 16), ("b", 32), ("l", 16), ("l", 32))
VARIANTS = (
    {
        f"vit-{size}-{patch}": _published(size, patch, 224, num_classes=1000)
        for size, patch in (*_AT_384, ("b", 8), ("h", 14))
    }
    | {
        f"vit-{size}-{patch}-384": _published(size, patch, 384, num_classes=1000)
        for size, patch in _AT_384
    }
    | {
        f"mae-vit-{size}-{patch}": _published(size, patch, 224, num_classes=0)
        for size, patch in (("b", 16), ("l", 16), ("h", 14))
    }
)


class ViT(ClassifiesPooled, VisionTower):
    """A plain ViT with exact attention; `models.with_attention` gives a view that runs FNA."""

    def __init__(self, config: ViTConfig, *, rngs):
        dtypes = config.dtypes()
        super().__init__(config, num_prefix=int(config.class_token), **dtypes, rngs=rngs)
        self.config = config
        param_dtype, width = dtypes["param_dtype"], config.encoder.width
        num_positions = self.num_prefix + math.prod(position_grid(config))
        normal = nnx.initializers.normal(0.02)
        if config.class_token:
            self.class_token = nnx.Param(normal(rngs.params(), (width,), param_dtype))
        self.positions = nnx.Param(normal(rngs.params(), (num_positions, width), param_dtype))
        self.norm = LayerNorm(config.encoder, param_dtype=param_dtype, rngs=rngs)
        if config.num_classes:
            self.head = nnx.Linear(width, config.num_classes, **dtypes, rngs=rngs)

    def embed(self, images):
        """Tokens `[B, N, C]` before the first block, the class token first if there is one."""
        grid = self.patch_embedding.grid(images)
        tokens = self.patch_embedding(images)
        if self.config.class_token:
            tokens = prepend(tokens, self.class_token[...])
        positions = resize_positions(
            self.positions[...],
            grid,
            learned=position_grid(self.config),
            rule=self.config.position_resize,
            num_prefix=self.num_prefix,
        )
        return tokens + positions.astype(tokens.dtype)

    def finish(self, tokens):
        """The tokens, after layer norm if that is where it sits, and what the head sees."""
        norm_first = self.config.norm == "tokens"
        if norm_first:
            tokens = self.norm(tokens)
        if self.config.pool == "token":
            pooled = tokens[:, 0]
        else:
            pooled = jnp.mean(tokens[:, self.num_prefix :], axis=1)
        return tokens, pooled if norm_first else self.norm(pooled)
