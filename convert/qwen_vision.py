"""Qwen3-VL's vision tower as Hugging Face's transformers writes it: alone, or out of its model."""

import math

from convert.errors import ConversionError, show
from convert.fields import LARGEST_DEPTH, Fields
from convert.layout import Layout, Parsed, of_model_type
from convert.rows import TIMM_NORMS_AND_ATTENTION, block_rows
from convert.table import LINEAR, SAME, Row, Table, Transform
from models.configs import EncoderConfig
from models.inputs.qwen_images import FRAMES
from models.qwen_vision import QwenVisionConfig

WHOLE, TOWER = "qwen3_vl", "qwen3_vl_vision"  # model_type
# Whole models as published, the model without its head, and the tower alone.
PREFIXES = ("model.visual.", "visual.", "")

# The documented defaults of Qwen3VLVisionConfig.
_DEFAULTS = {
    "depth": 27,
    "hidden_size": 1152,
    "hidden_act": "gelu_pytorch_tanh",
    "intermediate_size": 4304,
    "num_heads": 16,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "out_hidden_size": 3584,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [8, 16, 24],
    "rope_theta": 10000.0,
}
_EPSILON = 1e-6  # in the code of transformers
_OF_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
_NOT_READ = "of the language model: the tower alone is read"

FRAMES_CONVOLUTION = Transform(  # [O, 3, frames, height, width] → [height, width, frames · 3, O]
    lambda leaf: (leaf[3], leaf[2] // FRAMES, FRAMES, leaf[0], leaf[1]),
    lambda x, leaf: x.transpose(3, 4, 2, 1, 0).reshape(leaf),
)
_BLOCK = (
    *TIMM_NORMS_AND_ATTENTION,
    ("mlp.linear_fc1.weight", "mlp.fc1.kernel", LINEAR),
    ("mlp.linear_fc1.bias", "mlp.fc1.bias", SAME),
    ("mlp.linear_fc2.weight", "mlp.fc2.kernel", LINEAR),
    ("mlp.linear_fc2.bias", "mlp.fc2.bias", SAME),
)
_MERGER = (
    ("norm.weight", "norm.scale", SAME),
    ("norm.bias", "norm.bias", SAME),
    ("linear_fc1.weight", "fc1.kernel", LINEAR),
    ("linear_fc1.bias", "fc1.bias", SAME),
    ("linear_fc2.weight", "fc2.kernel", LINEAR),
    ("linear_fc2.bias", "fc2.bias", SAME),
)
_REST = (
    ("patch_embed.proj.weight", "patch_embedding.conv.kernel", FRAMES_CONVOLUTION),
    ("patch_embed.proj.bias", "patch_embedding.conv.bias", SAME),
    ("pos_embed.weight", "positions", SAME),
    *((f"merger.{name}", f"merger.{leaf}", how) for name, leaf, how in _MERGER),
)
# Of the language model, whose depth is nothing that the tower knows.
_LANGUAGE_BLOCK = (
    *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"self_attn.{name}_norm.weight" for name in "qk"),
    *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    *("input_layernorm.weight", "post_attention_layernorm.weight"),
)


def tables(config: QwenVisionConfig) -> tuple[Table, ...]:
    """The key layouts: of whole models as published, of those without a head, of the tower."""
    return tuple(_table(config, prefix) for prefix in PREFIXES)


def _table(config, prefix):
    rows = tower_rows(config, prefix)
    return Table(rows, _language_model(prefix.removesuffix("visual.")) if prefix else {})


def tower_rows(config, prefix, target="") -> tuple[Row, ...]:
    """The rows of a tower, whose tensors and leaves have names that begin so."""
    mergers = f"{prefix}deepstack_merger_list", f"{target}deepstack_mergers"
    blocks = f"{prefix}blocks", f"{target}encoder.blocks"
    return (
        *(Row(f"{prefix}{name}", f"{target}{leaf}", how) for name, leaf, how in _REST),
        *block_rows(*blocks, _BLOCK, config.encoder.depth),
        *block_rows(*mergers, _MERGER, len(config.deepstack)),
    )


def _language_model(prefix):
    """The tensors of the language model, which is not converted, and that."""
    names = [f"{prefix}language_model.{name}.weight" for name in ("embed_tokens", "norm")]
    names += [
        f"{prefix}language_model.layers.{i}.{name}"
        for i in range(LARGEST_DEPTH)
        for name in _LANGUAGE_BLOCK
    ]
    return dict.fromkeys([*names, "lm_head.weight"], _NOT_READ)


def vision_values(values: dict) -> dict:
    """Of a `config.json` the part for the tower, which may be all of it.

    Raises:
      ConversionError: a part that is not an object.
    """
    if values.get("model_type") == WHOLE or "vision_config" in values:
        return Fields("config.json", values, {}).section("vision_config", {}).values
    return values


def parse_config(values: dict) -> Parsed:
    """The config of the tower of a Qwen3-VL from its `config.json`, or from the whole model's.

    Raises:
      ConversionError: a value that is not of its type, or that the model does not support.
    """
    vision = vision_values(values)
    if vision is values:
        return parse_tower("config.json", values)
    whole = Fields("config.json", values, {})
    whole.ignore("text_config", "vision_config", "tie_word_embeddings", *_OF_TOKENS)
    parsed = parse_tower("vision_config", vision)
    return parsed._replace(unknown_fields=[*whole.unknown(), *parsed.unknown_fields])


def parse_tower(name, values: dict) -> Parsed:
    """The config of a tower from the object `name` of a config; errors as of `parse_config`."""
    fields = Fields(name, values, _DEFAULTS)
    fields.fix(in_channels=3, temporal_patch_size=FRAMES)
    patch_size = fields.side("patch_size")
    encoder = EncoderConfig(
        fields.size("hidden_size"),
        fields.depth("depth"),
        fields.size("num_heads"),
        fields.size("intermediate_size"),
        fields.activation("hidden_act"),
        _EPSILON,
    )
    config = QwenVisionConfig(
        _positions_along_a_side(fields) * patch_size,
        patch_size,
        encoder,
        fields.size("out_hidden_size"),
        _deepstack(fields),
        fields.size("spatial_merge_size"),
        _theta(fields),
    )
    return Parsed(config, fields.unknown())


def _positions_along_a_side(fields):
    count = fields.size("num_position_embeddings")
    if math.isqrt(count) ** 2 != count:
        raise ConversionError(
            f"{fields.name}.num_position_embeddings must be those of a square, got {count}"
        )
    return math.isqrt(count)


def _deepstack(fields):
    """Blocks; QwenVisionConfig checks that there are such."""
    fields.ignore("deepstack_visual_indexes")
    blocks = fields.values.get(
        "deepstack_visual_indexes", fields.defaults["deepstack_visual_indexes"]
    )
    if not isinstance(blocks, list) or any(type(block) is not int for block in blocks):
        raise ConversionError(
            f"{fields.name}.deepstack_visual_indexes must be a list of blocks, got {show(blocks)}"
        )
    return tuple(blocks)


def _theta(fields):
    """Of transformers 5's `rope_parameters`, or beside them as in earlier files."""
    theta = fields.number("rope_theta", least=1, most=1e9)
    rope = fields.section("rope_parameters", {"rope_theta": theta})
    rope.fix(rope_type="axial")
    theta = rope.number("rope_theta", least=1, most=1e9)
    rope.refuse_unknown()
    return float(theta)


def has_tower(names) -> bool:
    """Whether tensors of these names have a tower among them."""
    return any(f"{x}deepstack_merger_list.0.norm.weight" in names for x in PREFIXES)


def has_language_model(names) -> bool:
    """Whether tensors of these names have a whole model's embeddings of words among them."""
    return any(name.endswith("language_model.embed_tokens.weight") for name in names)


LAYOUT = Layout(
    family="qwen3_vl_vision",
    library="transformers",
    describes=of_model_type(TOWER),
    has_keys=lambda names: has_tower(names) and not has_language_model(names),
    parse=lambda source: parse_config(source.config),
    tables=tables,
)
