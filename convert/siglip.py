"""SigLIP and SigLIP 2, NaFlex too, as Hugging Face's transformers writes them."""

import dataclasses
import math

from convert.errors import ConversionError
from convert.fields import Fields
from convert.layout import Layout, Parsed, of_model_type
from convert.rows import fused_qkv, two_towers
from convert.table import BATCHED, FLAT, LINEAR, MERGE_HEADS, SAME, Table, Transform
from models.naflex import RULE as NAFLEX_RULE
from models.siglip import SigLIPConfig, SigLIPVisionConfig
from models.text import TextConfig

_REFUSED = {
    "siglip_vision_model": "the vision tower alone; convert the whole SiglipModel",
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
    vision.fix(num_channels=3, vision_use_head=True)
    patch_size = vision.side("patch_size")
    image_size = _naflex_side(vision) * patch_size if naflex else vision.side("image_size")
    rule = NAFLEX_RULE if naflex else "bicubic"
    config = SigLIPConfig(
        SigLIPVisionConfig(image_size, patch_size, rule, vision.encoder()),
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


def _naflex_side(vision):
    """Patches down and across of the learned positions."""
    count = vision.size("num_patches")
    if math.isqrt(count) ** 2 != count:
        raise ConversionError(f"{vision.name}.num_patches must be of a square, got {count}")
    return math.isqrt(count)


LAYOUT = Layout(
    family="siglip",
    library="transformers",
    describes=of_model_type("siglip", _NAFLEX),
    has_keys=lambda names: "vision_model.head.probe" in names,
    parse=lambda source: parse_config(source.config),
    tables=tables,
    refused=_REFUSED,
)
