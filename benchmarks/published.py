"""Checkpoints of published sizes with random weights, in the files of their original libraries."""

import json
import math
import typing
import zlib

import ml_dtypes
import numpy as np
import safetensors.numpy
from flax import nnx, traverse_util

import models.registry
from benchmarks import published_open_clip, published_timm, published_transformers
from convert import (
    clip,
    dinov2,
    dinov3,
    hf_decoder,
    hf_vit,
    llava,
    npz_siglip,
    npz_vit,
    open_clip,
    open_clip_siglip,
    qwen_vision,
    qwen_vl,
    siglip,
    timm_dinov2,
    timm_dinov3,
    timm_siglip,
    timm_vit,
    vjepa2,
)
from convert.layout import Layout
from models.clip import CLIPConfig
from models.decoder import DecoderConfig
from models.dinov2 import DINOv2Config
from models.dinov3 import DINOv3Config
from models.llava import LLaVAConfig
from models.naflex import RULE as NAFLEX
from models.plain_vit import ViTConfig
from models.qwen_vision import QwenVisionConfig
from models.qwen_vl import QwenVLConfig
from models.siglip import SigLIPConfig
from models.siglip_vision import SigLIPVisionModelConfig
from models.vjepa2 import VJEPA2Config


def layouts_of(config) -> list[tuple[Layout, dict]]:
    """The layouts in which an installed library reads a model, with its config in each."""
    match config:
        case CLIPConfig() if config.vision.position_resize == "bicubic":
            return [(clip.LAYOUT, published_transformers.clip(config))]
        case CLIPConfig():
            return [(open_clip.LAYOUT, published_open_clip.clip(config))]
        case DecoderConfig():
            return [(hf_decoder.LAYOUT, published_transformers.decoder(config))]
        case DINOv2Config():
            return [
                (dinov2.LAYOUT, published_transformers.dinov2(config)),
                (timm_dinov2.LAYOUT, published_timm.dinov2(config)),
            ]
        case DINOv3Config():
            return [
                (dinov3.LAYOUT, published_transformers.dinov3(config)),
                (timm_dinov3.LAYOUT, published_timm.dinov3(config)),
            ]
        case LLaVAConfig():
            return [(llava.LAYOUT, published_transformers.llava(config))]
        case QwenVisionConfig():
            return [(qwen_vision.LAYOUT, published_transformers.qwen_vision(config))]
        case QwenVLConfig():
            return [(qwen_vl.LAYOUT, published_transformers.qwen_vl(config))]
        case SigLIPConfig():
            of_open_clip = open_clip_siglip.LAYOUT, published_open_clip.siglip(config)
            return [
                (siglip.LAYOUT, published_transformers.siglip(config)),
                *[of_open_clip] * published_open_clip.has_siglip(config),
            ]
        case SigLIPVisionModelConfig():
            of_timm = timm_siglip.LAYOUT, published_timm.siglip(config)
            return [(siglip.VISION_LAYOUT, published_transformers.siglip_vision(config)), of_timm]
        case VJEPA2Config():
            return [(vjepa2.LAYOUT, published_transformers.vjepa2(config))]
        case ViTConfig():
            return [
                (timm_vit.LAYOUT, published_timm.vit(config)),
                (hf_vit.LAYOUT, published_transformers.vit(config)),
            ]


def npz_of(config) -> list[tuple[Layout, typing.Any]]:
    """The layout of a model in Google's `.npz`, with its config as their code computes it."""
    google = {"position_resize": "bilinear_corners"}
    match config:
        case ViTConfig() if config.num_classes:
            google |= {"encoder": {"activation": "gelu_pytorch_tanh"}}
            return [(npz_vit.LAYOUT, models.registry.override(config, google))]
        case SigLIPConfig() if config.vision.position_resize != NAFLEX:
            return [(npz_siglip.LAYOUT, models.registry.override(config, {"vision": google}))]
    return []


def write_random_checkpoint(folder, layout: Layout, config, values=None, *, dtype="float32"):
    """Writes weights, and `values` as their config, under the names of the library.

    Args:
      folder: a new directory.
      layout: of the files.
      config: of the model.
      values: the config in this layout; None for a layout that has none.
      dtype: of the file.

    Returns:
      The file of weights.
    """
    folder.mkdir(parents=True)
    prefix = "open_clip_" if layout.library == "open_clip" else ""
    if values is not None:
        (folder / f"{prefix}config.json").write_text(json.dumps(values, indent=2))
    arrays = random_tensors(layout, config, dtype)
    if layout in (npz_siglip.LAYOUT, npz_vit.LAYOUT):
        np.savez(folder / "model.npz", **arrays)
        return folder / "model.npz"
    file = folder / f"{prefix}model.safetensors"
    safetensors.numpy.save_file(arrays, file)
    return file


def random_tensors(layout: Layout, config, dtype="float32") -> dict[str, np.ndarray]:
    """Weights by the first of the layout's key tables, of about the scale of trained ones."""
    family = models.registry.FAMILIES[layout.family]
    state = nnx.to_pure_dict(nnx.state(models.registry.abstract_model(family.model, config)))
    leaves = {".".join(map(str, path)): x for path, x in traverse_util.flatten_dict(state).items()}
    numpy_dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    arrays = {}
    for row in layout.tables(config)[0].rows:
        shape = row.transform.source_shape(leaves[row.target].shape)
        if row.source not in arrays:
            arrays[row.source] = _random(row.source, shape).astype(numpy_dtype)
    return arrays


def _random(name, shape):
    """Fan-in scaled kernels; scales near one, or near a fifth where they scale a whole branch."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    value = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
        return value / np.float32(math.sqrt(math.prod(shape[1:])))
    is_branch = any(word in name for word in ("_scale", "gamma", "lambda"))  # LayerScale, logits
    centre = 0.0 if name.endswith("bias") else 0.2 if is_branch else 1.0
    return np.asarray(0.1 * value + centre, np.float32)
