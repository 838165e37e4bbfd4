"""DINOv2 (arXiv 2304.07193), without and with registers (arXiv 2309.16588).

Shape letters: B batch, N tokens, C width, R registers, h and w patches down and across.
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
    check_classifier,
    check_not_negative,
    check_patches,
    position_grid,
)
from .embeddings import POSITION_RESIZES, prepend, resize_positions
from .vit import VisionTower


@dataclasses.dataclass(frozen=True)
class DINOv2Config(ModelConfig):
    """A DINOv2; image sizes and `position_resize` as in `VisionConfig`.

    Attributes:
      num_classes: of the linear classifier; 0 for none.
    """

    image_size: int
    patch_size: int
    position_resize: str
    num_registers: int
    encoder: EncoderConfig
    num_classes: int = 0
    image_width: int | None = None

    def __post_init__(self):
        super().__post_init__()
        check_patches(self)
        check_choice(self, "position_resize", POSITION_RESIZES)
        check_not_negative(self, "num_registers", "num_classes")


def swiglu_dim(width, mlp_ratio=4):
    """Channels inside a gated MLP of about as many parameters as a plain one, in eights."""
    return (int(int(width * mlp_ratio) * 2 / 3) + 7) // 8 * 8


def _published(width, depth, num_heads, num_registers, *, gated=False):
    """A released size, with the rule for positions that it was trained with."""
    mlp_dim, activation = (swiglu_dim(width), "silu") if gated else (4 * width, "gelu")
    encoder = EncoderConfig(
        width,
        depth,
        num_heads,
        mlp_dim,
        activation,
        layer_norm_epsilon=1e-6,
        gated_mlp=gated,
        layer_scale=True,
    )
    position_resize = "bicubic_antialias" if num_registers else "bicubic_offset"
    return DINOv2Config(518, 14, position_resize, num_registers, encoder)


VARIANTS = {
    f"dinov2-vit-{name}-14{suffix}": _published(*size, num_registers, gated=name == "g")
    for name, size in {
        "s": (384, 12, 6),
        "b": (768, 12, 12),
        "l": (1024, 24, 16),
        "g": (1536, 40, 24),
    }.items()
    for suffix, num_registers in {"": 0, "-reg": 4}.items()
}


class DINOTower(VisionTower):
    """A class token and registers in front, layer norm after the blocks: DINOv2 and DINOv3."""

    def __init__(self, config, *, rngs):
        dtypes = config.dtypes()
        super().__init__(config, num_prefix=1 + config.num_registers, **dtypes, rngs=rngs)
        self.config = config
        self.class_token = self._learned(rngs)
        if config.num_registers:
            self.registers = self._learned(rngs, config.num_registers)
        self.final_norm = LayerNorm(config.encoder, param_dtype=dtypes["param_dtype"], rngs=rngs)

    def _learned(self, rngs, *shape):
        shape, dtype = (*shape, self.config.encoder.width), self.config.dtypes()["param_dtype"]
        return nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), shape, dtype))

    def with_prefix(self, patches, class_token):
        """Tokens `[B, 1 + R + h·w, C]` of patch tokens and the class token `[C]`."""
        if not self.config.num_registers:
            return prepend(patches, class_token)
        return prepend(patches, class_token, self.registers[...])

    def finish(self, tokens):
        """The tokens after layer norm, and the class token among them."""
        tokens = self.final_norm(tokens)
        return tokens, tokens[:, 0]


class DINOv2(DINOTower):
    """DINOv2 with exact attention; `models.with_attention` gives a view that runs FNA.

    Patches and class token have learned positions, registers have none.
    """

    def __init__(self, config: DINOv2Config, *, rngs):
        super().__init__(config, rngs=rngs)
        self.positions = self._learned(rngs, 1 + math.prod(position_grid(config)))
        if config.num_classes:
            width, dtypes = config.encoder.width, config.dtypes()
            self.head = nnx.Linear(2 * width, config.num_classes, **dtypes, rngs=rngs)

    def embed(self, images):
        """Tokens `[B, 1 + R + h·w, C]` before the first block: class token, registers, patches."""
        positions = resize_positions(
            self.positions[...],
            self.patch_embedding.grid(images),
            learned=position_grid(self.config),
            rule=self.config.position_resize,
            num_prefix=1,
        )
        patches = self.patch_embedding(images)
        patches = patches + positions[1:].astype(patches.dtype)
        return self.with_prefix(patches, self.class_token[...] + positions[0])

    def classify(self, images, *, rng=None, tokens=None):
        """Logits `[B, classes]` of class token and mean patch. Arguments as in `__call__`.

        Raises:
          ValueError: a model without a classifier, dropped patches, or as in `__call__`.
        """
        check_classifier(self.config)
        if self.reduction is not None and self.reduction.drops:
            raise ValueError(
                "this classifier reads the mean of all patches, and this view drops some: take "
                "another output, or models.TokenMerging"
            )
        output = self(images, rng=rng, tokens=tokens)
        patches = jnp.mean(output.tokens[:, self.num_prefix :], axis=1)
        return self.head(jnp.concatenate([output.pooled, patches], axis=-1))
