"""SigLIP and SigLIP 2, NaFlex too, as Hugging Face's transformers writes them."""

import dataclasses
import math

from convert.errors import ConversionError
from convert.fields import Fields
from convert.layout import Layout, Parsed, of_model_type
from convert.rows import fused_qkv, two_towers, vision_tower
from convert.table import BATCHED, FLAT, LINEAR, MERGE_HEADS, SAME, Table, Transform
from models.naflex import RULE as NAFLEX_RULE
from models.siglip import SigLIPConfig, SigLIPVisionConfig
from models.siglip_vision import SigLIPVisionModelConfig
from models.text import TextConfig

_REFUSED = {
    "siglip_text_model": "the text tower alone; convert the whole SiglipModel",
}

# The documented defaults of SiglipTextConfig and SiglipVisionConfig.
_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_TEXT_DEFAULTS = _DEFAULTS | {"vocab_size": 32000, "max_position_embeddings": 64}
VISION_DEFAULTS = _DEFAULTS | {"image_size": 224, "patch_size": 16}
_NAFLEX = "siglip2"  # model_type; SigLIP 2 of a fixed resolution is "siglip"
_NAFLEX_DEFAULTS = _DEFAULTS | {"num_patches": 256, "patch_size": 16}

# [O, height · width · 3] → [height, width, 3, O]: NaFlex makes patches before it embeds them.
_LINEAR_PATCHES = Transform(
    lambda leaf: (leaf[3], math.prod(leaf[:3])), lambda x, leaf: x.T.reshape(leaf)
)

_POOLING = "vision_model.head"
_REST = (
    ("logit_scale", "logit_scale", FLAT),  # [1] in the file
    ("logit_bias", "logit_bias", FLAT),
    ("vision_model.embeddings.patch_embedding.bias", "vision.patch_embedding.conv.bias", SAME),
    (f"{_POOLING}.probe", "vision.pooling.probe", BATCHED),
    *fused_qkv(f"{_POOLING}.attention.in_proj_", "vision.pooling.attention"),
    (f"{_POOLING}.attention.out_proj.weight", "vision.pooling.attention.out.kernel", MERGE_HEADS),
    (f"{_POOLING}.attention.out_proj.bias", "vision.pooling.attention.out.bias", SAME),
    (f"{_POOLING}.layernorm.weight", "vision.pooling.norm.scale", SAME),
    (f"{_POOLING}.layernorm.bias", "vision.pooling.norm.bias", SAME),
    (f"{_POOLING}.mlp.fc1.weight", "vision.pooling.mlp.fc1.kernel", LINEAR),
    (f"{_POOLING}.mlp.fc1.bias", "vision.pooling.mlp.fc1.bias", SAME),
    (f"{_POOLING}.mlp.fc2.weight", "vision.pooling.mlp.fc2.kernel", LINEAR),
    (f"{_POOLING}.mlp.fc2.bias", "vision.pooling.mlp.fc2.bias", SAME),
    ("text_model.head.weight", "text_projection.kernel", LINEAR),
    ("text_model.head.bias", "text_projection.bias", SAME),
)
POOLING_TENSORS = tuple(dict.fromkeys(name for name, *_ in _REST if name.startswith(_POOLING)))


def tables(config: SigLIPConfig) -> tuple[Table, ...]:
    """The key layout of a whole SiglipModel or Siglip2Model."""
    table = two_towers(_REST, config)
    if config.vision.position_resize != NAFLEX_RULE:
        return (table,)
    return (dataclasses.replace(table, rows=tuple(map(_of_naflex, table.rows))),)


def _of_naflex(row):
    """A row of SigLIP's table, in NaFlex's."""
    kernel = row.target == "vision.patch_embedding.conv.kernel"
    return dataclasses.replace(row, transform=_LINEAR_PATCHES) if kernel else row


def vision_tables(config: SigLIPVisionModelConfig) -> tuple[Table, ...]:
    """The key layouts of a SiglipVisionModel: of transformers 4, and of 5."""
    return tuple(vision_tower(_REST, config.encoder, prefix) for prefix in ("vision_model.", ""))


def parse_config(values: dict) -> Parsed:
    """The config of a SiglipModel or a Siglip2Model from its `config.json`.

    Raises:
      ConversionError: a value that is not of its type, or that the model does not support.
    """
    whole = Fields("config.json", values, {})
    whole.ignore("logit_scale_init_value", "projection_dim")  # of early files; not used
    text = whole.section("text_config", _TEXT_DEFAULTS)
    naflex = values.get("model_type") == _NAFLEX
    vision = whole.section("vision_config", _NAFLEX_DEFAULTS if naflex else VISION_DEFAULTS)
    config = SigLIPConfig(
        SigLIPVisionConfig(*(_naflex(vision) if naflex else _vision(vision))),
        TextConfig(text.size("vocab_size"), text.size("max_position_embeddings"), text.encoder()),
    )
    projected = text.size("projection_size" if "projection_size" in text.values else "hidden_size")
    if projected != config.vision.encoder.width:
        raise ConversionError(
            f"texts are projected to {projected}, but images embedded in "
            f"{config.vision.encoder.width}: text_config.projection_size must be "
            "vision_config.hidden_size"
        )
    return Parsed(config, [*whole.unknown(), *text.unknown(), *vision.unknown()])


def parse_vision(values: dict) -> Parsed:
    """The config of a SiglipVisionModel from its `config.json`; errors as for `parse_config`."""
    fields = Fields("config.json", values, VISION_DEFAULTS)
    config = SigLIPVisionModelConfig(*_vision(fields))
    return Parsed(config, fields.unknown())


def _vision(fields):
    fields.fix(num_channels=3, vision_use_head=True)
    return fields.side("image_size"), fields.side("patch_size"), "bicubic", fields.encoder()


def _naflex(fields):
    """The same of NaFlex, whose image size is that of the learned positions' grid."""
    fields.fix(num_channels=3, vision_use_head=True)
    count, patch_size = fields.size("num_patches"), fields.side("patch_size")
    if math.isqrt(count) ** 2 != count:
        raise ConversionError(f"{fields.name}.num_patches must be of a square, got {count}")
    return math.isqrt(count) * patch_size, patch_size, NAFLEX_RULE, fields.encoder()


def _is_whole(names):
    return "vision_model.head.probe" in names and "logit_scale" in names


LAYOUT = Layout(
    family="siglip",
    library="transformers",
    describes=of_model_type("siglip", _NAFLEX),
    has_keys=_is_whole,
    parse=lambda source: parse_config(source.config),
    tables=tables,
    refused=_REFUSED,
)
VISION_LAYOUT = Layout(
    family="siglip_vision",
    library="transformers",
    describes=of_model_type("siglip_vision_model"),
    has_keys=lambda names: (
        not _is_whole(names)
        and any(f"{prefix}head.probe" in names for prefix in ("", "vision_model."))
    ),
    parse=lambda source: parse_vision(source.config),
    tables=vision_tables,
)
