"""Qwen3-VL (arXiv 2511.21631): images of any size and videos, read by a language model.

Beside the tower's tokens, which stand in the text, what its deep-stack mergers give is added to the
states of the same tokens behind the first blocks. Positions are of time, row and column.

Shape letters: B batch, N tokens of a prompt, F features of all images, W width of the language
model, V words.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from . import generation
from .configs import ModelConfig
from .decoder import VARIANTS as DECODERS
from .decoder import Decoder, DecoderConfig
from .image_tokens import dropped
from .qwen_vision import VARIANTS as TOWERS
from .qwen_vision import ImageFeatures, QwenVision, QwenVisionConfig
from .vit import VisionOutput


@dataclasses.dataclass(frozen=True)
class QwenVLConfig(ModelConfig):
    """A Qwen3-VL.

    Attributes:
      vision, decoder: the tower and the language model. Their dtypes are those of the whole.
      image_token_id, video_token_id: the tokens that stand for an image and for two frames of a
        video in a prompt.
    """

    vision: QwenVisionConfig
    decoder: DecoderConfig
    image_token_id: int
    video_token_id: int

    def __post_init__(self):
        super().__post_init__()
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        for name in ("vision", "decoder"):
            object.__setattr__(self, name, dataclasses.replace(getattr(self, name), **dtypes))
        vision, decoder = self.vision, self.decoder
        for name in ("image_token_id", "video_token_id"):
            if not 0 <= (token := getattr(self, name)) < decoder.vocab_size:
                raise ValueError(
                    f"{name} {token} is none of the {decoder.vocab_size} tokens of the language "
                    "model"
                )
        if self.image_token_id == self.video_token_id:
            raise ValueError(f"image_token_id and video_token_id are both {self.image_token_id}")
        if vision.out_width != decoder.width:
            raise ValueError(
                f"the tower's out_width {vision.out_width} is not the language model's width "
                f"{decoder.width}"
            )
        if len(vision.deepstack) > decoder.depth:
            raise ValueError(
                f"deepstack {vision.deepstack} needs as many blocks of the language model, which "
                f"has {decoder.depth}"
            )
        if not decoder.rope_sections:
            raise ValueError("the decoder needs rope_sections, by which tokens have places")


def _published(size, width, depth, num_heads, mlp_dim, tied_head):
    """A released dense model."""
    decoder = dataclasses.replace(
        DECODERS["qwen3-0.6b"],
        width=width,
        depth=depth,
        num_heads=num_heads,
        mlp_dim=mlp_dim,
        max_positions=262144,
        rope_theta=5e6,
        rope_sections=(24, 20, 20),
        tied_head=tied_head,
    )
    return QwenVLConfig(TOWERS[f"qwen3-vl-{size}-vision"], decoder, 151655, 151656)


VARIANTS = {
    "qwen3-vl-2b": _published("2b", 2048, 28, 16, 6144, True),
    "qwen3-vl-4b": _published("4b", 2560, 36, 32, 9728, True),
    "qwen3-vl-8b": _published("8b", 4096, 36, 32, 12288, False),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QwenPrompts:
    """Texts with images, as `qwen_prompts.make_prompts` prepares them.

    Attributes:
      tokens: int32 `[B, N]`, padded on the left, with as many image tokens as there are features.
      key_mask: bool `[B, N]`, False on padding.
      positions: int32 `[B, N, 3]`, of time, row and column.
      is_image: bool `[B, N]`, where features of images and videos are.
      images: of all prompts in their order: `[1, height, width, 3]` of an image, of a video its
        pairs of frames `[b, 2, height, width, 3]`.
    """

    tokens: jax.Array
    key_mask: jax.Array
    positions: jax.Array
    is_image: jax.Array
    images: tuple[jax.Array, ...]


class QwenVL(nnx.Module):
    """A Qwen3-VL with exact attention; `models.with_attention` gives one whose tower runs FNA."""

    def __init__(self, config: QwenVLConfig, *, rngs):
        self.config = config
        self.vision = QwenVision(config.vision, rngs=rngs)
        self.decoder = Decoder(config.decoder, rngs=rngs)

    def __call__(
        self, images, *, rng=None, compare=False, tokens=None, capture=None
    ) -> VisionOutput:
        """The tower's tokens, and their mean over the patches; see `VisionTower.__call__`."""
        return self.vision(images, rng=rng, compare=compare, tokens=tokens, capture=capture)

    def embed(self, prompts: QwenPrompts, *, rng=None):
        """What the decoder takes: embeddings `[B, N, W]`, and its other arguments by name.

        The tower reads all images in one sequence; errors as in `QwenVision.encode`.
        """
        features = self.vision.encode(prompts.images, rng=rng) if prompts.images else []
        return self.place(prompts, features)

    def place(self, prompts: QwenPrompts, features: list[ImageFeatures]):
        """As `embed`, of images that the tower has read."""
        words = self.decoder.embed(prompts.tokens)
        others = dict(key_mask=prompts.key_mask, positions=prompts.positions)
        if not features:
            return words, others
        number = jnp.cumsum(prompts.is_image.ravel()).reshape(prompts.is_image.shape) - 1
        is_image = prompts.is_image[..., None]

        def placed(parts, otherwise):
            rows = jnp.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])  # [F, W]
            return jnp.where(is_image, rows[number], otherwise)

        merged, deepstack = zip(*features)
        deepstack = tuple(placed(parts, 0) for parts in zip(*deepstack))
        return placed(merged, words), others | {"deepstack": deepstack}

    def logits(self, prompts: QwenPrompts, *, rng=None):
        """Logits float32 `[B, N, V]` of what follows each token; on padding they mean nothing."""
        embeddings, others = self.embed(prompts, rng=rng)
        hidden, _ = self.decoder(embeddings, **others)
        return self.decoder.logits_of(hidden)


def embed_prompts(model: QwenVL, prompts: QwenPrompts, *, rng=None, dropping=None):
    """What the decoder takes: embeddings `[B, M, W]`, and its other arguments by name.

    The tower reads the images one by one, so that a program is compiled for each size, not for each
    company. Image tokens that are left keep their places.

    Args:
      model: a Qwen3-VL, or a view of one.
      prompts: of `qwen_prompts.make_prompts`.
      rng: key of random landmarks, if the tower's attention draws them.
      dropping: an `image_tokens.ImageDropping`; None to keep all image tokens. What goes behind a
        block of the language model is still here, and goes by the argument `dropping`.

    Raises:
      ValueError: image tokens to be dropped where there are none.
    """
    in_front, inside = dropped(prompts, dropping)
    graphdef, state = nnx.split(model.vision)
    features = [_encode(graphdef, state, image, rng) for image in prompts.images]
    graphdef, state = nnx.split(model)
    texts = dataclasses.replace(prompts, images=())
    embeddings, others = _place(graphdef, in_front, state, texts, features)
    return embeddings, others | {"dropping": inside}


def generate(model: QwenVL, prompts: QwenPrompts, *, rng=None, dropping=None, **settings):
    """What the model writes behind the prompts, int32 `[B, max_new_tokens]`.

    Args:
      model, prompts, rng, dropping: as in `embed_prompts`.
      **settings: of `generation.generate`, with its errors.
    """
    embeddings, others = embed_prompts(model, prompts, rng=rng, dropping=dropping)
    return generation.generate(model.decoder, embeddings, **others, **settings)


# nnx.jit would copy the weights.
@functools.partial(jax.jit, static_argnums=0)
def _encode(graphdef, state, image, rng):
    (features,) = nnx.merge(graphdef, state).encode([image], rng=rng)
    return features


@functools.partial(jax.jit, static_argnums=(0, 1))
def _place(graphdef, in_front, state, prompts, features):
    embeddings, others = nnx.merge(graphdef, state).place(prompts, features)
    if in_front is None:
        return embeddings, others
    dropping, length = in_front
    return dropping.apply(embeddings, others, prompts.is_image, length)
