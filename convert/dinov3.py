"""DINOv3 as Hugging Face's transformers writes it: `config.json` and key tables."""

from convert.fields import Fields
from convert.layout import Layout, Parsed, of_model_type
from convert.rows import (
    HF_DINO_ATTENTION,
    HF_DINO_GATED_MLP,
    HF_DINO_MLP,
    HF_DINO_NORMS,
    QKV,
    block_rows,
    with_biases,
)
from convert.table import BATCHED, CONVOLUTION, SAME, Row, Table
from models.dinov3 import DINOv3Config

# The documented defaults of DINOv3ViTConfig.
_DEFAULTS = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "rope_theta": 100.0,
    "image_size": 224,
    "patch_size": 16,
    "query_bias": True,
    "key_bias": False,
    "value_bias": True,
    "use_gated_mlp": False,
    "num_register_tokens": 0,
}
_AUGMENTATION = ("pos_embed_jitter", "pos_embed_rescale", "pos_embed_shift")  # in training only
_REGISTERS = "embeddings.register_tokens"
_REST = (
    ("embeddings.cls_token", "class_token", BATCHED),
    ("embeddings.patch_embeddings.weight", "patch_embedding.conv.kernel", CONVOLUTION),
    ("embeddings.patch_embeddings.bias", "patch_embedding.conv.bias", SAME),
    ("norm.weight", "final_norm.scale", SAME),
    ("norm.bias", "final_norm.bias", SAME),
)
_IGNORED = {"embeddings.mask_token": "stands for masked patches in training"}


def tables(config: DINOv3Config) -> tuple[Table, ...]:
    """The key layouts: as published, and with the prefix that transformers 5 uses.

    Version 5.23.0 writes the first too, unless called with `save_original_format=False`.
    """
    encoder = config.encoder
    mlp = HF_DINO_GATED_MLP if encoder.gated_mlp else HF_DINO_MLP
    block = with_biases(HF_DINO_NORMS + HF_DINO_ATTENTION + mlp, encoder.biases)
    rest, ignored = [Row(*row) for row in _REST], dict(_IGNORED)
    if config.num_registers:
        rest.append(Row(_REGISTERS, "registers", BATCHED))
    else:
        ignored[_REGISTERS] = "empty"
    return tuple(
        Table((*rest, *block_rows(layer, "encoder.blocks", block, encoder.depth)), ignored)
        for layer in ("layer", "model.layer")
    )


def parse_config(values: dict) -> Parsed:
    """The config of a DINOv3ViTModel from its `config.json`.

    Raises:
      ConversionError: a value that is not of its type, or that the model does not support.
    """
    fields = Fields("config.json", values, _DEFAULTS)
    fields.fix(num_channels=3, proj_bias=True, mlp_bias=True, rope_scaling=None)
    fields.ignore(*_AUGMENTATION)
    encoder = fields.encoder(
        biases="".join(name[0] for name in QKV if fields.flag(f"{name}_bias")),
        gated_mlp=fields.flag("use_gated_mlp"),
        layer_scale=True,
    )
    theta = float(fields.number("rope_theta", least=1, most=1e9))
    # Other models of transformers 5 read theta here; DINOv3, in 5.23.0, from `rope_theta` alone.
    rope = fields.section("rope_parameters", {})
    rope.fix(rope_type="default", rope_theta=theta)
    rope.refuse_unknown()
    config = DINOv3Config(
        fields.side("image_size"),
        fields.side("patch_size"),
        fields.integer("num_register_tokens", most=2**20),
        theta,
        encoder,
    )
    return Parsed(config, fields.unknown())


LAYOUT = Layout(
    family="dinov3",
    library="transformers",
    describes=of_model_type("dinov3_vit"),
    has_keys=lambda names: (
        "embeddings.register_tokens" in names
        and any(f"{x}layer.0.layer_scale1.lambda1" in names for x in ("", "model."))
    ),
    parse=lambda source: parse_config(source.config),
    tables=tables,
    refused={"dinov3_convnext": "the convolutional DINOv3 has no attention"},
)
