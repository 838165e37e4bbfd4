"""ViT and MAE as Hugging Face's transformers, 4 and 5, writes them, or 5 has them in memory."""

from convert import mae
from convert.fields import Fields
from convert.layout import Layout, Parsed, Source, of_model_type
from convert.rows import (
    HF_DINO_ATTENTION,
    HF_VIT_ATTENTION,
    HF_VIT_HEAD,
    TIMM_MLP,
    block_rows,
    with_biases,
)
from convert.table import BATCHED, CONVOLUTION, LINEAR, SAME, Row, Table
from convert.tensors import shape_of
from models.plain_vit import ViTConfig

_REFUSED = {
    "deit": "its distillation token has no place in the family vit; the DeiT without distillation "
    "are plain ViTs, as facebook/deit-base-patch16-224 is",
    "vit_hybrid": "a convolutional network makes its patches",
    "vit_msn": "none of its checkpoints was compared; the tensors are those of a ViT, which "
    'model_type "vit" reads',
    "vitdet": "it attends within windows",
    "ijepa": "take I-JEPA in timm's layout, vit_huge_patch14_gap_224",
    "beit": "it adds relative positions to its attention",
    "data2vec-vision": "it adds relative positions to its attention",
}

# The documented defaults that ViTConfig and ViTMAEConfig share.
_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "qkv_bias": True,
}
_IRRELEVANT = (
    "encoder_stride",
    "pooler_output_size",
    "pooler_act",
    "mask_ratio",
    "norm_pix_loss",
    "decoder_num_attention_heads",
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_intermediate_size",
)

_NORMS = (
    ("layernorm_before.weight", "norm1.scale", SAME),
    ("layernorm_before.bias", "norm1.bias", SAME),
    ("layernorm_after.weight", "norm2.scale", SAME),
    ("layernorm_after.bias", "norm2.bias", SAME),
)
_BLOCK = (
    *_NORMS,
    *HF_VIT_ATTENTION,
    ("intermediate.dense.weight", "mlp.fc1.kernel", LINEAR),
    ("intermediate.dense.bias", "mlp.fc1.bias", SAME),
    ("output.dense.weight", "mlp.fc2.kernel", LINEAR),
    ("output.dense.bias", "mlp.fc2.bias", SAME),
)
_BLOCK_IN_MEMORY = _NORMS + HF_DINO_ATTENTION + TIMM_MLP  # in version 5: what training saves
_REST = (
    ("embeddings.cls_token", "class_token", BATCHED),
    ("embeddings.position_embeddings", "positions", BATCHED),
    ("embeddings.patch_embeddings.projection.weight", "patch_embedding.conv.kernel", CONVOLUTION),
    ("embeddings.patch_embeddings.projection.bias", "patch_embedding.conv.bias", SAME),
    ("layernorm.weight", "norm.scale", SAME),
    ("layernorm.bias", "norm.bias", SAME),
)

_POOLER = "a layer and tanh on the class token, which no classifier of transformers uses"
_MASK = "stands for masked patches in pretraining"
_PIXELS = "the last layer of ViTForMaskedImageModeling, which reconstructs pixels in pretraining"
_DECODERS = dict.fromkeys(("decoder.0.weight", "decoder.0.bias"), _PIXELS) | {
    f"decoder.{name}": why
    for blocks, block in (
        ("decoder_layers", _BLOCK),  # of transformers 4
        ("decoder_encoder.layer", _BLOCK),  # of 5
        ("decoder_layers", _BLOCK_IN_MEMORY),
    )
    for name, why in mae.decoder(blocks, block).items()
}


def tables(config: ViTConfig) -> tuple[Table, ...]:
    """The key layouts: the backbone under `vit.` with what stands on it, or alone.

    As published, and with the names that version 5 has in memory.
    """

    def table(prefix, blocks="encoder.layer", block=_BLOCK):
        rows = [Row(f"{prefix}{source}", *row) for source, *row in _REST]
        block = with_biases(block, config.encoder.biases)
        rows += block_rows(f"{prefix}{blocks}", "encoder.blocks", block, config.encoder.depth)
        ignored = _DECODERS | {f"{prefix}embeddings.mask_token": _MASK}
        ignored |= {f"{prefix}pooler.dense.{leaf}": _POOLER for leaf in ("weight", "bias")}
        return Table((*rows, *(HF_VIT_HEAD if config.num_classes else ())), ignored)

    published = table("vit."), table("")
    return *published, *(table(prefix, "layers", _BLOCK_IN_MEMORY) for prefix in ("vit.", ""))


def parse(source: Source) -> Parsed:
    """The config of a ViT from its `config.json`, the classes from the classifier's tensor.

    Raises:
      ConversionError: a value that is not of its type, or that the model does not support.
    """
    fields = Fields("config.json", source.config, _DEFAULTS)
    fields.fix(num_channels=3)
    fields.ignore(*_IRRELEVANT)
    has_head = "classifier.weight" in source.tensors
    config = ViTConfig(
        fields.side("image_size"),
        fields.side("patch_size"),
        "bicubic",
        fields.encoder(biases="qkv" if fields.flag("qkv_bias") else ""),
        num_classes=shape_of(source.tensors, "classifier.weight", 2)[0] if has_head else 0,
    )
    return Parsed(config, fields.unknown())


def _has_keys(names):
    return any(
        f"{prefix}{blocks}.0.layernorm_before.weight" in names
        for prefix in ("", "vit.")
        for blocks in ("encoder.layer", "layers")
    )


LAYOUT = Layout(
    family="vit",
    library="transformers",
    describes=of_model_type("vit", "vit_mae"),
    has_keys=_has_keys,
    parse=parse,
    tables=tables,
    refused=_REFUSED,
)
