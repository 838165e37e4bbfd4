"""The published LLaVAs by name."""

import dataclasses

from .configs import EncoderConfig
from .decoder import VARIANTS as DECODERS
from .llava import LLaVAConfig, LLaVAVisionConfig

_CLIP = LLaVAVisionConfig(  # ViT-L/14 at 336 pixels, but for the last of its 24 blocks
    336, 14, "bicubic", EncoderConfig(1024, 23, 16, 4096, "quick_gelu", 1e-5), tower="clip"
)
_SIGLIP = LLaVAVisionConfig(  # So400m/14 at 384 pixels, but for the last of its 27 blocks
    384, 14, "bicubic", EncoderConfig(1152, 26, 16, 4304, "gelu_pytorch_tanh", 1e-6), tower="siglip"
)
_NEXT = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
_SIDES = range(384, 2305, 384)
_ONEVISION = tuple((height, width) for height in _SIDES for width in _SIDES)

_VICUNA_7B = dataclasses.replace(DECODERS["vicuna-7b-v1.5"], vocab_size=32064)
_VICUNA_13B = dataclasses.replace(
    _VICUNA_7B, width=5120, depth=40, num_heads=40, num_kv_heads=40, mlp_dim=13824
)
_MISTRAL_7B = dataclasses.replace(DECODERS["mistral-7b-v0.2"], vocab_size=32064)
_QWEN2 = dataclasses.replace(DECODERS["qwen2-0.5b"], vocab_size=152000, max_positions=32768)


def _with_clip(decoder, **tiles):
    return LLaVAConfig(_CLIP, decoder, 32000, "gelu", True, **tiles)


def _with_siglip(decoder, **tiles):
    return LLaVAConfig(_SIGLIP, decoder, 151646, "gelu", True, **tiles)


VARIANTS = {
    "llava-1.6-vicuna-7b": _with_clip(_VICUNA_7B, resolutions=_NEXT),
    "llava-1.6-vicuna-13b": _with_clip(_VICUNA_13B, resolutions=_NEXT),
    "llava-1.6-mistral-7b": _with_clip(_MISTRAL_7B, resolutions=_NEXT),
    "llava-1.5-7b": _with_clip(_VICUNA_7B),
    "llava-1.5-13b": _with_clip(_VICUNA_13B),
    "llava-onevision-qwen2-0.5b": _with_siglip(
        _QWEN2, resolutions=_ONEVISION, most_tiles=9, tile_one_only=True, video_token_id=151647
    ),
    "llava-interleave-qwen-0.5b": _with_siglip(_QWEN2),
}
