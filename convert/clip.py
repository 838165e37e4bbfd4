"""CLIP as Hugging Face's transformers, 4 and 5, writes it: `config.json` and key table."""

from convert.errors import ConversionError, show
from convert.fields import Fields
from convert.table import CONVOLUTION, FLAT, LINEAR, MERGE_HEADS, SAME, SPLIT_HEADS, Row, Table
from models.clip import CLIPConfig, TextConfig, VisionConfig
from models.vit import ACTIVATIONS, EncoderConfig

MODEL_TYPE = "clip"
REFUSED = {
    "clip_vision_model": "the vision tower alone; convert the whole CLIPModel",
    "clip_text_model": "the text tower alone; convert the whole CLIPModel",
}

# The documented defaults of CLIPConfig, CLIPTextConfig and CLIPVisionConfig: a config.json leaves
# out what equals them, which fields depends on the version that wrote it.
_DEFAULTS = {"projection_dim": 512}
_TEXT_DEFAULTS = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
_VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}

_ARGMAX_EOS = 2  # checkpoints with this id were trained to pool at the largest id

_BLOCK = (
    ("layer_norm1.weight", "norm1.scale", SAME),
    ("layer_norm1.bias", "norm1.bias", SAME),
    ("self_attn.q_proj.weight", "attention.query.kernel", SPLIT_HEADS),
    ("self_attn.q_proj.bias", "attention.query.bias", FLAT),
    ("self_attn.k_proj.weight", "attention.key.kernel", SPLIT_HEADS),
    ("self_attn.k_proj.bias", "attention.key.bias", FLAT),
    ("self_attn.v_proj.weight", "attention.value.kernel", SPLIT_HEADS),
    ("self_attn.v_proj.bias", "attention.value.bias", FLAT),
    ("self_attn.out_proj.weight", "attention.out.kernel", MERGE_HEADS),
    ("self_attn.out_proj.bias", "attention.out.bias", SAME),
    ("layer_norm2.weight", "norm2.scale", SAME),
    ("layer_norm2.bias", "norm2.bias", SAME),
    ("mlp.fc1.weight", "mlp.fc1.kernel", LINEAR),
    ("mlp.fc1.bias", "mlp.fc1.bias", SAME),
    ("mlp.fc2.weight", "mlp.fc2.kernel", LINEAR),
    ("mlp.fc2.bias", "mlp.fc2.bias", SAME),
)
_REST = (
    ("logit_scale", "logit_scale", SAME),
    ("visual_projection.weight", "vision_projection.kernel", LINEAR),
    ("text_projection.weight", "text_projection.kernel", LINEAR),
    ("vision_model.embeddings.class_embedding", "vision.class_token", SAME),
    (
        "vision_model.embeddings.patch_embedding.weight",
        "vision.patch_embedding.conv.kernel",
        CONVOLUTION,
    ),
    ("vision_model.embeddings.position_embedding.weight", "vision.positions", SAME),
    ("vision_model.pre_layrnorm.weight", "vision.pre_norm.scale", SAME),  # sic
    ("vision_model.pre_layrnorm.bias", "vision.pre_norm.bias", SAME),
    ("vision_model.post_layernorm.weight", "vision.post_norm.scale", SAME),
    ("vision_model.post_layernorm.bias", "vision.post_norm.bias", SAME),
    ("text_model.embeddings.token_embedding.weight", "text.token_embedding.embedding", SAME),
    ("text_model.embeddings.position_embedding.weight", "text.positions", SAME),
    ("text_model.final_layer_norm.weight", "text.final_norm.scale", SAME),
    ("text_model.final_layer_norm.bias", "text.final_norm.bias", SAME),
)
_IGNORED = {
    f"{tower}.embeddings.position_ids": "a buffer of older versions: 0, 1, 2, …, not a weight"
    for tower in ("vision_model", "text_model")
}


def tables(config: CLIPConfig) -> tuple[Table, ...]:
    """The key layouts; a whole CLIPModel has one in transformers 4 (4.51.3) and 5 (5.23.0)."""
    towers = (("vision_model", "vision", config.vision), ("text_model", "text", config.text))
    blocks = [
        Row(f"{source}.encoder.layers.{i}.{key}", f"{target}.encoder.blocks.{i}.{leaf}", transform)
        for source, target, tower in towers
        for i in range(tower.encoder.depth)
        for key, leaf, transform in _BLOCK
    ]
    return (Table((*(Row(*row) for row in _REST), *blocks), _IGNORED),)


def parse_config(values: dict) -> CLIPConfig:
    """The config of a CLIPModel from its `config.json`.

    Raises:
      ConversionError: a value that is not of its type, or that the model does not support.
    """
    text = _section(values, "text", _TEXT_DEFAULTS)
    vision = _section(values, "vision", _VISION_DEFAULTS)
    if (channels := vision.size("num_channels")) != 3:
        raise ConversionError(f"{vision.name}.num_channels must be 3, got {channels}")
    eos_token_id = text.integer("eos_token_id")
    return CLIPConfig(
        VisionConfig(vision.size("image_size"), vision.size("patch_size"), _encoder(vision)),
        TextConfig(
            text.size("vocab_size"),
            text.size("max_position_embeddings"),
            None if eos_token_id == _ARGMAX_EOS else eos_token_id,
            _encoder(text),
        ),
        Fields("config.json", values, _DEFAULTS).size("projection_dim"),
    )


def _section(values, tower, defaults):
    # Where a file holds both, transformers takes `text_config_dict` and defaults for the rest.
    for key in (f"{tower}_config_dict", f"{tower}_config"):
        if (section := values.get(key)) is not None:
            if not isinstance(section, dict):
                raise ConversionError(f"{key} must be an object, got {show(section)}")
            return Fields(key, section, defaults)
    return Fields(f"{tower}_config", {}, defaults)


def _encoder(section):
    return EncoderConfig(
        section.size("hidden_size"),
        section.depth("num_hidden_layers"),
        section.size("num_attention_heads"),
        section.size("intermediate_size"),
        section.choice("hidden_act", ACTIVATIONS),
        section.epsilon("layer_norm_eps"),
    )
