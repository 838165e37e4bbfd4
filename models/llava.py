"""LLaVA 1.5, LLaVA-NeXT and OneVision: a vision tower, a projector and a language model.

Shape letters: B batch, N tokens of a prompt, T tiles of all its images, S pixels along the side of
a tile, F features of a tile, C width of the tower, W width of the language model, K features that
an image token is the weighted sum of, V words.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from . import generation
from .clip import CLIPVisionTower
from .configs import ACTIVATIONS, ModelConfig, check_choice, image_shape, position_grid
from .decoder import Decoder, DecoderConfig
from .embeddings import resize_positions
from .image_tokens import dropped
from .inputs.tiles import Tiling
from .siglip import SigLIPVisionConfig, SigLIPVisionTower
from .vit import VisionOutput

TOWERS = {"clip": CLIPVisionTower, "siglip": SigLIPVisionTower}


@dataclasses.dataclass(frozen=True)
class LLaVAVisionConfig(SigLIPVisionConfig):
    """The vision tower up to the block whose state is read, and nothing after it.

    Attributes:
      tower: one of `TOWERS`.
    """

    head: bool = False
    tower: str = dataclasses.field(kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_choice(self, "tower", TOWERS)
        if self.head:
            raise ValueError("the vision tower of a LLaVA has no head: drop head=True")


@dataclasses.dataclass(frozen=True)
class LLaVAConfig(ModelConfig):
    """A LLaVA.

    Attributes:
      decoder: the language model. Its dtypes are those of the whole.
      image_token_id: the token that stands for an image in a prompt.
      projector_activation, projector_bias: of the two layers between tower and language model.
      keep_class_token: whether CLIP's class token is a feature, too ("full" rather than "default").
      resolutions: that images are cut into tiles from, as in `tiles.Tiling`; none for no tiles.
      most_tiles: `Tiling.most`.
      tile_one_only: whether of several images in a prompt none is tiled, as in OneVision.
      video_token_id: the token that stands for a video, in OneVision; None for no videos.
    """

    vision: LLaVAVisionConfig
    decoder: DecoderConfig
    image_token_id: int
    projector_activation: str
    projector_bias: bool
    keep_class_token: bool = False
    resolutions: tuple[tuple[int, int], ...] = ()
    most_tiles: int | None = None
    tile_one_only: bool = False
    video_token_id: int | None = None

    def __post_init__(self):
        super().__post_init__()
        check_choice(self, "projector_activation", ACTIVATIONS)
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        object.__setattr__(self, "decoder", dataclasses.replace(self.decoder, **dtypes))
        for name in ("image_token_id", "video_token_id"):
            token = getattr(self, name)
            if token is not None and not 0 <= token < self.decoder.vocab_size:
                raise ValueError(
                    f"{name} {token} is none of the {self.decoder.vocab_size} tokens of the "
                    "language model"
                )
        if self.keep_class_token and (self.resolutions or self.vision.tower == "siglip"):
            raise ValueError(
                "keep_class_token=True needs CLIP's tower and images that are not cut into tiles"
            )
        of_tiles = dict(
            most_tiles=self.most_tiles is not None,
            tile_one_only=self.tile_one_only,
            video_token_id=self.video_token_id is not None,
        )
        if not self.resolutions and any(of_tiles.values()):
            named = next(name for name, given in of_tiles.items() if given)
            raise ValueError(f"{named} is for models that cut images into tiles: give resolutions")
        if self.resolutions and len(set(image_shape(self.vision))) > 1:
            raise ValueError(f"tiles are square, got images of {image_shape(self.vision)} pixels")
        _ = self.tiling  # whose errors belong here

    @property
    def tiling(self) -> Tiling | None:
        """How images are cut into tiles; None where they are not."""
        if not self.resolutions:
            return None
        patches, _ = position_grid(self.vision)
        return Tiling(self.vision.image_size, patches, self.resolutions, self.most_tiles)

    @property
    def num_terms(self) -> int:
        """K: 1 where every token is a feature, 4 where some are interpolated between features."""
        return 1 if self.most_tiles is None and self.video_token_id is None else 4

    @property
    def num_features(self) -> int:
        """F."""
        return math.prod(position_grid(self.vision)) + self.keep_class_token


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    """Texts with images, as `prompts.make_prompts` prepares them.

    Attributes:
      tokens: int32 `[B, N]`, padded on the left, with as many image tokens as there are features.
      key_mask: bool `[B, N]`, False on padding.
      tiles: float32 `[T, S, S, 3]`, of all images in their order.
      index, weight: int32 and float32 `[B, N, K]`, `tiles.Packing` of all tiles together; zeros
        where the text is.
    """

    tokens: jax.Array
    key_mask: jax.Array
    tiles: jax.Array
    index: jax.Array
    weight: jax.Array

    @property
    def is_image(self) -> jax.Array:
        """bool `[B, N]`, where features of images are."""
        return (self.weight > 0).any(axis=2)


class Projector(nnx.Module):
    """Features `[..., C]` to embeddings of tokens `[..., W]`: linear, activation, linear."""

    def __init__(self, config: LLaVAConfig, *, dtype, param_dtype, rngs):
        width = config.decoder.width
        linear = functools.partial(
            nnx.Linear,
            use_bias=config.projector_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.fc1 = linear(config.vision.encoder.width, width)
        self.fc2 = linear(width, width)
        self.activation = ACTIVATIONS[config.projector_activation]

    def __call__(self, features):
        return self.fc2(self.activation(self.fc1(features)))


class LLaVA(nnx.Module):
    """A LLaVA with exact attention; `models.with_attention` gives a view whose tower runs FNA."""

    def __init__(self, config: LLaVAConfig, *, rngs):
        self.config = config
        dtypes = config.dtypes()
        self.vision = TOWERS[config.vision.tower](config.vision, **dtypes, rngs=rngs)
        self.projector = Projector(config, **dtypes, rngs=rngs)
        self.decoder = Decoder(config.decoder, rngs=rngs)
        if config.resolutions:
            width = config.decoder.width
            normal = nnx.initializers.normal(width**-0.5)
            self.newline = nnx.Param(normal(rngs.params(), (width,), dtypes["param_dtype"]))

    def __call__(
        self, images, *, rng=None, compare=False, tokens=None, capture=None
    ) -> VisionOutput:
        """The tower's tokens, and their mean over the patches; see `VisionTower.__call__`."""
        return self.vision(images, rng=rng, compare=compare, tokens=tokens, capture=capture)

    def image_features(self, tiles, *, rng=None):
        """Embeddings `[T, F, W]` of tiles `[T, S, S, 3]`; errors as in `__call__`."""
        tokens = self.vision(tiles, rng=rng).tokens
        return self.projector(tokens if self.config.keep_class_token else self._patches(tokens))

    def _patches(self, tokens):
        return tokens[:, self.vision.num_prefix :]

    def embed(self, prompts: Prompts, *, rng=None):
        """Embeddings `[B, N, W]`: of the text's tokens, and of the images where theirs are."""
        words = self.decoder.embed(prompts.tokens)
        if not prompts.tiles.shape[0]:
            return words
        features = self.image_features(prompts.tiles, rng=rng)
        features = features.reshape(-1, features.shape[-1])  # [T · F, W]
        if self.config.resolutions:  # the last, where tiles.END points to
            newline = self.newline[...].astype(features.dtype)
            features = jnp.concatenate([features, newline[None]])
        weight = prompts.weight[..., None]
        looked = jnp.sum(features[prompts.index] * weight, axis=2)  # in float32, as the weights are
        return jnp.where(prompts.is_image[..., None], looked.astype(words.dtype), words)

    def logits(self, prompts: Prompts, *, rng=None):
        """Logits float32 `[B, N, V]` of what follows each token; on padding they mean nothing."""
        hidden, _ = self.decoder(self.embed(prompts, rng=rng), key_mask=prompts.key_mask)
        return self.decoder.logits_of(hidden)


def at_size(model: LLaVA, image_size) -> LLaVA:
    """The model for square images of so many pixels, with an image token for each of their patches.

    Positions of the tower are resized once, as the tower resizes them for images of another size
    than its own; all other weights are shared. Its attention is exact.

    Raises:
      ValueError: a model that cuts images into tiles, or a size that the patches do not divide.
    """
    config = model.config
    if config.tiling is not None:
        raise ValueError(
            "this model cuts images into tiles of one size: other sizes are for models without"
        )
    if image_size < 1 or image_size % config.vision.patch_size:
        raise ValueError(
            f"image size {image_size} does not divide by the patch size {config.vision.patch_size}"
        )
    resized = dataclasses.replace(config.vision, image_size=image_size, image_width=None)
    config = dataclasses.replace(config, vision=resized)
    weights = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    weights["vision"]["positions"] = resize_positions(
        model.vision.positions[...],
        position_grid(resized),
        learned=position_grid(model.config.vision),
        rule=resized.position_resize,
        num_prefix=model.vision.num_prefix,
    )
    other = nnx.eval_shape(lambda: LLaVA(config, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(other)
    nnx.replace_by_pure_dict(state, weights)
    return nnx.merge(graphdef, state)


def embed_prompts(model: LLaVA, prompts: Prompts, *, rng=None, dropping=None):
    """What the decoder takes: embeddings `[B, M, W]`, and its other arguments by name.

    Positions are not among these: those of tokens that are left are counted anew.

    Args:
      model: a LLaVA, or a view of one.
      prompts: of `prompts.make_prompts`.
      rng: key of random landmarks, if the tower's attention draws them.
      dropping: an `image_tokens.ImageDropping`; None to keep all image tokens. What goes behind a
        block of the language model is still here, and goes by the argument `dropping`.

    Raises:
      ValueError: image tokens to be dropped where there are none.
    """
    in_front, inside = dropped(prompts, dropping)
    graphdef, state = nnx.split(model)
    embeddings, others = _embed(graphdef, in_front, state, prompts, rng)
    return embeddings, others | {"dropping": inside}


def generate(model: LLaVA, prompts: Prompts, *, rng=None, dropping=None, **settings):
    """What the model writes behind the prompts, int32 `[B, max_new_tokens]`.

    Args:
      model, prompts, rng, dropping: as in `embed_prompts`.
      **settings: of `generation.generate`, with its errors.
    """
    embeddings, others = embed_prompts(model, prompts, rng=rng, dropping=dropping)
    return generation.generate(model.decoder, embeddings, **others, **settings)


# nnx.jit would copy the weights.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _embed(graphdef, in_front, state, prompts, rng):
    embeddings = nnx.merge(graphdef, state).embed(prompts, rng=rng)
    others = dict(key_mask=prompts.key_mask)
    if in_front is None:
        return embeddings, others
    dropping, length = in_front
    return dropping.apply(embeddings, others, prompts.is_image, length)
