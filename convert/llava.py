"""LLaVA 1.5, LLaVA-NeXT, interleave and OneVision as Hugging Face's transformers writes them."""

import dataclasses
import itertools
import re

from convert import clip, siglip
from convert.errors import ConversionError, show
from convert.fields import LARGEST_DEPTH, Fields
from convert.hf_decoder import decoder_table, parse_decoder
from convert.layout import Layout, Parsed, Source, of_model_type
from convert.rows import HF_CLIP_BLOCK, block_rows
from convert.sources import read_json_object
from convert.table import CONVOLUTION, LINEAR, SAME, Row, Table
from models.llava import LLaVAConfig, LLaVAVisionConfig

_REFUSED = {
    "llava_next_video": "of videos; use a LLaVA-NeXT checkpoint for images",
    "vipllava": "reads several blocks of its tower at once; use a LLaVA 1.5 checkpoint",
    "video_llava": "of videos; use a LLaVA checkpoint for images",
}
_SIDES = range(384, 2305, 384)
_CLIP_TOWER = {  # where a file has no vision_config at all
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
_SIGLIP_TOWER = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
# The documented defaults of LlavaConfig, LlavaNextConfig and LlavaOnevisionConfig.
_LLAVA = {
    "image_token_index": 32000,
    "projector_hidden_act": "gelu",
    "vision_feature_select_strategy": "default",
    "vision_feature_layer": -2,
    "multimodal_projector_bias": True,
    "tie_word_embeddings": False,
    "vision_config": _CLIP_TOWER,
    "text_config": {"model_type": "llama"},
}
_DEFAULTS = {
    "llava": _LLAVA,
    "llava_next": _LLAVA
    | {
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    },
    "llava_onevision": _LLAVA
    | {
        "image_token_index": 151646,
        "video_token_index": 151647,
        "vision_feature_select_strategy": "full",
        "vision_feature_layer": -1,
        "image_grid_pinpoints": [list(pair) for pair in itertools.product(_SIDES, _SIDES)],
        "vision_aspect_ratio": "anyres_max_9",
        "vision_config": _SIGLIP_TOWER,
        "text_config": {"model_type": "qwen2"},
    },
}
_TOWERS = {
    "clip_vision_model": ("clip", clip.VISION_DEFAULTS),
    "siglip_vision_model": ("siglip", siglip.VISION_DEFAULTS),
}

_EMBEDDINGS = (
    ("embeddings.patch_embedding.weight", "patch_embedding.conv.kernel", CONVOLUTION),
    ("embeddings.position_embedding.weight", "positions", SAME),
)
_OF_CLIP = (
    ("embeddings.class_embedding", "class_token", SAME),
    ("pre_layrnorm.weight", "pre_norm.scale", SAME),  # sic
    ("pre_layrnorm.bias", "pre_norm.bias", SAME),
)
_OF_SIGLIP = (("embeddings.patch_embedding.bias", "patch_embedding.conv.bias", SAME),)
_UNREAD = "behind the block that a LLaVA reads"


def tables(config: LLaVAConfig) -> tuple[Table, ...]:
    """The key layouts: of published files and of modules, with and without `vision_model`.

    Files are written with the names that were published; a module of transformers 5 has others.
    """
    names = (("", "language_model.model", "language_model.lm_head"),)
    names += (("model.", "model.language_model", "lm_head"),)
    return tuple(
        _table(config, prefix, f"{prefix}vision_tower.{inside}", language, head)
        for prefix, language, head in names
        for inside in ("vision_model.", "")
    )


def _table(config, prefix, tower, language, head):
    """The table whose names of the tower, the language model and its head begin so."""
    decoder = decoder_table(config.decoder, model=language, head=head, target="decoder.")
    rows = [
        *decoder.rows,
        *_projector(config, f"{prefix}multi_modal_projector"),
        *_tower_rows(config.vision, tower),
    ]
    if config.resolutions:
        rows.append(Row(f"{prefix}image_newline", "newline", SAME))
    return Table(tuple(rows), decoder.ignored | _unread(config.vision, tower))


def _projector(config, source):
    parts = [("weight", "kernel", LINEAR)] + [("bias", "bias", SAME)] * config.projector_bias
    for layer in (1, 2):
        for name, leaf, transform in parts:
            yield Row(f"{source}.linear_{layer}.{name}", f"projector.fc{layer}.{leaf}", transform)


def _tower_rows(vision: LLaVAVisionConfig, source):
    rest = _EMBEDDINGS + (_OF_CLIP if vision.tower == "clip" else _OF_SIGLIP)
    yield from (Row(f"{source}{name}", f"vision.{leaf}", how) for name, leaf, how in rest)
    names = f"{source}encoder.layers", "vision.encoder.blocks"
    yield from block_rows(*names, HF_CLIP_BLOCK, vision.encoder.depth)


def _unread(vision, source):
    """The tensors of the tower that nothing of a LLaVA depends on, and why."""
    names = [f"{source}post_layernorm.{name}" for name in ("weight", "bias")]
    if vision.tower == "siglip":
        names += [source + name.removeprefix("vision_model.") for name in siglip.POOLING_TENSORS]
    names += [
        f"{source}encoder.layers.{i}.{name}"
        for i in range(vision.encoder.depth, LARGEST_DEPTH)
        for name, *_ in HF_CLIP_BLOCK
    ]
    buffer = f"{source}embeddings.position_ids"
    return dict.fromkeys(names, _UNREAD) | {buffer: "a buffer of older versions, not a weight"}


def parse_config(source: Source) -> Parsed:
    """The config of a LLaVA from its `config.json`.

    Raises:
      ConversionError: a value that is not of its type, or that the model does not support, a tower
        of another depth in the file, or other tiles in the file of the preprocessing.
    """
    model_type = Fields("config.json", source.config, {}).choice("model_type", _DEFAULTS)
    whole = Fields("config.json", source.config, _DEFAULTS[model_type])
    vision, unknown = _tower(whole, source.tensors)
    decoder, unknown_of_decoder, _ = parse_decoder("text_config", _section(whole, "text_config"))
    tied = whole.flag("tie_word_embeddings", null=False) or decoder.tied_head
    whole.ignore("ignore_index", "image_seq_length", "vocab_size")
    whole.fix(use_image_newline_parameter=True)
    tiles = {}
    if model_type != "llava":
        tiles["resolutions"] = _pinpoints(whole.values, whole)
        _check_preprocessing(source.file.parent, tiles["resolutions"])
    if model_type == "llava_onevision":
        tiles |= dict(most_tiles=_most_tiles(whole), tile_one_only=True)
        tiles["video_token_id"] = _token(whole, "video")
    config = LLaVAConfig(
        vision,
        dataclasses.replace(decoder, tied_head=tied),
        _token(whole, "image"),
        whole.activation("projector_hidden_act"),
        whole.flag("multimodal_projector_bias"),
        keep_class_token=_keeps_class_token(whole, vision.tower),
        **tiles,
    )
    return Parsed(config, [*whole.unknown(), *unknown, *unknown_of_decoder])


def _section(whole, name) -> dict:
    """An object of the config with the `model_type` that it has if it does not say."""
    default = whole.defaults[name]
    section = whole.section(name, {}).values
    if not section:
        return default
    return {"model_type": default["model_type"]} | section


def _tower(whole, tensors):
    """The config of the tower up to the block that is read, and its unknown fields."""
    values = _section(whole, "vision_config")
    kinds = Fields("vision_config", values, {})
    tower, defaults = _TOWERS[kinds.choice("model_type", _TOWERS)]
    fields = Fields("vision_config", values, defaults)
    fields.ignore("projection_dim", "vision_use_head", "vocab_size")
    fields.fix(num_channels=3)
    encoder = fields.encoder()
    _check_depth(encoder.depth, tensors)
    layer = whole.integer("vision_feature_layer", least=-encoder.depth, most=encoder.depth)
    depth = layer if layer >= 0 else encoder.depth + 1 + layer
    if depth == 0:
        raise ConversionError("config.json.vision_feature_layer must not be the embeddings, got 0")
    config = LLaVAVisionConfig(
        fields.side("image_size"),
        fields.side("patch_size"),
        "bicubic",
        dataclasses.replace(encoder, depth=depth),
        tower=tower,
    )
    return config, fields.unknown()


def _check_depth(depth, tensors):
    """Refuses a file whose tower has other blocks than its config says: all beyond are unread."""
    pattern = re.compile(r"(model\.)?vision_tower\.(vision_model\.)?encoder\.layers\.(\d+)\.")
    found = {int(match[3]) for name in tensors if (match := pattern.match(name))}
    if found and 1 + max(found) != depth:
        raise ConversionError(
            f"vision_config.num_hidden_layers is {depth}, but the file's tower has "
            f"{1 + max(found)} blocks: put the config.json beside it that it was published with"
        )


def _keeps_class_token(whole, tower):
    """Whether the first token of the tower is a feature; without a class token all are."""
    strategy = whole.choice("vision_feature_select_strategy", ("default", "full"))
    if tower == "siglip":
        if strategy == "default":
            raise ConversionError(
                "config.json.vision_feature_select_strategy 'default' drops a class token, and "
                "SigLIP's tower has none: 'full' keeps all patches"
            )
        return False
    return strategy == "full"


def _token(whole, what):
    """The token that stands for an image or a video, whose field has two names."""
    names = f"{what}_token_id", f"{what}_token_index"
    whole.ignore(*names)
    return whole.integer(names[names[0] not in whole.values])


def _most_tiles(whole):
    value = whole.choice("vision_aspect_ratio", [f"anyres_max_{n}" for n in range(1, 37)])
    return int(value.removeprefix("anyres_max_"))


def _pinpoints(values, whole):
    """The resolutions that a config names, as tuples; raises ConversionError for anything else."""
    whole.ignore("image_grid_pinpoints")
    pinpoints = values.get("image_grid_pinpoints", whole.defaults["image_grid_pinpoints"])
    pairs = pinpoints if isinstance(pinpoints, list) and pinpoints else [pinpoints]
    for pair in pairs:
        sides = pair if isinstance(pair, list) else [None]
        if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
            raise ConversionError(
                f"image_grid_pinpoints must be a list of heights and widths, got {show(pair)}"
            )
    return tuple(map(tuple, pairs))


def _check_preprocessing(folder, resolutions):
    """Refuses other tiles than the config's in the file by which images are prepared.

    Each has its own copy, and a processor and a model that differ count other tokens.
    """
    for name in ("processor_config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            continue
        values = read_json_object(folder / name)
        values = values.get("image_processor", values)
        pinpoints = values.get("image_grid_pinpoints") if isinstance(values, dict) else None
        if pinpoints is not None and pinpoints != [list(pair) for pair in resolutions]:
            raise ConversionError(
                f"image_grid_pinpoints of {name} are not those of config.json: "
                f"{show(pinpoints)} and {show(resolutions)}"
            )


LAYOUT = Layout(
    family="llava",
    library="transformers",
    describes=of_model_type(*_DEFAULTS),
    has_keys=lambda names: any("multi_modal_projector.linear_1.weight" in name for name in names),
    parse=parse_config,
    tables=tables,
    refused=_REFUSED,
)
