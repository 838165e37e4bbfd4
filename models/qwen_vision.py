"""Qwen3-VL's vision tower (arXiv 2511.21631): images of any size to tokens of a language model.

Attention is among all patches of an image, in every block; of a video among those of two frames,
which share their patches. Patches are stored row by row, so that windows are of the image's own
grid; transformers stores them square by square of the mergers, which is the same function of the
image.

Shape letters: B batch, N = h·w tokens, h and w patches down and across, M patches in a merger's
square, C width, W width of the language model, D head dimension, b images of one size.
"""

import dataclasses
import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .attends import vision_attends
from .blocks import LayerNorm
from .configs import (
    ACTIVATIONS,
    EncoderConfig,
    ModelConfig,
    check_patches,
    check_positive,
    check_rotary,
    position_grid,
)
from .embeddings import PatchEmbedding, resize_to_corners
from .inputs.qwen_images import FRAMES
from .packing import Packing
from .rotary import rotary_angles
from .turning import turned
from .vit import VisionTower


@dataclasses.dataclass(frozen=True)
class QwenVisionConfig(ModelConfig):
    """A vision tower of Qwen3-VL.

    Attributes:
      image_size: height in pixels at which positions were learned, and width if `image_width` is
        None; images may be of any size.
      out_width: W.
      deepstack: blocks whose output has a merger of its own, ascending.
      merge_size: patches down and across that are merged into one token.
      rope_theta: between 1 and this are the wavelengths of the rotation, in patches over 2π.
    """

    image_size: int
    patch_size: int
    encoder: EncoderConfig
    out_width: int
    deepstack: tuple[int, ...]
    merge_size: int = 2
    rope_theta: float = 10000.0
    image_width: int | None = None

    def __post_init__(self):
        super().__post_init__()
        check_patches(self)
        check_positive(self, "out_width", "merge_size")
        check_rotary(self)
        ascending = list(self.deepstack) == sorted(set(self.deepstack))
        if not ascending or not set(self.deepstack) <= set(range(self.encoder.depth)):
            raise ValueError(
                f"deepstack must be ascending blocks from 0 to {self.encoder.depth - 1}, got "
                f"{self.deepstack}"
            )


def _published(size, out_width):
    """The tower of a released model."""
    encoder, deepstack = _TOWERS[size]
    return QwenVisionConfig(768, 16, encoder, out_width, deepstack)


_encoder = functools.partial(EncoderConfig, activation="gelu_pytorch_tanh", layer_norm_epsilon=1e-6)
_TOWERS = {  # whose names are ours
    "l": (_encoder(1024, 24, 16, 4096), (5, 11, 17)),
    "so400m": (_encoder(1152, 27, 16, 4304), (8, 16, 24)),
}
VARIANTS = {
    "qwen3-vl-2b-vision": _published("l", 2048),
    "qwen3-vl-4b-vision": _published("l", 2560),
    "qwen3-vl-8b-vision": _published("so400m", 4096),
}


class ImageFeatures(typing.NamedTuple):
    """What the language model reads of images of one size: a token for each square of patches.

    Attributes:
      merged: `[b, N / M, W]`, row by row, in place of the image's tokens.
      deepstack: `[b, N / M, W]` each, added to those tokens in the first blocks, one after another.
    """

    merged: jax.Array
    deepstack: tuple[jax.Array, ...]


class FramePairEmbedding(PatchEmbedding):
    """Pairs of frames `[B, 2, height, width, 3]` to tokens; of an image `[B, height, width, 3]`
    both frames are the same."""

    channels = 3 * FRAMES

    def grid(self, images):
        """Patches down and across; raises where an image does not divide by the patch."""
        if images.ndim == 5 and images.shape[1] == FRAMES:
            images = jax.ShapeDtypeStruct((images.shape[0], *images.shape[2:]), images.dtype)
        return super().grid(images)

    def __call__(self, images):
        frames = (images,) * FRAMES if images.ndim == 4 else (images[:, i] for i in range(FRAMES))
        return super().__call__(jnp.concatenate([*frames], axis=-1))


class PatchMerger(nnx.Module):
    """Squares of patches `[..., M, C]` to tokens `[..., W]`: layer norm, linear, GELU, linear.

    The norm is of each patch, or of the whole square (`normalise_square`).
    """

    def __init__(self, config: QwenVisionConfig, *, normalise_square, dtype, param_dtype, rngs):
        square = config.merge_size**2 * config.encoder.width
        linear = functools.partial(nnx.Linear, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        normed = config.encoder
        if normalise_square:
            normed = dataclasses.replace(normed, width=square)
        self.norm = LayerNorm(normed, param_dtype=param_dtype, rngs=rngs)
        self.fc1 = linear(square, square)
        self.fc2 = linear(square, config.out_width)
        self.normalise_square = normalise_square

    def __call__(self, patches):
        flat = lambda x: x.reshape(*patches.shape[:-2], -1)
        x = self.norm(flat(patches)) if self.normalise_square else flat(self.norm(patches))
        return self.fc2(ACTIVATIONS["gelu"](self.fc1(x)))


def squares_of(tokens, grid, merge_size):
    """Tokens `[b, h·w, C]` by the mergers' squares, `[b, N / M, M, C]`, both row by row."""
    down, across = (side // merge_size for side in grid)
    cut = tokens.reshape(-1, down, merge_size, across, merge_size, tokens.shape[-1])
    return jnp.swapaxes(cut, 2, 3).reshape(len(tokens), -1, merge_size**2, tokens.shape[-1])


class QwenVision(VisionTower):
    """Qwen3-VL's tower with exact attention; `models.with_attention` gives a view that runs FNA.

    A call gives the patches' tokens, row by row, and their mean; `encode` what the language model
    reads. Landmark features "q" and "k" are those that attention sees, after the rotation.
    """

    patch_embedding_class = FramePairEmbedding

    def __init__(self, config: QwenVisionConfig, *, rngs):
        dtypes = config.dtypes()
        super().__init__(config, num_prefix=0, **dtypes, rngs=rngs)
        self.config = config
        shape = (math.prod(position_grid(config)), config.encoder.width)
        normal = nnx.initializers.normal(0.02)
        self.positions = nnx.Param(normal(rngs.params(), shape, dtypes["param_dtype"]))
        merger = functools.partial(PatchMerger, config, **dtypes, rngs=rngs)
        self.merger = merger(normalise_square=False)
        self.deepstack_mergers = nnx.List([merger(normalise_square=True) for _ in config.deepstack])

    def embed(self, images):
        """Tokens `[B, h·w, C]` before the first block, of images or of pairs of frames."""
        grid = self.patch_embedding.grid(images)
        positions = resize_to_corners(self.positions[...], grid, learned=position_grid(self.config))
        tokens = self.patch_embedding(images)
        return tokens + positions.astype(tokens.dtype)

    def finish(self, tokens):
        """The tokens as they are, and their mean."""
        return self.headless(tokens)

    def position_attends(self, attends, images):
        """Each block's attention after the patches' query and key are rotated."""
        grid = self.patch_embedding.grid(images)
        of_all = self._angles(np.stack(np.indices(grid), axis=-1).reshape(-1, 2))

        def of_places(places):  # centres on axes from −1 to 1
            return self._angles(((places + 1) * np.array(grid, np.float32) - 1) / 2)

        return [turned(attend, of_all, of_places, num_prefix=0) for attend in attends]

    def _angles(self, coordinates):
        """Angles `[…, D/2]` at coordinates `[…, 2]` in patches."""
        head_dim, theta = self.config.encoder.head_dim, self.config.rope_theta
        return rotary_angles(coordinates, head_dim, theta=theta, turn=1.0)

    def encode(self, images, *, rng=None) -> list[ImageFeatures]:
        """What the language model reads of images of several sizes, an entry for each batch.

        The images are one sequence, in which attention stays inside each; one program is compiled
        for a tuple of shapes.

        Args:
          images: batches of images of one size, `[b, height, width, 3]`, or of pairs of frames,
            `[b, 2, height, width, 3]`.
          rng: key of random landmarks, if the attention draws them.

        Raises:
          ValueError: no images, a size that does not divide by patch times merger, or a view with
            interventions or fewer tokens.
        """
        batches = [jnp.asarray(x) for x in images]
        grids = [self._merged_grid(x) for x in batches]
        self._check_encode(batches)
        packing = Packing(tuple((len(x), math.prod(grid)) for x, grid in zip(batches, grids)))
        of_batches = zip(*(self.attends_on(x, rng=rng) for x in batches))
        attends = [packing.attend(attends) for attends in of_batches]

        x = packing.pack([self.embed(x) for x in batches])
        landmarks = ((None,) * len(self.fna),) * len(batches)
        mergers = (*self.deepstack_mergers, self.merger)
        features, start = [], 0
        for merger, block in zip(mergers, (*self.config.deepstack, len(attends) - 1)):
            run = attends[start : block + 1]
            x, landmarks, _ = self.encoder(x, run, start=start, landmarks=landmarks)
            features.append(self._merge(merger, packing, x, grids))
            start = block + 1
        return [ImageFeatures(merged, tuple(rest)) for *rest, merged in zip(*features)]

    def _merge(self, merger, packing, x, grids):
        """A merger's tokens `[b, N / M, W]` of each batch, of what is packed in x."""
        size = self.config.merge_size
        squares = [squares_of(part, grid, size) for part, grid in zip(packing.unpack(x), grids)]
        packing = Packing(tuple(part.shape[:2] for part in squares))
        return packing.unpack(merger(packing.pack(squares)))

    def attends_on(self, images, *, rng=None):
        """The attention of each block on a batch of images, of which only the shape matters."""
        grid = self.patch_embedding.grid(images)
        options = dict(grid=grid, rng=rng, compare=False, tokens=None, capture=None)
        return self.position_attends(vision_attends(self, **options), images)

    def _merged_grid(self, images):
        grid, size = self.patch_embedding.grid(images), self.config.merge_size
        if any(side % size for side in grid):
            multiple = size * self.config.patch_size
            raise ValueError(
                f"images of {images.shape[-3]} × {images.shape[-2]} pixels are no whole squares of "
                f"{size} × {size} patches: height and width must be multiples of {multiple}"
            )
        return grid

    def _check_encode(self, batches):
        if not batches:
            raise ValueError("there are no images to encode: give at least one batch")
        if self.interventions.by_block or self.reduction is not None:
            raise ValueError(
                "encode() knows exact and approximate attention, and this view masks tokens or "
                "takes some away: call the model itself, on images of one size"
            )
