"""DINOv2, without and with registers, as timm writes it: `config.json` and key table."""

import dataclasses
import math
import re

from convert.errors import ConversionError
from convert.guesses import Guesses
from convert.layout import Layout, Parsed, Source
from convert.rows import (
    TIMM_DINO_REST,
    TIMM_MLP,
    TIMM_NORMS_AND_ATTENTION,
    TIMM_SCALES,
    block_rows,
    fused_mlp,
    with_biases,
)
from convert.table import (
    BATCHED,
    BATCHED_WITHOUT_FIRST,
    LINEAR_OF_FIRST_HALF,
    SAME,
    Row,
    Table,
)
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
from models.dinov2 import DINOv2Config

_EPSILON = 1e-6  # of all; timm has no field for it
NAMES = Names(
    re.compile(
        r"(?P<today>vit_(?P<size>small|base|large|giant)_patch14(?P<registers>_reg4)?_dinov2)"
        r"(\.\w+)?"
    ),
    "of DINOv2 in timm, such as vit_small_patch14_dinov2 or vit_giant_patch14_reg4_dinov2",
)
_SIZES = {  # width, blocks, heads, MLP ratio: of giant that of gate and first layer together
    "small": (384, 12, 6, 4.0),
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "giant": (1536, 40, 24, 2.66667 * 2),
}


def tables(config: DINOv2Config) -> tuple[Table, ...]:
    """The one key layout.

    With registers, the class token's position is part of the class token. A classifier is of the
    class token alone.
    """
    positions = BATCHED_WITHOUT_FIRST if config.num_registers else BATCHED
    rows = [Row(*row) for row in TIMM_DINO_REST]
    rows.append(Row("pos_embed", "positions", positions))
    if config.num_registers:
        rows.append(Row("reg_token", "registers", BATCHED))
    if config.num_classes:
        rows.append(Row("head.weight", "head.kernel", LINEAR_OF_FIRST_HALF))
        rows.append(Row("head.bias", "head.bias", SAME))
    mlp = fused_mlp("mlp.fc1", "mlp.fc2") if config.encoder.gated_mlp else TIMM_MLP
    block = with_biases(TIMM_NORMS_AND_ATTENTION + TIMM_SCALES + mlp, config.encoder.biases)
    rows += block_rows("blocks", "encoder.blocks", block, config.encoder.depth)
    return (Table(tuple(rows), {}),)


def parse(source: Source) -> Parsed:
    """The config of a DINOv2 from timm's `config.json`, or from the shapes of the tensors.

    Raises:
      ConversionError: a value that is not of its type, or a model that computes anything else.
    """
    guesses = Guesses(source.given)
    values = config_of(source.tensors, guesses) if source.config is None else source.config
    match = NAMES.match(values.get("architecture"))
    whole, args, num_classes = open_config(values, _defaults(match))
    num_registers = args.integer("reg_tokens", most=2**20)
    args.fix(
        class_token=True,
        no_embed_class=bool(num_registers),
        pool_include_prefix=False,
        global_pool="token",
        fc_norm=None,
        act_layer=None,
        mlp_layer=None,
    )
    whole.fix(global_pool="token")
    args.number("init_values", least=0, most=1e3)  # without, there is no LayerScale
    height, width = args.sides("img_size")
    config = DINOv2Config(
        height,
        args.side("patch_size"),
        "bicubic_antialias",
        num_registers,
        _encoder(args, gated=match["size"] == "giant"),
        num_classes,
        width,
    )
    args.refuse_unknown()
    return Parsed(config, whole.unknown(), tuple(guesses.made))


def _defaults(match):
    """The arguments with which timm builds the architecture of this name."""
    return {
        **sizes(*_SIZES[match["size"]]),
        "img_size": 518,
        "patch_size": 14,
        "init_values": 1e-5,
        "qkv_bias": True,
        "reg_tokens": 4 if match["registers"] else 0,
    }


def _encoder(args, *, gated):
    encoder = encoder_of(
        args,
        "silu" if gated else "gelu",
        _EPSILON,
        biases="qkv" if args.flag("qkv_bias") else "",
        gated_mlp=gated,
        layer_scale=True,
    )
    return dataclasses.replace(encoder, mlp_dim=encoder.mlp_dim // 2) if gated else encoder


def config_of(tensors, guesses: Guesses) -> dict:
    """What timm's `config.json` would say of tensors that came without one.

    Raises:
      ConversionError: shapes that no DINOv2 has.
    """
    width, _, patch_size, _ = shape_of(tensors, "patch_embed.proj.weight", 4)
    num_positions = shape_of(tensors, "pos_embed", 3)[1]
    num_registers = shape_of(tensors, "reg_token", 3)[1] if "reg_token" in tensors else 0
    mlp_dim, _ = shape_of(tensors, "blocks.0.mlp.fc1.weight", 2)
    gated = mlp_dim == 2 * shape_of(tensors, "blocks.0.mlp.fc2.weight", 2)[1]
    if not num_registers and math.isqrt(num_positions) ** 2 == num_positions:
        raise ConversionError(
            f"pos_embed has {num_positions} positions, those of patches alone, and none of the "
            "class token as DINOv2 without registers has: these may be of DeiT III, which is not "
            "read; if they are not, --config FILE says of what they are"
        )
    heads = guesses.heads_of_64("heads", width, "all DINOv2")
    grid = guesses.patch_grid(num_positions if num_registers else max(num_positions - 1, 0))
    registers = "_reg4" if num_registers else ""
    return {
        "architecture": f"vit_{'giant' if gated else 'small'}_patch14{registers}_dinov2",
        "num_classes": classes_of(tensors),
        "model_args": {
            "img_size": [patches * patch_size for patches in grid],
            "patch_size": patch_size,
            "embed_dim": width,
            "depth": sum(name.endswith(".ls1.gamma") for name in tensors),
            "num_heads": heads,
            "mlp_ratio": mlp_ratio(mlp_dim, width),
            "reg_tokens": num_registers,
        },
    }


def _has_keys(names):
    own = ("cls_token", "pos_embed", "norm.weight", "blocks.0.ls1.gamma")
    others = ("mask_token", "register_tokens", "storage_tokens")  # of the authors
    return all(name in names for name in own) and not any(name in names for name in others)


LAYOUT = Layout(
    family="dinov2",
    library="timm",
    describes=of_kind("dinov2"),
    has_keys=_has_keys,
    parse=parse,
    tables=tables,
    needs_config=False,
)
