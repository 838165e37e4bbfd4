"""Published sizes as open_clip's `open_clip_config.json` tells them, beside random weights."""

import math

from benchmarks import published_timm
from convert import timm_siglip


def clip(config) -> dict:
    """Of a CLIPConfig."""
    vision = config.vision.encoder
    vision_cfg = {
        "image_size": config.vision.image_size,
        "patch_size": config.vision.patch_size,
        "layers": vision.depth,
        "width": vision.width,
        "head_width": vision.width // vision.num_heads,
        # As open_clip's own configs: int(width · ratio) is the width of the MLP.
        "mlp_ratio": math.ceil(1e4 * vision.mlp_dim / vision.width) / 1e4,
    }
    model_cfg = {
        "embed_dim": config.projection_dim,
        "quick_gelu": vision.activation == "quick_gelu",
        "vision_cfg": vision_cfg,
        "text_cfg": _text(config.text),
    }
    return {"model_cfg": model_cfg, "preprocess_cfg": {}}


def siglip(config) -> dict:
    """Of a SigLIPConfig."""
    vision, text = config.vision, config.text
    return {
        "model_cfg": {
            "embed_dim": vision.encoder.width,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": {
                "image_size": vision.image_size,
                "timm_model_name": published_timm.siglip(vision)["architecture"],
                "timm_model_pretrained": False,
                "timm_pool": "map",
                "timm_proj": "none",
            },
            "text_cfg": _text(text)
            | {
                "mlp_ratio": text.encoder.mlp_dim / text.encoder.width,
                "tokenizer_kwargs": {"clean": "canonicalize"},
                "no_causal_mask": True,
                "proj_bias": True,
                "pool_type": "last",
                "norm_kwargs": {"eps": text.encoder.layer_norm_epsilon},
                "act_kwargs": {"approximate": "tanh"},
            },
        },
        "preprocess_cfg": {},
    }


def has_siglip(config) -> bool:
    """Whether open_clip has this SigLIP: of a size that timm names, and with projected texts."""
    encoder = config.vision.encoder
    named = timm_siglip.published(published_timm.siglip(config.vision)["architecture"]).encoder
    of_many_languages = config.text.vocab_size == 250_000 and encoder.width == 1152
    return encoder.depth == named.depth and not of_many_languages


def _text(text):
    encoder = text.encoder
    return {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": encoder.width,
        "heads": encoder.num_heads,
        "layers": encoder.depth,
    }
