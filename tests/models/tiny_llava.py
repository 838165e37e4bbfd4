"""A tiny LLaVA of each kind: 4 patches along the side of a tile of 28 pixels."""

import functools

from flax import nnx

import models
from models import registry
from tests.models import tiny_decoders

SIDE = 28
IMAGE, VIDEO = 9, 10  # the tokens
ENCODER = {"width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24}
DECODER = tiny_decoders.SIZES | {"vocab_size": 31, "width": 24, "max_positions": 400}
RESOLUTIONS = tuple((28 * rows, 28 * columns) for rows in (1, 2, 3) for columns in (1, 2, 3))
KINDS = {
    "1.5": ("llava-1.5-7b", {}),
    "next": ("llava-1.6-mistral-7b", {"resolutions": RESOLUTIONS[1:]}),
    "interleave": ("llava-interleave-qwen-0.5b", {}),
    "onevision": (
        "llava-onevision-qwen2-0.5b",
        {"resolutions": RESOLUTIONS, "most_tiles": 3, "video_token_id": VIDEO},
    ),
}


def settings_of(kind):
    """The published name of a kind and the fields that make it tiny."""
    name, tiles = KINDS[kind]
    vision = {"image_size": SIDE, "patch_size": 7, "encoder": ENCODER}
    return name, {"vision": vision, "decoder": DECODER, "image_token_id": IMAGE} | tiles


def config_of(kind):
    """The config of a tiny LLaVA."""
    name, settings = settings_of(kind)
    return registry.override(registry.FAMILIES["llava"].variants[name], settings)


@functools.cache
def tiny_llava(kind):
    """A random one. Tests must not change it."""
    name, settings = settings_of(kind)
    return models.create(name, rngs=nnx.Rngs(0), **settings)
