"""SigLIP and SigLIP 2 as open_clip writes them: timm's vision tower, and a text tower by the names
of CLIP's."""

import dataclasses

from convert import open_clip, timm_siglip
from convert.errors import ConversionError
from convert.guesses import Guesses
from convert.layout import Layout, Parsed, Source
from convert.rows import block_rows
from convert.table import LINEAR, SAME, Row, Table
from models.configs import EncoderConfig
from models.siglip import SigLIPConfig, SigLIPVisionConfig
from models.text import TextConfig

_REST = (
    ("logit_scale", "logit_scale", SAME),
    ("logit_bias", "logit_bias", SAME),
    ("text.text_projection.weight", "text_projection.kernel", LINEAR),
    ("text.text_projection.bias", "text_projection.bias", SAME),
    *((f"text.{name}", *row) for name, *row in open_clip.TEXT),
)

_OF_VISION = dict(timm_pool="map", timm_proj="none")  # it pools itself, and nothing projects it
_OF_TEXT = dict(no_causal_mask=True, proj_bias=True, pool_type="last")
_READ = ("act_kwargs", "norm_kwargs", *_OF_TEXT)
_GELUS = {"none": "gelu", "tanh": "gelu_pytorch_tanh"}
_EPSILON = 1e-5  # of torch's LayerNorm


def tables(config: SigLIPConfig) -> tuple[Table, ...]:
    """The one key layout."""
    rows = [Row(*row) for row in _REST]
    rows += timm_siglip.tower_rows(config.vision.encoder, "visual.trunk.", "vision.")
    names = "text.transformer.resblocks", "text.encoder.blocks"
    rows += block_rows(*names, open_clip.BLOCK, config.text.encoder.depth)
    return (Table(tuple(rows), {}),)


def parse(source: Source) -> Parsed:
    """The config of a SigLIP from its `open_clip_config.json`.

    Raises:
      ConversionError: a value that is not of its type, or that the model does not support.
    """
    values = open_clip.whole_config(source, Guesses(source.given))
    whole, model, vision, text = open_clip.open_sections(values)
    model.fix(quick_gelu=False, multimodal_cfg=None, nonscalar_logit_scale=False, cast_dtype=None)
    model.number("init_logit_bias", least=-1e6, most=1e6)  # without, there is no bias
    text.require(**_OF_TEXT)
    text.fix(**{name: x for name, x in open_clip.TEXT_FIXED.items() if name not in _READ})
    config = SigLIPConfig(
        _vision(vision),
        TextConfig(
            text.size("vocab_size"),
            text.size("context_length"),
            _text_encoder(text),
            cleaning=open_clip.cleaning_of(text),
        ),
    )
    width = config.vision.encoder.width
    if model.size("embed_dim") != width:
        raise ConversionError(
            f"model_cfg.embed_dim must be {width}, the width of the tower, whose pooled states "
            f"nothing projects, got {model.size('embed_dim')}"
        )
    for section in (model, vision, text):
        section.refuse_unknown()
    return Parsed(config, whole.unknown())


def _vision(vision):
    """The tower that timm builds by this name; open_clip's own fields say nothing of it."""
    vision.require(**_OF_VISION)
    own = open_clip.VISION_DEFAULTS | open_clip.VISION_FIXED
    vision.ignore(*own, *open_clip.VISION_IRRELEVANT)
    tower = timm_siglip.published(vision.values.get("timm_model_name"))
    fields = [field.name for field in dataclasses.fields(SigLIPVisionConfig)]
    tower = SigLIPVisionConfig(**{name: getattr(tower, name) for name in fields})
    return dataclasses.replace(tower, image_size=vision.side("image_size"))


def _text_encoder(text):
    width = text.size("width")
    gelu = text.section("act_kwargs", {"approximate": "none"})
    norm = text.section("norm_kwargs", {"eps": _EPSILON})
    encoder = EncoderConfig(
        width,
        text.depth("layers"),
        text.size("heads"),
        text.mlp_dim(width),
        _GELUS[gelu.choice("approximate", _GELUS)],
        norm.epsilon("eps"),
    )
    for section in (gelu, norm):
        section.refuse_unknown()
    return encoder


def _describes(values):
    model = values if open_clip.is_bare(values) else values.get("model_cfg")
    vision = model.get("vision_cfg") if isinstance(model, dict) else None
    return isinstance(vision, dict) and "_siglip" in str(vision.get("timm_model_name"))


LAYOUT = Layout(
    family="siglip",
    library="open_clip",
    describes=_describes,
    has_keys=lambda names: "visual.trunk.attn_pool.latent" in names,
    parse=parse,
    tables=tables,
)
