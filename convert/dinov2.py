"""DINOv2 as transformers and as its authors publish it: `config.json` and key tables."""

from convert.fields import Fields
from convert.guesses import Guesses
from convert.layout import Layout, Parsed, Source, of_model_type
from convert.rows import (
    HF_DINO_ATTENTION,
    HF_DINO_GATED_MLP,
    HF_DINO_NORMS,
    HF_VIT_ATTENTION,
    HF_VIT_HEAD,
    TIMM_DINO_REST,
    TIMM_MLP,
    TIMM_NORMS_AND_ATTENTION,
    TIMM_SCALES,
    block_rows,
    fused_mlp,
    with_biases,
)
from convert.table import BATCHED, CONVOLUTION, SAME, Row, Table
from convert.tensors import shape_of
from models.configs import EncoderConfig
from models.dinov2 import DINOv2Config, swiglu_dim

# The documented defaults of Dinov2Config and of Dinov2WithRegistersConfig.
_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 224,
    "patch_size": 14,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
}
_REGISTERS_DEFAULTS = _DEFAULTS | {"patch_size": 16, "num_register_tokens": 4}
_MASK = "stands for masked patches in training"

_HF_REST = (
    ("embeddings.cls_token", "class_token", BATCHED),
    ("embeddings.register_tokens", "registers", BATCHED),
    ("embeddings.position_embeddings", "positions", BATCHED),
    ("embeddings.patch_embeddings.projection.weight", "patch_embedding.conv.kernel", CONVOLUTION),
    ("embeddings.patch_embeddings.projection.bias", "patch_embedding.conv.bias", SAME),
    ("layernorm.weight", "final_norm.scale", SAME),
    ("layernorm.bias", "final_norm.bias", SAME),
)
_ORIGINAL_REST = (
    *TIMM_DINO_REST,
    ("register_tokens", "registers", BATCHED),
    ("pos_embed", "positions", BATCHED),
)


def tables(config: DINOv2Config) -> tuple[Table, ...]:
    """The key layouts of transformers: as published, and with the names that version 5 uses.

    Version 5.23.0 writes the first too, unless called with `save_original_format=False`.
    """
    mlp = published_mlp = TIMM_MLP
    if config.encoder.gated_mlp:
        mlp, published_mlp = HF_DINO_GATED_MLP, fused_mlp("mlp.weights_in", "mlp.weights_out")

    prefix, head = "", ()
    if config.num_classes:
        prefix = "dinov2_with_registers." if config.num_registers else "dinov2."
        head = HF_VIT_HEAD

    def table(attention, mlp):
        block = with_biases(HF_DINO_NORMS + attention + mlp, config.encoder.biases)
        rows = _rows(config, _HF_REST, "encoder.layer", block, prefix)
        return Table((*rows, *head), {f"{prefix}embeddings.mask_token": _MASK})

    return table(HF_VIT_ATTENTION, published_mlp), table(HF_DINO_ATTENTION, mlp)


def original_tables(config: DINOv2Config) -> tuple[Table, ...]:
    """The key layout of the authors' `.pth` files."""
    mlp = fused_mlp("mlp.w12", "mlp.w3") if config.encoder.gated_mlp else TIMM_MLP
    block = TIMM_NORMS_AND_ATTENTION + TIMM_SCALES + mlp
    return (Table(_rows(config, _ORIGINAL_REST, "blocks", block), {"mask_token": _MASK}),)


def _rows(config, rest, blocks, block, prefix=""):
    return (
        *(
            Row(f"{prefix}{source}", target, transform)
            for source, target, transform in rest
            if target != "registers" or config.num_registers
        ),
        *block_rows(f"{prefix}{blocks}", "encoder.blocks", block, config.encoder.depth),
    )


def parse(source: Source) -> Parsed:
    """The config of a model or a classifier of transformers from its `config.json`.

    Raises:
      ConversionError: a value that is not of its type, or that the model does not support.
    """
    with_registers = source.config.get("model_type") == "dinov2_with_registers"
    defaults = _REGISTERS_DEFAULTS if with_registers else _DEFAULTS
    fields = Fields("config.json", source.config, defaults)
    if with_registers:
        num_registers = fields.size("num_register_tokens")
    else:
        num_registers = 0
        fields.fix(num_register_tokens=0)
    position_resize = "bicubic_antialias" if with_registers else "bicubic"
    has_head = "classifier.weight" in source.tensors
    num_classes = shape_of(source.tensors, "classifier.weight", 2)[0] if has_head else 0
    image_shape = fields.side("image_size"), None
    config = config_of(fields, image_shape, num_registers, position_resize, num_classes)
    return Parsed(config, fields.unknown())


def config_of(
    fields: Fields, image_shape, num_registers, position_resize, num_classes=0
) -> DINOv2Config:
    """The config of fields named as in transformers' `config.json`, of images of that shape.

    Args:
      fields: of the model.
      image_shape: height and width, None where it is the same, in pixels.
      num_registers, position_resize, num_classes: as in `DINOv2Config`.

    Raises:
      ConversionError: a value that is not of its type, or that the model does not support.
    """
    height, width = image_shape
    fields.fix(num_channels=3)
    fields.ignore("use_mask_token")
    channels = fields.size("hidden_size")
    ratio = fields.number("mlp_ratio", least=0.01, most=100)
    gated = fields.flag("use_swiglu_ffn")
    activation = fields.activation("hidden_act")
    encoder = EncoderConfig(
        channels,
        fields.depth("num_hidden_layers"),
        fields.size("num_attention_heads"),
        swiglu_dim(channels, ratio) if gated else int(channels * ratio),
        "silu" if gated else activation,  # transformers has silu there whatever the field says
        fields.epsilon("layer_norm_eps"),
        biases="qkv" if fields.flag("qkv_bias") else "",
        gated_mlp=gated,
        layer_scale=True,
    )
    return DINOv2Config(
        height,
        fields.side("patch_size"),
        position_resize,
        num_registers,
        encoder,
        num_classes,
        width,
    )


def parse_original(source: Source) -> Parsed:
    """The config of the authors' model from the shapes.

    Raises:
      ConversionError: shapes that no DINOv2 of the authors has.
    """
    width, _, patch_size, _ = shape_of(source.tensors, "patch_embed.proj.weight", 4)
    num_positions = shape_of(source.tensors, "pos_embed", 3)[1]
    has_registers = "register_tokens" in source.tensors
    num_registers = shape_of(source.tensors, "register_tokens", 3)[1] if has_registers else 0
    guesses = Guesses(source.given)
    heads = guesses.heads_of_64("heads", width, "all of the authors'")
    grid = guesses.patch_grid(max(num_positions - 1, 0))
    values = {
        "hidden_size": width,
        "num_hidden_layers": sum(name.endswith(".ls1.gamma") for name in source.tensors),
        "num_attention_heads": heads,
        "image_size": [patches * patch_size for patches in grid],
        "patch_size": patch_size,
        "use_swiglu_ffn": "blocks.0.mlp.w12.weight" in source.tensors,
    }
    fields = Fields("shapes", values, _DEFAULTS)
    position_resize = "bicubic_antialias" if num_registers else "bicubic_offset"
    config = config_of(fields, fields.sides("image_size"), num_registers, position_resize)
    return Parsed(config, [], tuple(guesses.made))


LAYOUT = Layout(
    family="dinov2",
    library="transformers",
    describes=of_model_type("dinov2", "dinov2_with_registers"),
    has_keys=lambda names: any(
        f"{prefix}encoder.layer.0.layer_scale1.lambda1" in names
        for prefix in ("", "dinov2.", "dinov2_with_registers.")
    ),
    parse=parse,
    tables=tables,
)
ORIGINAL = Layout(
    family="dinov2",
    library="original",
    has_keys=lambda names: {"pos_embed", "mask_token", "blocks.0.ls1.gamma"} <= set(names),
    parse=parse_original,
    tables=original_tables,
    needs_config=False,
)
