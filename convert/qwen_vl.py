"""Qwen3-VL, its dense models, as Hugging Face's transformers writes them."""

import dataclasses

from convert.fields import Fields
from convert.hf_decoder import PLACED, decoder_table, parse_decoder
from convert.layout import Layout, Parsed, of_model_type
from convert.qwen_vision import WHOLE, has_language_model, has_tower, parse_tower, tower_rows
from convert.table import Table
from models.qwen_vl import QwenVLConfig

_REFUSED = {
    "qwen2_vl": "the models before Qwen3-VL, whose tower has no learned positions",
    "qwen2_5_vl": "the models before Qwen3-VL, whose tower's attention is in windows",
    "qwen3_vl_moe": "of experts; take a dense model of the family",
}
# The documented defaults of Qwen3VLConfig.
_DEFAULTS = {"image_token_id": 151655, "video_token_id": 151656, "tie_word_embeddings": False}
_PREFIXES = ("model.", "")  # as published, and of the model without a head of its own


def tables(config: QwenVLConfig) -> tuple[Table, ...]:
    """The key layouts: of models as published, and of those saved without their head."""
    return tuple(_table(config, prefix) for prefix in _PREFIXES)


def _table(config, prefix):
    language = decoder_table(config.decoder, model=f"{prefix}language_model", target="decoder.")
    rows = tower_rows(config.vision, f"{prefix}visual.", "vision.")
    return Table((*language.rows, *rows), language.ignored)


def parse_config(values: dict) -> Parsed:
    """The config of a Qwen3-VL from its `config.json`.

    Raises:
      ConversionError: a value that is not of its type, or that the model does not support.
    """
    whole = Fields("config.json", values, _DEFAULTS)
    vision, unknown, _ = parse_tower("vision_config", whole.section("vision_config", {}).values)
    text = {"model_type": "qwen3_vl_text"} | whole.section("text_config", {}).values
    decoder, unknown_of_text, _ = parse_decoder("text_config", text, PLACED)
    tied = whole.flag("tie_word_embeddings", null=False) or decoder.tied_head
    whole.ignore("vision_start_token_id", "vision_end_token_id")  # what prompts write
    config = QwenVLConfig(
        vision,
        dataclasses.replace(decoder, tied_head=tied),
        whole.integer("image_token_id"),
        whole.integer("video_token_id"),
    )
    return Parsed(config, [*whole.unknown(), *unknown, *unknown_of_text])


LAYOUT = Layout(
    family="qwen3_vl",
    library="transformers",
    describes=of_model_type(WHOLE),
    has_keys=lambda names: has_tower(names) and has_language_model(names),
    parse=lambda source: parse_config(source.config),
    tables=tables,
    refused=_REFUSED,
)
