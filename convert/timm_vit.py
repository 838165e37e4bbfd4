"""ViT as timm writes it, and the original MAE and DeiT, whose names are the same."""

import re

from convert import mae
from convert.errors import ConversionError
from convert.guesses import OPTIONS, Guesses
from convert.layout import Layout, Parsed, Source
from convert.rows import (
    TIMM_MLP,
    TIMM_NORMS_AND_ATTENTION,
    TIMM_PATCHES,
    block_rows,
    with_biases,
)
from convert.table import BATCHED, LINEAR, SAME, Row, Table
from convert.tensors import shape_of
from convert.timm_fields import (
    Names,
    classes_of,
    encoder_of,
    mlp_ratio,
    of_kind,
    open_config,
    sizes,
)
from models.plain_vit import POOLS, ViTConfig

_EPSILON = 1e-6  # of all that are supported; timm has no field for it

# What timm calls an architecture today, inside what it was called before version 0.8, when the name
# told of the training too, and inside a name of weights, which tells it behind a dot.
NAMES = Names(
    re.compile(
        r"(?:vit_(?=deit_))?"
        r"(?P<today>(?:vit|deit)_(?P<size>tiny|small|base|large|huge|giant|gigantic)"
        r"_patch(?P<patch_size>\d+)(?P<gap>_gap)?_(?P<image_size>\d+)(?P<miil>_miil)?)"
        r"(?:_in21k|_sam|_dino|_mae|_(?:augreg|orig)\w*|\.\w+)?"
    ),
    "by which a plain ViT of timm is known here, such as vit_base_patch16_224, "
    "vit_base_patch16_gap_224 or deit_base_patch16_224",
    "take the checkpoint in Hugging Face's layout, or its authors'",
)
_SIZES = {  # width, blocks, heads, MLP ratio
    "tiny": (192, 12, 3, 4.0),
    "small": (384, 12, 6, 4.0),
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "huge": (1280, 32, 16, 4.0),
    "giant": (1408, 40, 16, 48 / 11),
    "gigantic": (1664, 48, 16, 64 / 13),
}
# Those published without a config, MAE and DeiT among them, have the heads of these, by width.
_OF_WIDTH = {
    192: "vit_tiny_patch16_224",
    384: "vit_small_patch16_224",
    768: "vit_base_patch16_224",
    1024: "vit_large_patch16_224",
    1280: "vit_huge_patch14_224",
}

# Arguments of timm's VisionTransformer, beside those of all, that have one value in a plain ViT.
_FIXED = dict(init_values=None, reg_tokens=0, act_layer=None, mlp_layer=None)

_BLOCK = TIMM_NORMS_AND_ATTENTION + TIMM_MLP


def tables(config: ViTConfig) -> tuple[Table, ...]:
    """The one key layout."""
    norm = "norm" if config.norm == "tokens" else "fc_norm"
    rows = [
        Row("pos_embed", "positions", BATCHED),
        *(Row(*row) for row in TIMM_PATCHES),
        Row(f"{norm}.weight", "norm.scale", SAME),
        Row(f"{norm}.bias", "norm.bias", SAME),
    ]
    if config.class_token:
        rows.append(Row("cls_token", "class_token", BATCHED))
    if config.num_classes:
        rows += [Row("head.weight", "head.kernel", LINEAR), Row("head.bias", "head.bias", SAME)]
    block = with_biases(_BLOCK, config.encoder.biases)
    rows += block_rows("blocks", "encoder.blocks", block, config.encoder.depth)
    return (Table(tuple(rows), mae.decoder("decoder_blocks", _BLOCK)),)


def parse(source: Source) -> Parsed:
    """The config of a ViT from timm's `config.json`, or from tensors of a width that is published.

    Raises:
      ConversionError: a value that is not of its type, or a model that computes anything else.
    """
    guesses = Guesses(source.given)
    values = config_of(source.tensors, guesses) if source.config is None else source.config
    whole, args, num_classes = open_config(values, _defaults(values.get("architecture")))
    args.fix(**_FIXED)
    class_token = args.flag("class_token")
    if class_token:
        args.fix(no_embed_class=False, pool_include_prefix=False)
    else:
        args.ignore("no_embed_class", "pool_include_prefix")
    pool = args.choice("global_pool", POOLS)
    whole.fix(global_pool=pool)
    height, width = args.sides("img_size")
    config = ViTConfig(
        height,
        args.side("patch_size"),
        "bicubic_antialias",
        encoder_of(args, "gelu", _EPSILON, biases="qkv" if args.flag("qkv_bias") else ""),
        class_token=class_token,
        pool=pool,
        norm="pooled" if _norms_pooled(args, pool) else "tokens",
        num_classes=num_classes,
        image_width=width,
    )
    args.refuse_unknown()
    return Parsed(config, whole.unknown(), tuple(guesses.made))


def _defaults(architecture):
    """The arguments with which timm builds the architecture of this name.

    Raises:
      ConversionError: a name of an architecture that may compute anything else.
    """
    match = NAMES.match(architecture)
    own = sizes(*_SIZES[match["size"]])
    if match["size"] == "base" and match["gap"]:
        own["num_heads"] = 16  # sic
    return {
        **own,
        "img_size": int(match["image_size"]),
        "patch_size": int(match["patch_size"]),
        "qkv_bias": not match["miil"],
        "class_token": not match["gap"],
        "global_pool": "avg" if match["gap"] else "token",
        "fc_norm": False if match["gap"] else None,
    }


def _norms_pooled(args, pool):
    """Whether `fc_norm` stands in for `norm`: by default where the patches are averaged."""
    if args.values.get("fc_norm", args.defaults["fc_norm"]) is None:
        args.fix(fc_norm=None)
        return pool == "avg"
    return args.flag("fc_norm")


def config_of(tensors, guesses: Guesses) -> dict:
    """What timm's `config.json` would say of tensors that were published without one.

    Raises:
      ConversionError: a width or a first token that leaves open what is computed.
    """
    width, _, patch_size, _ = shape_of(tensors, "patch_embed.proj.weight", 4)
    class_token = "cls_token" in tensors
    if not class_token or (width not in _OF_WIDTH and guesses.given.heads is None):
        raise ConversionError(
            f"a ViT of width {width} {'with' if class_token else 'without'} a class token can be "
            "read only with the config.json that it was published with (--config FILE); without "
            f"one, those of width {', '.join(map(str, _OF_WIDTH))} with a class token, or of "
            f"others where {OPTIONS['heads']} says how many heads there are"
        )
    architecture = _OF_WIDTH.get(width, _OF_WIDTH[768])
    own = {} if width in _OF_WIDTH else _sizes_of(tensors, width)
    reason = f"the width {width}, as in {architecture}"
    heads = guesses.heads("heads", width, _defaults(architecture)["num_heads"], reason)
    num_patches = shape_of(tensors, "pos_embed", 3)[1] - 1
    grid = guesses.patch_grid(max(num_patches, 0))
    norms_pooled = "fc_norm.weight" in tensors
    reason = f"the name of the last norm, {'fc_norm' if norms_pooled else 'norm'}"
    return {
        "architecture": architecture,
        "num_classes": classes_of(tensors),
        "model_args": {
            "img_size": [patches * patch_size for patches in grid],
            "patch_size": patch_size,
            "num_heads": heads,
            "global_pool": guesses.settle("pool", "avg" if norms_pooled else "token", reason),
            "fc_norm": norms_pooled,
            **own,
        },
    }


def _sizes_of(tensors, width):
    """Arguments of a ViT of no published width, from the shapes."""
    mlp_dim, _ = shape_of(tensors, "blocks.0.mlp.fc1.weight", 2)
    depth = sum(name.endswith(".attn.qkv.weight") for name in tensors)
    return {"embed_dim": width, "depth": depth, "mlp_ratio": mlp_ratio(mlp_dim, width)}


def _has_keys(names):
    own = ("pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight")
    others = ("blocks.0.ls1.gamma", "attn_pool.latent")  # DINOv2's, SigLIP's
    return all(name in names for name in own) and not any(name in names for name in others)


LAYOUT = Layout(
    family="vit",
    library="timm",
    describes=of_kind("vit"),
    has_keys=_has_keys,
    parse=parse,
    tables=tables,
    needs_config=False,
)
