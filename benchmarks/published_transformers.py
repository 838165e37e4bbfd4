"""Published sizes as transformers' `config.json` tells them, beside random weights."""

import math

from convert import qwen_vision as qwen_vision_layout
from models.configs import position_grid
from models.inputs.qwen_images import FRAMES
from models.naflex import RULE as NAFLEX


def _encoder(encoder):
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


def clip(config) -> dict:
    """Of a CLIPConfig."""
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.projection_dim,
        "text_config": _text(config.text) | {"eos_token_id": 2},
        "vision_config": _encoder(config.vision.encoder) | _image(config.vision),
    }


def decoder(config) -> dict:
    """Of a DecoderConfig."""
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


def dinov2(config) -> dict:
    """Of a DINOv2Config."""
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


def dinov3(config) -> dict:
    """Of a DINOv3Config."""
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


def qwen_vision(config) -> dict:
    """Of a QwenVisionConfig."""
    encoder = config.encoder
    return {
        "architectures": ["Qwen3VLVisionModel"],
        "model_type": qwen_vision_layout.TOWER,
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


def qwen_vl(config) -> dict:
    """Of a QwenVLConfig."""
    language = config.decoder
    rope = {"rope_type": "default", "mrope_interleaved": True}
    text = decoder(language) | {
        "model_type": "qwen3_vl_text",
        "rope_parameters": rope
        | {"rope_theta": language.rope_theta, "mrope_section": list(language.rope_sections)},
    }
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": qwen_vision_layout.WHOLE,
        "image_token_id": config.image_token_id,
        "video_token_id": config.video_token_id,
        "tie_word_embeddings": language.tied_head,
        "text_config": text,
        "vision_config": qwen_vision(config.vision),
    }


def siglip(config) -> dict:
    """Of a SigLIPConfig, NaFlex or not."""
    if config.vision.position_resize == NAFLEX:
        return _naflex(config)
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "text_config": _text(config.text) | {"projection_size": config.vision.encoder.width},
        "vision_config": _encoder(config.vision.encoder) | _image(config.vision),
    }


def siglip_vision(config) -> dict:
    """Of SigLIP's vision tower."""
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


def llava(config) -> dict:
    """Of a LLaVAConfig, with a tower that ends with the block that is read."""
    values = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": config.image_token_id,
        "multimodal_projector_bias": config.projector_bias,
        "projector_hidden_act": config.projector_activation,
        "text_config": decoder(config.decoder),
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


def vjepa2(config) -> dict:
    """Of a VJEPA2Config."""
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


def vit(config) -> dict:
    """Of a ViTConfig."""
    values = _encoder(config.encoder) | _image(config)
    if not config.num_classes:
        return values | {"architectures": ["ViTMAEModel"], "model_type": "vit_mae"}
    architecture = "ViTForImageClassification"
    labels = {"num_labels": config.num_classes}
    return values | {"architectures": [architecture], "model_type": "vit"} | labels
