"""The vision tower of SigLIP and SigLIP 2 as timm writes it: `config.json` and key table."""

import re

from convert.layout import Layout, Parsed, Source
from convert.rows import TIMM_MLP, TIMM_NORMS_AND_ATTENTION, TIMM_PATCHES, block_rows
from convert.table import (
    BATCHED,
    FLAT,
    LINEAR,
    MERGE_HEADS,
    SAME,
    SPLIT_HEADS,
    Row,
    Table,
    part,
)
from convert.timm_fields import Names, encoder_of, of_kind, open_config, sizes
from models.configs import EncoderConfig
from models.siglip_vision import SigLIPVisionModelConfig

_EPSILON = 1e-6  # of all; timm has no field for it
NAMES = Names(
    re.compile(
        r"(?P<today>vit_(?P<size>base|large|so400m|giantopt)_patch(?P<patch_size>\d+)"
        r"_siglip_(?P<image_size>\d+))(\.\w+)?"
    ),
    "by which a SigLIP of timm that pools by attention is known here, such as "
    "vit_base_patch16_siglip_224 or vit_so400m_patch14_siglip_384",
    "take the whole SigLIP in Hugging Face's layout",
)
_SIZES = {  # width, blocks, heads, MLP ratio
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "so400m": (1152, 27, 16, 3.7362),
    "giantopt": (1536, 40, 16, 4.0),
}
# By timm's words. All were trained with the second; timm builds some of them with the first.
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
_WITH_TANH = re.compile(".*(base_patch32|large_.*_512|so400m_patch16|giantopt).*")

_REST = (
    ("pos_embed", "positions", BATCHED),
    *TIMM_PATCHES,
    ("norm.weight", "post_norm.scale", SAME),
    ("norm.bias", "post_norm.bias", SAME),
    ("attn_pool.latent", "pooling.probe", BATCHED),
    ("attn_pool.q.weight", "pooling.attention.query.kernel", SPLIT_HEADS),
    ("attn_pool.q.bias", "pooling.attention.query.bias", FLAT),
    ("attn_pool.kv.weight", "pooling.attention.key.kernel", part(SPLIT_HEADS, 0, 2)),
    ("attn_pool.kv.bias", "pooling.attention.key.bias", part(FLAT, 0, 2)),
    ("attn_pool.kv.weight", "pooling.attention.value.kernel", part(SPLIT_HEADS, 1, 2)),
    ("attn_pool.kv.bias", "pooling.attention.value.bias", part(FLAT, 1, 2)),
    ("attn_pool.proj.weight", "pooling.attention.out.kernel", MERGE_HEADS),
    ("attn_pool.proj.bias", "pooling.attention.out.bias", SAME),
    ("attn_pool.norm.weight", "pooling.norm.scale", SAME),
    ("attn_pool.norm.bias", "pooling.norm.bias", SAME),
    *((f"attn_pool.{source}", f"pooling.{target}", how) for source, target, how in TIMM_MLP),
)
_HEAD = (Row("head.weight", "head.kernel", LINEAR), Row("head.bias", "head.bias", SAME))


def tables(config: SigLIPVisionModelConfig) -> tuple[Table, ...]:
    """The one key layout."""
    rows = tower_rows(config.encoder)
    return (Table((*rows, *(_HEAD if config.num_classes else ())), {}),)


def tower_rows(encoder: EncoderConfig, source="", target="") -> tuple[Row, ...]:
    """All rows but a classifier's, of names that begin with `source` and leaves with `target`."""
    rest = (Row(f"{source}{name}", f"{target}{leaf}", how) for name, leaf, how in _REST)
    block = TIMM_NORMS_AND_ATTENTION + TIMM_MLP
    names = f"{source}blocks", f"{target}encoder.blocks"
    return (*rest, *block_rows(*names, block, encoder.depth))


def parse(source: Source) -> Parsed:
    """The config of a SigLIP's tower from timm's `config.json`.

    Raises:
      ConversionError: a value that is not of its type, or a model that computes anything else.
    """
    match = NAMES.match(source.config.get("architecture"))
    whole, args, num_classes = open_config(source.config, _defaults(match))
    args.fix(
        init_values=None,
        reg_tokens=0,
        mlp_layer=None,
        qkv_bias=True,
        class_token=False,
        global_pool="map",
        fc_norm=None,
    )
    args.ignore("no_embed_class", "pool_include_prefix")  # of tokens that are not there
    whole.fix(global_pool="map")
    height, width = args.sides("img_size")
    config = SigLIPVisionModelConfig(
        height,
        args.side("patch_size"),
        "bicubic_antialias",
        encoder_of(args, ACTIVATIONS[args.choice("act_layer", ACTIVATIONS)], _EPSILON),
        width,
        num_classes=num_classes,
    )
    args.refuse_unknown()
    return Parsed(config, whole.unknown())


def published(architecture) -> SigLIPVisionModelConfig:
    """The config of this architecture as timm builds it; errors as for `NAMES.match`."""
    return parse(Source(None, {"architecture": architecture, "num_classes": 0}, {})).config


def _defaults(match):
    """The arguments with which timm builds the architecture of this name."""
    return {
        **sizes(*_SIZES[match["size"]]),
        "img_size": int(match["image_size"]),
        "patch_size": int(match["patch_size"]),
        "act_layer": "gelu_tanh" if _WITH_TANH.fullmatch(match["today"]) else "gelu",
    }


def _has_keys(names):
    return all(name in names for name in ("pos_embed", "attn_pool.latent", "blocks.0.norm1.weight"))


LAYOUT = Layout(
    family="siglip_vision",
    library="timm",
    describes=of_kind("siglip"),
    has_keys=_has_keys,
    parse=parse,
    tables=tables,
)
