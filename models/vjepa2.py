"""V-JEPA 2 (arXiv 2506.09985): the encoder of videos, and its attentive classifier.

A video is cut into tubelets, squares of patches in two frames. All of them attend to each other,
after their places in time, down and across have turned three parts of a head's channels. The
predictor, with which the encoder was trained, is no part of this.

Shape letters: B batch, F frames, t = F / 2 tubelets in time, h and w down and across, N = t·h·w
tokens, D head dimension, C width.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fna_jax import exact_attention

from .attends import attend_exactly
from .blocks import Block, LayerNorm, Mlp, run_blocks
from .configs import (
    EncoderConfig,
    ModelConfig,
    check_not_negative,
    check_patches,
    check_positive,
)
from .inputs.qwen_images import FRAMES
from .qwen_vision import FramePairEmbedding
from .rotary import rotate_neighbours, tubelet_angles
from .turning import turned
from .vit import ClassifiesPooled, VisionTower


@dataclasses.dataclass(frozen=True)
class VJEPA2Config(ModelConfig):
    """A V-JEPA 2; nothing in it depends on the sizes and lengths that it was trained with.

    Attributes:
      num_frames: of the videos of training.
      num_classes: of the classifier; 0 for the encoder alone.
      pooler_depth: blocks of the classifier before its cross-attention.
    """

    image_size: int
    patch_size: int
    num_frames: int
    encoder: EncoderConfig
    num_classes: int = 0
    pooler_depth: int = 3
    image_width: int | None = None

    def __post_init__(self):
        super().__post_init__()
        check_patches(self)
        check_positive(self, "num_frames", "pooler_depth")
        check_not_negative(self, "num_classes")
        if (head_dim := self.encoder.head_dim) % 2 or head_dim < 6:
            raise ValueError(
                "positions on three axes need heads of an even number of channels, at least 6, "
                f"got {head_dim}"
            )


_SIZES = {  # (width, depth, heads, MLP width)
    "l": (1024, 24, 16, 4096),
    "h": (1280, 32, 16, 5120),
    "g": (1408, 40, 22, 6144),
}


def _published(size, image_size, num_frames=64, num_classes=0):
    encoder = EncoderConfig(*_SIZES[size], "gelu", 1e-6)
    return VJEPA2Config(image_size, 16, num_frames, encoder, num_classes)


VARIANTS = {
    "vjepa2-vit-l-16-256": _published("l", 256),
    "vjepa2-vit-h-16-256": _published("h", 256),
    "vjepa2-vit-g-16-256": _published("g", 256),
    "vjepa2-vit-g-16-384": _published("g", 384),
    "vjepa2-vit-l-16-256-ssv2": _published("l", 256, 16, 174),
    "vjepa2-vit-l-16-256-diving48": _published("l", 256, 32, 48),
    "vjepa2-vit-g-16-384-ssv2": _published("g", 384, 64, 174),
    "vjepa2-vit-g-16-384-diving48": _published("g", 384, 32, 48),
}


class TubeletEmbedding(FramePairEmbedding):
    """Videos `[B, F, height, width, 3]` to tokens `[B, t·h·w, C]`, one pair of frames after the
    other; of an image `[B, height, width, 3]`, a video of two frames that are the same."""

    def grid(self, images):
        """Tubelets in time, down and across, and down and across of an image; raises where one does
        not divide."""
        if images.ndim != 5:
            return super().grid(images)
        batch, frames, *rest = images.shape
        if frames % FRAMES or not frames:
            nearest = f"{frames - 1} or {frames + 1}" if frames > 1 else FRAMES
            raise ValueError(
                f"{frames} frames do not divide by the {FRAMES} of a tubelet; the nearest that "
                f"do: {nearest}"
            )
        pair = jax.ShapeDtypeStruct((batch, *rest), images.dtype)
        return frames // FRAMES, *super().grid(pair)

    def __call__(self, images):
        if images.ndim == 4:
            return super().__call__(images)
        pairs = images.reshape(-1, FRAMES, *images.shape[2:])
        patches = super().__call__(pairs)  # [B · t, h·w, C]
        return patches.reshape(images.shape[0], -1, patches.shape[-1])


class AttentivePooler(nnx.Module):
    """Blocks of self-attention, then a learned probe that attends to all tokens, `[B, N, C]` to
    `[B, C]`. There are no positions, and attention is exact."""

    def __init__(self, config: EncoderConfig, *, dtype, param_dtype, rngs):
        dtypes = dict(dtype=dtype, param_dtype=param_dtype)
        linear = functools.partial(nnx.LinearGeneral, **dtypes, rngs=rngs)
        norm = functools.partial(LayerNorm, config, param_dtype=param_dtype, rngs=rngs)
        heads = (config.num_heads, config.head_dim)
        normal = nnx.initializers.normal(0.02)
        self.blocks = nnx.List([Block(config, **dtypes, rngs=rngs) for _ in range(config.depth)])
        self.probe = nnx.Param(normal(rngs.params(), (config.width,), param_dtype))
        self.norm1, self.norm2 = norm(), norm()
        self.query, self.key, self.value = (linear(config.width, heads) for _ in range(3))
        self.mlp = Mlp(config, **dtypes, rngs=rngs)

    def __call__(self, tokens):
        tokens, *_ = run_blocks(self.blocks, tokens, [attend_exactly] * len(self.blocks))
        tokens = self.norm1(tokens)
        probe = jnp.broadcast_to(
            self.probe[...].astype(tokens.dtype), (tokens.shape[0], 1, tokens.shape[-1])
        )
        out = exact_attention(self.query(probe), self.key(tokens), self.value(tokens))
        x = (probe + out.reshape(probe.shape))[:, 0]
        return x + self.mlp(self.norm2(x))


class VJEPA2(ClassifiesPooled, VisionTower):
    """V-JEPA 2 with exact attention; `models.with_attention` gives a view that runs FNA.

    Called with videos, floats `[B, F, height, width, 3]`, of any even length and any size that
    divides by the patch, or with images. `pooled` is the mean token, or with a classifier what its
    pooler makes of the tokens. Landmark features "q" and "k" are those that attention sees, after
    the rotation.
    """

    patch_embedding_class = TubeletEmbedding

    def __init__(self, config: VJEPA2Config, *, rngs):
        dtypes = config.dtypes()
        super().__init__(config, num_prefix=0, **dtypes, rngs=rngs)
        self.config = config
        self.final_norm = LayerNorm(config.encoder, param_dtype=dtypes["param_dtype"], rngs=rngs)
        if config.num_classes:
            # Its MLPs are four times as wide as its tokens, whatever those of the encoder.
            of_pooler = dataclasses.replace(
                config.encoder, depth=config.pooler_depth, mlp_dim=4 * config.encoder.width
            )
            self.pooler = AttentivePooler(of_pooler, **dtypes, rngs=rngs)
            self.head = nnx.Linear(config.encoder.width, config.num_classes, **dtypes, rngs=rngs)

    def grid(self, images):
        """Tubelets in time, down and across, (t, h, w); of an image (h, w)."""
        return self.patch_embedding.grid(images)

    def embed(self, images):
        """Tokens `[B, N, C]` before the first block."""
        self.grid(images)  # raises for a size that does not divide
        return self.patch_embedding(images)

    def finish(self, tokens):
        """The tokens after layer norm, and what is pooled of them."""
        tokens = self.final_norm(tokens)
        return (tokens, self.pooler(tokens)) if self.config.num_classes else self.headless(tokens)

    def position_attends(self, attends, images):
        """Each block's attention after query and key are rotated."""
        grid = self.grid(images)
        of_all = self._angles(np.stack(np.indices(grid), axis=-1).reshape(-1, len(grid)))

        def of_places(places):  # centres on axes from −1 to 1
            return self._angles(((places + 1) * np.array(grid, np.float32) - 1) / 2)

        turn = dict(num_prefix=0, rotate=rotate_neighbours)
        return [turned(attend, of_all, of_places, **turn) for attend in attends]

    def _angles(self, coordinates):
        """Angles `[…, D]` at coordinates in tubelets, `[…, 3]`, or of an image `[…, 2]`."""
        at_no_time = (3 - coordinates.shape[-1], 0)
        coordinates = jnp.pad(coordinates, [*[(0, 0)] * (coordinates.ndim - 1), at_no_time])
        return tubelet_angles(coordinates, self.config.encoder.head_dim)
