"""CLIP with OpenAI's names, as open_clip writes it: `open_clip_config.json` and key table."""

import math

from convert.errors import ConversionError
from convert.fields import Fields
from convert.guesses import Guesses
from convert.layout import Layout, Parsed, Source
from convert.rows import block_rows, fused_qkv
from convert.sources import OPEN_CLIP_CONFIG
from convert.table import CONVOLUTION, LINEAR, MERGE_HEADS, SAME, Row, Table
from convert.tensors import shape_of
from models.clip import CLIPConfig, CLIPTextConfig
from models.configs import EncoderConfig, VisionConfig
from models.inputs.cleaning import CLEANINGS

_EPSILON = 1e-5  # of torch's LayerNorm; open_clip has no field for it
_QUICK = {True: "quick_gelu", False: "gelu"}

# The documented defaults of CLIPVisionCfg and CLIPTextCfg.
VISION_DEFAULTS = {
    "layers": 12,
    "width": 768,
    "head_width": 64,
    "mlp_ratio": 4.0,
    "patch_size": 16,
    "image_size": 224,
}
_TEXT_DEFAULTS = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 512,
    "heads": 8,
    "layers": 12,
    "mlp_ratio": 4.0,
}
# Fields that change the computation, and the values of a plain CLIP.
_TOWER_FIXED = dict(
    ls_init_value=None,
    final_ln_after_pool=False,
    act_kwargs=None,
    norm_kwargs=None,
    block_type=None,
    qk_norm=False,
    scaled_cosine_attn=False,
    scale_heads=False,
    scale_attn_inner=False,
    scale_attn=False,
    scale_fc=False,
)
VISION_FIXED = _TOWER_FIXED | dict(
    attentional_pool=False,
    no_ln_pre=False,
    pos_embed_type="learnable",
    pool_type="tok",
    timm_model_name=None,
)
TEXT_FIXED = _TOWER_FIXED | dict(
    embed_cls=False,
    no_causal_mask=False,
    pool_type="argmax",
    proj_bias=False,
    proj_type="linear",
    hf_model_name=None,
    tokenizer_mode=None,
)
_TOKENIZER_FIXED = dict(strip_sep_token=False, reduction_mask="", language=None)
_MODEL_FIXED = dict(
    multimodal_cfg=None, init_logit_bias=None, nonscalar_logit_scale=False, cast_dtype=None
)
# Of training and tokens, and the settings of what those values above turn off.
VISION_IRRELEVANT = (
    "patch_dropout",
    "output_tokens",
    "attn_pooler_queries",
    "attn_pooler_heads",
    "timm_model_pretrained",
    "timm_pool",
    "timm_proj",
    "timm_proj_bias",
    "timm_drop",
    "timm_drop_path",
)
_TEXT_IRRELEVANT = (
    "pad_id",
    "eos_id",
    "output_tokens",
    "hf_tokenizer_name",
    "hf_model_pretrained",
    "hf_proj_type",
    "hf_pooler_type",
)
_MODEL_IRRELEVANT = ("init_logit_scale", "custom_text", "force_custom_text", "output_dict")

BLOCK = (
    ("ln_1.weight", "norm1.scale", SAME),
    ("ln_1.bias", "norm1.bias", SAME),
    *fused_qkv("attn.in_proj_", "attention"),
    ("attn.out_proj.weight", "attention.out.kernel", MERGE_HEADS),
    ("attn.out_proj.bias", "attention.out.bias", SAME),
    ("ln_2.weight", "norm2.scale", SAME),
    ("ln_2.bias", "norm2.bias", SAME),
    ("mlp.c_fc.weight", "mlp.fc1.kernel", LINEAR),
    ("mlp.c_fc.bias", "mlp.fc1.bias", SAME),
    ("mlp.c_proj.weight", "mlp.fc2.kernel", LINEAR),
    ("mlp.c_proj.bias", "mlp.fc2.bias", SAME),
)
_VISION = (
    ("logit_scale", "logit_scale", SAME),
    ("visual.proj", "vision_projection.kernel", SAME),  # [C, P], not a linear layer's [P, C]
    ("visual.class_embedding", "vision.class_token", SAME),
    ("visual.conv1.weight", "vision.patch_embedding.conv.kernel", CONVOLUTION),
    ("visual.positional_embedding", "vision.positions", SAME),
    ("visual.ln_pre.weight", "vision.pre_norm.scale", SAME),
    ("visual.ln_pre.bias", "vision.pre_norm.bias", SAME),
    ("visual.ln_post.weight", "vision.post_norm.scale", SAME),
    ("visual.ln_post.bias", "vision.post_norm.bias", SAME),
)
TEXT = (  # of both, CLIP and SigLIP
    ("token_embedding.weight", "text.token_embedding.embedding", SAME),
    ("positional_embedding", "text.positions", SAME),
    ("ln_final.weight", "text.final_norm.scale", SAME),
    ("ln_final.bias", "text.final_norm.bias", SAME),
)
_TEXT = (("text_projection", "text_projection.kernel", SAME), *TEXT)
_SIZES_OF_OPENAI = ("input_resolution", "context_length", "vocab_size")
_IGNORED = dict.fromkeys(_SIZES_OF_OPENAI, "a size, not a weight; OpenAI's own files have it")
_MASK = "the causal mask, not a weight"


def tables(config: CLIPConfig) -> tuple[Table, ...]:
    """The key layouts: text tower at the top (CLIP), or under `text.` (CustomTextCLIP)."""

    def table(prefix):
        rows = [Row(*row) for row in _VISION]
        rows += [Row(f"{prefix}{source}", *row) for source, *row in _TEXT]
        for names, target, tower in (
            ("visual.transformer.resblocks", "vision", config.vision),
            (f"{prefix}transformer.resblocks", "text", config.text),
        ):
            rows += block_rows(names, f"{target}.encoder.blocks", BLOCK, tower.encoder.depth)
        return Table(tuple(rows), _IGNORED | {f"{prefix}attn_mask": _MASK})

    return table(""), table("text.")


def parse(source: Source) -> Parsed:
    """The config of a CLIP from its `open_clip_config.json`, or from OpenAI's tensors.

    Raises:
      ConversionError: a value that is not of its type, that the model does not support, or exact
        GELU for weights of OpenAI, which were trained with quick GELU.
    """
    guesses = Guesses(source.given)
    whole, model, vision, text = open_sections(whole_config(source, guesses))
    model.fix(**_MODEL_FIXED)
    vision.fix(**VISION_FIXED)
    vision.ignore(*VISION_IRRELEVANT)
    text.fix(**TEXT_FIXED)
    quick = model.flag("quick_gelu", null=False)
    if not quick and _is_openai(source):
        raise ConversionError(
            "model_cfg.quick_gelu is false, but these weights are OpenAI's, which were trained "
            "with quick GELU: the config is of another model; take the one with quick_gelu true"
        )
    width = vision.size("width")
    heads, rest = divmod(width, vision.size("head_width"))
    if rest:
        raise ConversionError(
            f"vision_cfg.width {width} does not divide by head_width {vision.size('head_width')}"
        )
    config = CLIPConfig(
        VisionConfig(
            vision.side("image_size"),
            vision.side("patch_size"),
            "bicubic_antialias",
            _encoder(vision, heads, quick),
        ),
        CLIPTextConfig(
            text.size("vocab_size"),
            text.size("context_length"),
            _encoder(text, text.size("heads"), quick),
            eos_token_id=None,
            cleaning=cleaning_of(text),
        ),
        model.size("embed_dim"),
    )
    for section in (model, vision, text):
        section.refuse_unknown()
    return Parsed(config, whole.unknown(), tuple(guesses.made))


def open_sections(values: dict) -> tuple[Fields, Fields, Fields, Fields]:
    """The fields of a whole config, and of the model, its vision and its text tower in it."""
    whole = Fields(OPEN_CLIP_CONFIG, values, {})
    whole.ignore("preprocess_cfg")
    model = whole.section("model_cfg", {"quick_gelu": False})
    model.ignore(*_MODEL_IRRELEVANT)
    text = model.section("text_cfg", _TEXT_DEFAULTS)
    text.ignore(*_TEXT_IRRELEVANT)
    return whole, model, model.section("vision_cfg", VISION_DEFAULTS), text


def whole_config(source: Source, guesses: Guesses) -> dict:
    """What `open_clip_config.json` says, or would say where there is none or only its `model_cfg`.

    The latter is what open_clip keeps of each architecture that it knows by name.
    """
    if source.config is None:
        return _config_of(source.tensors, guesses)
    return {"model_cfg": source.config} if is_bare(source.config) else source.config


def is_bare(values) -> bool:
    """Whether a config is what open_clip keeps of an architecture: its `model_cfg` alone."""
    return {"embed_dim", "vision_cfg", "text_cfg"} <= values.keys()


def cleaning_of(text) -> str:
    """What its tokenizer does to texts first; those of transformers keep the case by default."""
    default = "lower" if text.values.get("hf_tokenizer_name") is None else "whitespace"
    tokenizer = text.section("tokenizer_kwargs", {"clean": default})
    tokenizer.fix(**_TOKENIZER_FIXED)
    cleaning = tokenizer.choice("clean", [name for name in CLEANINGS if name != "none"])
    tokenizer.refuse_unknown()
    return cleaning


def _encoder(section, heads, quick):
    width = section.size("width")
    return EncoderConfig(
        width,
        section.depth("layers"),
        heads,
        section.mlp_dim(width),
        _QUICK[quick],
        _EPSILON,
    )


def _is_openai(source):
    """Whether the names of the file's folders or its tensors say that the weights are OpenAI's."""
    folders = source.file.parts[-4:-1]  # a hub's snapshot: models--owner--name/snapshots/revision
    named = source.file.parent.name == "openai" or any(x.endswith(".openai") for x in folders)
    return named or any(name in source.tensors for name in _SIZES_OF_OPENAI)


def _config_of(tensors, guesses):
    """What `open_clip_config.json` would say of OpenAI's own state dicts."""
    if not all(name in tensors for name in _SIZES_OF_OPENAI):
        raise ConversionError(
            "the tensors do not tell quick from exact GELU: put the open_clip_config.json "
            "that they were published with beside them"
        )

    def layers(prefix):
        return sum(name.startswith(prefix) and name.endswith("ln_1.weight") for name in tensors)

    width, _, patch_size, _ = shape_of(tensors, "visual.conv1.weight", 4)
    vocab_size, text_width = shape_of(tensors, "token_embedding.weight", 2)
    num_positions = shape_of(tensors, "visual.positional_embedding", 2)[0]
    side = math.isqrt(max(num_positions - 1, 0))  # as OpenAI's code has it
    heads = guesses.heads_of_64("heads", width, "all of OpenAI's")
    text_heads = guesses.heads_of_64("text_heads", text_width, "all of OpenAI's")
    return {
        "model_cfg": {
            "embed_dim": shape_of(tensors, "text_projection", 2)[1],
            "quick_gelu": True,
            "vision_cfg": {
                "image_size": side * patch_size,
                "layers": layers("visual.transformer."),
                "width": width,
                "head_width": width // heads,
                "patch_size": patch_size,
            },
            "text_cfg": {
                "context_length": shape_of(tensors, "positional_embedding", 2)[0],
                "vocab_size": vocab_size,
                "width": text_width,
                "heads": text_heads,
                "layers": layers("transformer."),
            },
        }
    }


LAYOUT = Layout(
    family="clip",
    library="open_clip",
    describes=lambda values: "model_cfg" in values or is_bare(values),
    has_keys=lambda names: "visual.conv1.weight" in names,
    parse=parse,
    tables=tables,
    needs_config=False,
)
