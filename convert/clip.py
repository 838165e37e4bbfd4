"""CLIP as Hugging Face's transformers, 4 and 5, writes it: `config.json` and key table."""

from convert.fields import Fields
from convert.layout import Layout, Parsed, of_model_type
from convert.rows import two_towers
from convert.table import LINEAR, SAME, Table
from models.clip import CLIPConfig, CLIPTextConfig
from models.configs import VisionConfig

_REFUSED = {
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
VISION_DEFAULTS = {
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

_REST = (
    ("logit_scale", "logit_scale", SAME),
    ("visual_projection.weight", "vision_projection.kernel", LINEAR),
    ("text_projection.weight", "text_projection.kernel", LINEAR),
    ("vision_model.embeddings.class_embedding", "vision.class_token", SAME),
    ("vision_model.pre_layrnorm.weight", "vision.pre_norm.scale", SAME),  # sic
    ("vision_model.pre_layrnorm.bias", "vision.pre_norm.bias", SAME),
)


def tables(config: CLIPConfig) -> tuple[Table, ...]:
    """The key layouts; a whole CLIPModel has one in transformers 4 (4.51.3) and 5 (5.23.0)."""
    return (two_towers(_REST, config),)


def parse_config(values: dict) -> Parsed:
    """The config of a CLIPModel from its `config.json`.

    Raises:
      ConversionError: a value that is not of its type, or that the model does not support.
    """
    whole = Fields("config.json", values, _DEFAULTS)
    text = _section(whole, "text", _TEXT_DEFAULTS)
    vision = _section(whole, "vision", VISION_DEFAULTS)
    for section in (whole, text, vision):
        section.ignore("logit_scale_init_value", "projection_dim")  # the towers' are not used
    vision.fix(num_channels=3)
    eos_token_id = text.integer("eos_token_id")
    config = CLIPConfig(
        VisionConfig(
            vision.side("image_size"), vision.side("patch_size"), "bicubic", vision.encoder()
        ),
        CLIPTextConfig(
            text.size("vocab_size"),
            text.size("max_position_embeddings"),
            text.encoder(),
            None if eos_token_id == _ARGMAX_EOS else eos_token_id,
        ),
        whole.size("projection_dim"),
    )
    return Parsed(config, [*whole.unknown(), *text.unknown(), *vision.unknown()])


def _section(whole, tower, defaults):
    # Where a file holds both, transformers takes `text_config_dict` and defaults for the rest.
    preferred = whole.section(f"{tower}_config_dict", defaults)
    other = whole.section(f"{tower}_config", defaults)
    return other if whole.values.get(preferred.name) is None else preferred


LAYOUT = Layout(
    family="clip",
    library="transformers",
    describes=of_model_type("clip"),
    has_keys=lambda names: "vision_model.pre_layrnorm.weight" in names,
    parse=lambda source: parse_config(source.config),
    tables=tables,
    refused=_REFUSED,
)
