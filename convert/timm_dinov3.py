"""DINOv3 (ViT) as timm writes it: `config.json` and key table."""

import re

from convert.fields import Fields
from convert.guesses import Guesses
from convert.layout import Layout, Parsed, Source
from convert.rows import (
    QKV,
    TIMM_DINO_REST,
    TIMM_MLP,
    TIMM_NORMS_AND_ATTENTION,
    block_rows,
    gated_mlp,
    with_biases,
)
from convert.table import BATCHED, FLAT, SAME, Row, Table
from convert.tensors import shape_of
from convert.timm_fields import (
    BOOKKEEPING,
    DROPPED,
    Names,
    classes_of,
    encoder_of,
    mlp_ratio,
    of_kind,
    sizes,
)
from models.dinov3 import DINOv3Config

_EPSILON = 1e-5  # of all; timm has no field for it
NAMES = Names(
    re.compile(
        r"(?P<today>vit_(?P<size>tiny|small|small_plus|base|large|huge_plus|7b)_patch16_dinov3"
        r"(?P<biases>_qkvb)?)(\.\w+)?"
    ),
    "of DINOv3 in timm, such as vit_small_patch16_dinov3 or vit_huge_plus_patch16_dinov3_qkvb",
)
_SIZES = {  # width, blocks, heads, MLP ratio, whether gated
    "tiny": (192, 12, 3, 4.0, False),
    "small": (384, 12, 6, 4.0, False),
    "small_plus": (384, 12, 6, 4.0, True),
    "base": (768, 12, 12, 4.0, False),
    "large": (1024, 24, 16, 4.0, False),
    "huge_plus": (1280, 32, 20, 4.0, True),
    "7b": (4096, 40, 32, 2.0, True),
}
_THETA = 100.0

# Arguments of timm's Eva that change the computation, and their only values here.
_FIXED = dict(
    in_chans=3,
    num_kv_heads=None,
    qkv_fused=True,
    qk_norm=False,
    swiglu_align_to=0,
    scale_mlp=False,
    scale_attn_inner=False,
    attn_type="eva",
    norm_layer=None,
    attn_only_layer_scale=False,
    class_token=True,
    use_abs_pos_emb=False,
    use_rot_pos_emb=True,
    rope_type="dinov3",
    rope_grid_offset=0.0,
    rope_grid_indexing="ij",
    rope_rotate_half=True,
    rope_mrope_section=None,
    use_post_norm=False,
    use_pre_transformer_norm=False,
    use_post_transformer_norm=None,
    use_fc_norm=False,
    ref_feat_shape=None,
)
_IRRELEVANT = (
    *("rope_shift_coords", "rope_jitter_coords", "rope_rescale_coords"),  # in training only
    *("head_init_scale", "attn_pool_num_heads", "attn_pool_mlp_ratio"),
    "no_embed_class",
    "global_pool",  # of timm, which pools the patches; here it is the class token, as in training
)

_REST = (*TIMM_DINO_REST, ("reg_token", "registers", BATCHED))
_BLOCK = (
    *with_biases(TIMM_NORMS_AND_ATTENTION, ""),
    *((f"attn.{name[0]}_bias", f"attention.{name}.bias", FLAT) for name in QKV),
    ("gamma_1", "scale1.scale", SAME),
    ("gamma_2", "scale2.scale", SAME),
)


def tables(config: DINOv3Config) -> tuple[Table, ...]:
    """The one key layout."""
    encoder = config.encoder
    mlp = gated_mlp("mlp.fc1_g", "mlp.fc1_x", "mlp.fc2") if encoder.gated_mlp else TIMM_MLP
    block = with_biases(_BLOCK, encoder.biases) + mlp
    rest = (Row(*row) for row in _REST)
    return (Table((*rest, *block_rows("blocks", "encoder.blocks", block, encoder.depth)), {}),)


def parse(source: Source) -> Parsed:
    """The config of a DINOv3 from timm's `config.json`, or from the shapes of the tensors.

    Raises:
      ConversionError: a value that is not of its type, or a model that computes anything else.
    """
    guesses = Guesses(source.given)
    values = config_of(source.tensors, guesses) if source.config is None else source.config
    whole = Fields("config.json", values, {})
    whole.ignore(*BOOKKEEPING, "global_pool")
    args = whole.section("model_args", _defaults(NAMES.match(values.get("architecture"))))
    whole.fix(num_classes=0)
    args.fix(num_classes=0, **_FIXED)
    args.ignore(*DROPPED, *_IRRELEVANT)
    args.number("init_values", least=0, most=1e3)  # without, there is no LayerScale
    height, width = args.sides("img_size")
    config = DINOv3Config(
        height,
        args.side("patch_size"),
        args.size("num_reg_tokens"),
        float(args.number("rope_temperature", least=1, most=1e9)),
        _encoder(args),
        width,
    )
    args.refuse_unknown()
    return Parsed(config, whole.unknown(), tuple(guesses.made))


def _defaults(match):
    """The arguments with which timm builds the architecture of this name."""
    *own, gated = _SIZES[match["size"]]
    return {
        **sizes(*own),
        "img_size": 256,
        "patch_size": 16,
        "swiglu_mlp": gated,
        "qkv_bias": match["biases"] is not None,
        "num_reg_tokens": 4,
        "init_values": 1e-5,
        "rope_temperature": _THETA,
    }


def _encoder(args):
    gated = args.flag("swiglu_mlp")
    return encoder_of(
        args,
        "silu" if gated else "gelu",
        _EPSILON,
        biases="qv" if args.flag("qkv_bias") else "",
        gated_mlp=gated,
        layer_scale=True,
    )


def config_of(tensors, guesses: Guesses) -> dict:
    """What timm's `config.json` would say of tensors that came without one.

    Raises:
      ConversionError: shapes that no DINOv3 has.
    """
    width, _, patch_size, _ = shape_of(tensors, "patch_embed.proj.weight", 4)
    gated = "blocks.0.mlp.fc1_g.weight" in tensors
    mlp_dim, _ = shape_of(tensors, f"blocks.0.mlp.{'fc1_g' if gated else 'fc1'}.weight", 2)
    heads_of = {size[0]: size[2] for size in _SIZES.values()}
    reason = f"the width {width}, as in all DINOv3"
    return {
        "architecture": f"vit_small{'_plus' * gated}_patch16_dinov3",
        "num_classes": classes_of(tensors),
        "model_args": {
            "img_size": 16 * patch_size,  # nothing depends on it
            "patch_size": patch_size,
            "embed_dim": width,
            "depth": sum(name.endswith(".gamma_1") for name in tensors),
            "num_heads": guesses.heads("heads", width, heads_of.get(width, 0), reason),
            "mlp_ratio": mlp_ratio(mlp_dim, width),
            "qkv_bias": "blocks.0.attn.q_bias" in tensors,
            "num_reg_tokens": shape_of(tensors, "reg_token", 3)[1],
        },
    }


def _has_keys(names):
    own = ("cls_token", "reg_token", "blocks.0.gamma_1", "blocks.0.attn.qkv.weight")
    return all(name in names for name in own) and "pos_embed" not in names


LAYOUT = Layout(
    family="dinov3",
    library="timm",
    describes=of_kind("dinov3"),
    has_keys=_has_keys,
    parse=parse,
    tables=tables,
    needs_config=False,
)
