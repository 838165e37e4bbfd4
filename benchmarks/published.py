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
from benchmarks import published_open_clip, published_timm
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
from models.configs import EncoderConfig, position_grid
from models.decoder import DecoderConfig
from models.dinov2 import DINOv2Config
from models.dinov3 import DINOv3Config
from models.llava import LLaVAConfig
from models.naflex import RULE as NAFLEX
from models.plain_vit import ViTConfig
from models.qwen_images import FRAMES
from models.qwen_vision import QwenVisionConfig
from models.qwen_vl import QwenVLConfig
from models.siglip import SigLIPConfig
from models.siglip_vision import SigLIPVisionModelConfig
from models.vjepa2 import VJEPA2Config


def layouts_of(config) -> list[tuple[Layout, dict]]:
    """The layouts in which an installed library reads a model, with its config in each."""
    match config:
        case CLIPConfig() if config.vision.position_resize == "bicubic":
            return [(clip.LAYOUT, _clip(config))]
        case CLIPConfig():
            return [(open_clip.LAYOUT, published_open_clip.clip(config))]
        case DecoderConfig():
            return [(hf_decoder.LAYOUT, _decoder(config))]
        case DINOv2Config():
            return [
                (dinov2.LAYOUT, _dinov2(config)),
                (timm_dinov2.LAYOUT, published_timm.dinov2(config)),
            ]
        case DINOv3Config():
            return [
                (dinov3.LAYOUT, _dinov3(config)),
                (timm_dinov3.LAYOUT, published_timm.dinov3(config)),
            ]
        case LLaVAConfig():
            return [(llava.LAYOUT, _llava(config))]
        case QwenVisionConfig():
            return [(qwen_vision.LAYOUT, _qwen_vision(config))]
        case QwenVLConfig():
            return [(qwen_vl.LAYOUT, _qwen_vl(config))]
        case SigLIPConfig():
            of_open_clip = open_clip_siglip.LAYOUT, published_open_clip.siglip(config)
            return [
                (siglip.LAYOUT, _siglip(config)),
                *[of_open_clip] * published_open_clip.has_siglip(config),
            ]
        case SigLIPVisionModelConfig():
            of_timm = timm_siglip.LAYOUT, published_timm.siglip(config)
            return [(siglip.VISION_LAYOUT, _siglip_vision(config)), of_timm]
        case VJEPA2Config():
            return [(vjepa2.LAYOUT, _vjepa2(config))]
        case ViTConfig():
            return [(timm_vit.LAYOUT, published_timm.vit(config)), (hf_vit.LAYOUT, _hf_vit(config))]


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


def _encoder(encoder: EncoderConfig):
    return {
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": encoder.mlp_dim,
        "hidden_act": encoder.activation,
        "layer_norm_eps": encoder.layer_norm_epsilon,
    }


def _image(config):
    return {"image_size": config.image_size, "patch_size": config.patch_size}


def _text(config):
    return _encoder(config.encoder) | {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
    }


def _clip(config):
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.projection_dim,
        "text_config": _text(config.text) | {"eos_token_id": 2},
        "vision_config": _encoder(config.vision.encoder) | _image(config.vision),
    }


def _decoder(config):
    grouped = config.num_kv_heads < config.num_heads
    of_type = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    model_type = "mistral" if grouped else "llama"
    model_type = "qwen2" if config.qkv_bias else "qwen3" if config.qk_norm else model_type
    return {
        "architectures": [f"{of_type[model_type]}ForCausalLM"],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": config.activation,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "sliding_window": config.sliding_window,
        "tie_word_embeddings": config.tied_head,
    }


def _dinov2(config):
    encoder = config.encoder
    values = _encoder(encoder) | _image(config)
    del values["intermediate_size"]
    values |= {"mlp_ratio": 4, "use_swiglu_ffn": encoder.gated_mlp, "hidden_act": "gelu"}
    if config.num_registers:
        return values | {
            "architectures": ["Dinov2WithRegistersModel"],
            "model_type": "dinov2_with_registers",
            "num_register_tokens": config.num_registers,
        }
    return values | {"architectures": ["Dinov2Model"], "model_type": "dinov2"}


def _dinov3(config):
    biases = {f"{x}_bias": x[0] in config.encoder.biases for x in ("query", "key", "value")}
    return {
        "architectures": ["DINOv3ViTModel"],
        "model_type": "dinov3_vit",
        "use_gated_mlp": config.encoder.gated_mlp,
        "num_register_tokens": config.num_registers,
        "rope_theta": config.rope_theta,
        **_encoder(config.encoder),
        **_image(config),
        **biases,
    }


def _qwen_vision(config):
    encoder = config.encoder
    return {
        "architectures": ["Qwen3VLVisionModel"],
        "model_type": qwen_vision.TOWER,
        "depth": encoder.depth,
        "hidden_size": encoder.width,
        "num_heads": encoder.num_heads,
        "intermediate_size": encoder.mlp_dim,
        "hidden_act": encoder.activation,
        "patch_size": config.patch_size,
        "temporal_patch_size": FRAMES,
        "spatial_merge_size": config.merge_size,
        "num_position_embeddings": math.prod(position_grid(config)),
        "out_hidden_size": config.out_width,
        "deepstack_visual_indexes": list(config.deepstack),
        "rope_parameters": {"rope_type": "axial", "rope_theta": config.rope_theta},
    }


def _qwen_vl(config):
    decoder = config.decoder
    rope = {"rope_type": "default", "mrope_interleaved": True}
    text = _decoder(decoder) | {
        "model_type": "qwen3_vl_text",
        "rope_parameters": rope
        | {"rope_theta": decoder.rope_theta, "mrope_section": list(decoder.rope_sections)},
    }
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": qwen_vision.WHOLE,
        "image_token_id": config.image_token_id,
        "video_token_id": config.video_token_id,
        "tie_word_embeddings": decoder.tied_head,
        "text_config": text,
        "vision_config": _qwen_vision(config.vision),
    }


def _siglip(config):
    if config.vision.position_resize == NAFLEX:
        return _naflex(config)
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "text_config": _text(config.text) | {"projection_size": config.vision.encoder.width},
        "vision_config": _encoder(config.vision.encoder) | _image(config.vision),
    }


def _siglip_vision(config):
    tower = {"architectures": ["SiglipVisionModel"], "model_type": "siglip_vision_model"}
    return tower | _encoder(config.encoder) | _image(config)


def _naflex(config):
    vision = _encoder(config.vision.encoder) | {"patch_size": config.vision.patch_size}
    return {
        "architectures": ["Siglip2Model"],
        "model_type": "siglip2",
        "text_config": _text(config.text) | {"projection_size": config.vision.encoder.width},
        "vision_config": vision | {"num_patches": math.prod(position_grid(config.vision))},
    }


def _llava(config):
    """With a tower that ends with the block that is read."""
    values = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": config.image_token_id,
        "multimodal_projector_bias": config.projector_bias,
        "projector_hidden_act": config.projector_activation,
        "text_config": _decoder(config.decoder),
        "vision_config": _encoder(config.vision.encoder)
        | _image(config.vision)
        | {"model_type": f"{config.vision.tower}_vision_model", "vision_use_head": False},
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default" if config.vision.tower == "clip" else "full",
    }
    if config.resolutions:
        kind = "next" if config.most_tiles is None else "onevision"
        values |= {
            "architectures": [f"Llava{kind.title()}ForConditionalGeneration"],
            "model_type": f"llava_{kind}",
            "image_grid_pinpoints": [list(pair) for pair in config.resolutions],
        }
        if config.most_tiles:
            values["vision_aspect_ratio"] = f"anyres_max_{config.most_tiles}"
            values["video_token_index"] = config.video_token_id
    return values


def _vjepa2(config):
    encoder = config.encoder
    values = _encoder(encoder) | {"model_type": "vjepa2"}
    del values["intermediate_size"]
    return values | {
        "architectures": [f"VJEPA2{'ForVideoClassification' if config.num_classes else 'Model'}"],
        "mlp_ratio": encoder.mlp_dim / encoder.width,
        "patch_size": config.patch_size,
        "tubelet_size": FRAMES,
        "crop_size": config.image_size,
        "frames_per_clip": config.num_frames,
        "num_pooler_layers": config.pooler_depth,
        "pred_num_hidden_layers": 1,  # which nothing here reads
        "num_labels": config.num_classes,
    }


def _hf_vit(config):
    values = _encoder(config.encoder) | _image(config)
    if not config.num_classes:
        return values | {"architectures": ["ViTMAEModel"], "model_type": "vit_mae"}
    architecture = "ViTForImageClassification"
    labels = {"num_labels": config.num_classes}
    return values | {"architectures": [architecture], "model_type": "vit"} | labels


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
