"""DINOv3 (arXiv 2508.10104): rotary positions, class token and registers in front.

Shape letters: B batch, N tokens, H heads, D head dimension, C width, R registers, P patches.
"""

import dataclasses

from .configs import (
    DTYPES,
    EncoderConfig,
    ModelConfig,
    check_choice,
    check_not_negative,
    check_patches,
    check_rotary,
)
from .dinov2 import DINOTower
from .rotary import patch_coordinates, rotary_angles
from .turning import turned


@dataclasses.dataclass(frozen=True)
class DINOv3Config(ModelConfig):
    """A DINOv3; nothing in the model depends on the image sizes that it was trained with.

    Attributes:
      rope_theta: between 1 and this are the wavelengths of the rotation, in halves of an image.
      rope_periods: the dtype to which they are rounded, which was bfloat16 in training.
    """

    image_size: int
    patch_size: int
    num_registers: int
    rope_theta: float
    encoder: EncoderConfig
    image_width: int | None = None
    rope_periods: str = "float32"

    def __post_init__(self):
        super().__post_init__()
        check_patches(self)
        check_not_negative(self, "num_registers")
        check_rotary(self)
        check_choice(self, "rope_periods", DTYPES)


def _published(width, depth, num_heads, mlp_dim, *, biases="qv", gated=False):
    """A released size."""
    encoder = EncoderConfig(
        width,
        depth,
        num_heads,
        mlp_dim,
        "silu" if gated else "gelu",
        layer_norm_epsilon=1e-5,
        biases=biases,
        gated_mlp=gated,
        layer_scale=True,
    )
    return DINOv3Config(224, 16, 4, 100.0, encoder)


VARIANTS = {
    "dinov3-vit-s-16": _published(384, 12, 6, 1536),
    "dinov3-vit-s-plus-16": _published(384, 12, 6, 1536, gated=True),
    "dinov3-vit-b-16": _published(768, 12, 12, 3072),
    "dinov3-vit-l-16": _published(1024, 24, 16, 4096),
    "dinov3-vit-h-plus-16": _published(1280, 32, 20, 5120, gated=True),
    "dinov3-vit-7b-16": _published(4096, 40, 32, 8192, biases="", gated=True),
}


class DINOv3(DINOTower):
    """DINOv3 with exact attention; `models.with_attention` gives a view that runs FNA.

    Landmark features "q" and "k" are those that attention sees, after the rotation.
    """

    def embed(self, images):
        """Tokens `[B, 1 + R + P, C]` before the first block: class token, registers, patches."""
        self.patch_embedding.grid(images)  # raises for a size that does not divide
        return self.with_prefix(self.patch_embedding(images), self.class_token[...])

    def position_attends(self, attends, images):
        """Each block's attention after the patches' query and key are rotated.

        Where tokens were merged, they are at the mean place of those that they stand for.
        """
        of_all = self._angles(patch_coordinates(self.patch_embedding.grid(images)))
        turn = dict(of_all=of_all, of_places=self._angles, num_prefix=self.num_prefix)
        return [turned(attend, **turn) for attend in attends]

    def _angles(self, coordinates):
        config = self.config
        return rotary_angles(
            coordinates,
            config.encoder.head_dim,
            theta=config.rope_theta,
            rounded=config.rope_periods,
        )
