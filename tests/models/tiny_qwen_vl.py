"""A tiny Qwen3-VL: squares of 2 × 2 patches of 8 pixels, and a deep-stack merger."""

import functools

from flax import nnx

import models
from models import registry
from tests.models import tiny_decoders

SIDE = 16  # pixels of a square
IMAGE, VIDEO = 9, 10  # the tokens
ENCODER = {"width": 32, "depth": 2, "num_heads": 2, "mlp_dim": 24}
VISION = {"image_size": 32, "patch_size": 8, "out_width": 24, "deepstack": (0,), "encoder": ENCODER}
DECODER = tiny_decoders.SIZES | {
    "vocab_size": 31,
    "width": 24,
    "head_dim": 8,
    "max_positions": 100,
    "rope_theta": 100.0,
    "rope_sections": (2, 1, 1),
}
SETTINGS = (
    "qwen3-vl-2b",
    {"vision": VISION, "decoder": DECODER, "image_token_id": IMAGE, "video_token_id": VIDEO},
)


def config():
    """Of the tiny model."""
    name, settings = SETTINGS
    return registry.override(registry.FAMILIES["qwen3_vl"].variants[name], settings)


@functools.cache
def tiny_qwen_vl():
    """A random one. Tests must not change it."""
    name, settings = SETTINGS
    return models.create(name, rngs=nnx.Rngs(0), **settings)
