"""The rows of a transformer block in the layouts that several families share."""

from convert.table import (
    BATCHED,
    CONVOLUTION,
    FLAT,
    LINEAR,
    MERGE_HEADS,
    SAME,
    SPLIT_HEADS,
    Row,
    Table,
    part,
)

QKV = ("query", "key", "value")


def fused_qkv(source, target):
    """The rows of query, key and value in one tensor of weights and one of biases.

    Their names are `source` with "weight" and "bias" appended.
    """
    return tuple(
        row
        for i, name in enumerate(QKV)
        for row in (
            (f"{source}weight", f"{target}.{name}.kernel", part(SPLIT_HEADS, i, 3)),
            (f"{source}bias", f"{target}.{name}.bias", part(FLAT, i, 3)),
        )
    )


def gated_mlp(gate, first, out):
    """The rows of a gated MLP whose layers have these names."""
    layers = (gate, "gate"), (first, "fc1"), (out, "fc2")
    return tuple(
        row
        for source, target in layers
        for row in (
            (f"{source}.weight", f"mlp.{target}.kernel", LINEAR),
            (f"{source}.bias", f"mlp.{target}.bias", SAME),
        )
    )


# CLIP and SigLIP in transformers.
HF_CLIP_BLOCK = (
    ("layer_norm1.weight", "norm1.scale", SAME),
    ("layer_norm1.bias", "norm1.bias", SAME),
    ("self_attn.q_proj.weight", "attention.query.kernel", SPLIT_HEADS),
    ("self_attn.q_proj.bias", "attention.query.bias", FLAT),
    ("self_attn.k_proj.weight", "attention.key.kernel", SPLIT_HEADS),
    ("self_attn.k_proj.bias", "attention.key.bias", FLAT),
    ("self_attn.v_proj.weight", "attention.value.kernel", SPLIT_HEADS),
    ("self_attn.v_proj.bias", "attention.value.bias", FLAT),
    ("self_attn.out_proj.weight", "attention.out.kernel", MERGE_HEADS),
    ("self_attn.out_proj.bias", "attention.out.bias", SAME),
    ("layer_norm2.weight", "norm2.scale", SAME),
    ("layer_norm2.bias", "norm2.bias", SAME),
    ("mlp.fc1.weight", "mlp.fc1.kernel", LINEAR),
    ("mlp.fc1.bias", "mlp.fc1.bias", SAME),
    ("mlp.fc2.weight", "mlp.fc2.kernel", LINEAR),
    ("mlp.fc2.bias", "mlp.fc2.bias", SAME),
)
_HF_CLIP_REST = (
    (
        "vision_model.embeddings.patch_embedding.weight",
        "vision.patch_embedding.conv.kernel",
        CONVOLUTION,
    ),
    ("vision_model.embeddings.position_embedding.weight", "vision.positions", SAME),
    ("vision_model.post_layernorm.weight", "vision.post_norm.scale", SAME),
    ("vision_model.post_layernorm.bias", "vision.post_norm.bias", SAME),
    ("text_model.embeddings.token_embedding.weight", "text.token_embedding.embedding", SAME),
    ("text_model.embeddings.position_embedding.weight", "text.positions", SAME),
    ("text_model.final_layer_norm.weight", "text.final_norm.scale", SAME),
    ("text_model.final_layer_norm.bias", "text.final_norm.bias", SAME),
)
_BUFFER = "a buffer of older versions: 0, 1, 2, …, not a weight"
# ViT and DINOv2 in transformers.
HF_VIT_ATTENTION = (
    ("attention.attention.query.weight", "attention.query.kernel", SPLIT_HEADS),
    ("attention.attention.query.bias", "attention.query.bias", FLAT),
    ("attention.attention.key.weight", "attention.key.kernel", SPLIT_HEADS),
    ("attention.attention.key.bias", "attention.key.bias", FLAT),
    ("attention.attention.value.weight", "attention.value.kernel", SPLIT_HEADS),
    ("attention.attention.value.bias", "attention.value.bias", FLAT),
    ("attention.output.dense.weight", "attention.out.kernel", MERGE_HEADS),
    ("attention.output.dense.bias", "attention.out.bias", SAME),
)
HF_VIT_HEAD = (
    Row("classifier.weight", "head.kernel", LINEAR),
    Row("classifier.bias", "head.bias", SAME),
)
# timm's ViT and the original DINOv2.
TIMM_NORMS_AND_ATTENTION = (
    ("norm1.weight", "norm1.scale", SAME),
    ("norm1.bias", "norm1.bias", SAME),
    *fused_qkv("attn.qkv.", "attention"),
    ("attn.proj.weight", "attention.out.kernel", MERGE_HEADS),
    ("attn.proj.bias", "attention.out.bias", SAME),
    ("norm2.weight", "norm2.scale", SAME),
    ("norm2.bias", "norm2.bias", SAME),
)
TIMM_MLP = (
    ("mlp.fc1.weight", "mlp.fc1.kernel", LINEAR),
    ("mlp.fc1.bias", "mlp.fc1.bias", SAME),
    ("mlp.fc2.weight", "mlp.fc2.kernel", LINEAR),
    ("mlp.fc2.bias", "mlp.fc2.bias", SAME),
)
# What is outside the blocks: of all, and of DINO beside positions and registers.
TIMM_PATCHES = (
    ("patch_embed.proj.weight", "patch_embedding.conv.kernel", CONVOLUTION),
    ("patch_embed.proj.bias", "patch_embedding.conv.bias", SAME),
)
TIMM_DINO_REST = (
    ("cls_token", "class_token", BATCHED),
    *TIMM_PATCHES,
    ("norm.weight", "final_norm.scale", SAME),
    ("norm.bias", "final_norm.bias", SAME),
)
TIMM_SCALES = (("ls1.gamma", "scale1.scale", SAME), ("ls2.gamma", "scale2.scale", SAME))
# DINOv2 and DINOv3 in transformers: the norms and what follows attention and MLP.
HF_DINO_NORMS = (
    ("norm1.weight", "norm1.scale", SAME),
    ("norm1.bias", "norm1.bias", SAME),
    ("layer_scale1.lambda1", "scale1.scale", SAME),
    ("norm2.weight", "norm2.scale", SAME),
    ("norm2.bias", "norm2.bias", SAME),
    ("layer_scale2.lambda1", "scale2.scale", SAME),
)
# DINOv3, and DINOv2 where transformers 5 writes its own names rather than the published ones.
HF_DINO_ATTENTION = (
    ("attention.q_proj.weight", "attention.query.kernel", SPLIT_HEADS),
    ("attention.q_proj.bias", "attention.query.bias", FLAT),
    ("attention.k_proj.weight", "attention.key.kernel", SPLIT_HEADS),
    ("attention.k_proj.bias", "attention.key.bias", FLAT),
    ("attention.v_proj.weight", "attention.value.kernel", SPLIT_HEADS),
    ("attention.v_proj.bias", "attention.value.bias", FLAT),
    ("attention.o_proj.weight", "attention.out.kernel", MERGE_HEADS),
    ("attention.o_proj.bias", "attention.out.bias", SAME),
)
HF_DINO_MLP = (
    ("mlp.up_proj.weight", "mlp.fc1.kernel", LINEAR),
    ("mlp.up_proj.bias", "mlp.fc1.bias", SAME),
    ("mlp.down_proj.weight", "mlp.fc2.kernel", LINEAR),
    ("mlp.down_proj.bias", "mlp.fc2.bias", SAME),
)
HF_DINO_GATED_MLP = gated_mlp("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def fused_mlp(fused, out):
    """The rows of a gated MLP whose gate is the first half of one layer."""
    return (
        (f"{fused}.weight", "mlp.gate.kernel", part(LINEAR, 0, 2)),
        (f"{fused}.bias", "mlp.gate.bias", part(SAME, 0, 2)),
        (f"{fused}.weight", "mlp.fc1.kernel", part(LINEAR, 1, 2)),
        (f"{fused}.bias", "mlp.fc1.bias", part(SAME, 1, 2)),
        (f"{out}.weight", "mlp.fc2.kernel", LINEAR),
        (f"{out}.bias", "mlp.fc2.bias", SAME),
    )


def with_biases(block, biases):
    """The rows of `block` for an encoder with these `EncoderConfig.biases`."""
    absent = {f"attention.{name}.bias" for name in QKV if name[0] not in biases}
    return tuple(row for row in block if row[1] not in absent)


def block_rows(source, target, block, depth) -> tuple[Row, ...]:
    """`block`'s rows for each of `depth` blocks, whose names start `source.0.` and `target.0.`."""
    return tuple(
        Row(f"{source}.{i}.{key}", f"{target}.{i}.{leaf}", transform)
        for i in range(depth)
        for key, leaf, transform in block
    )


def two_towers(rest, config) -> Table:
    """The key table of CLIP and SigLIP in transformers: `rest`, and what both have in common."""
    towers = (("vision_model", "vision", config.vision), ("text_model", "text", config.text))
    rows = [Row(*row) for row in (*rest, *_HF_CLIP_REST)]
    for source, target, tower in towers:
        names = f"{source}.encoder.layers", f"{target}.encoder.blocks"
        rows += block_rows(*names, HF_CLIP_BLOCK, tower.encoder.depth)
    buffers = (f"{source}.embeddings.position_ids" for source, *_ in towers)
    ignored = dict.fromkeys(buffers, _BUFFER)
    return Table(tuple(rows), ignored)


def vision_tower(rest, encoder, prefix) -> Table:
    """The key table of the vision tower of `two_towers` alone, its names behind `prefix`."""
    rows = [
        Row(f"{prefix}{source.removeprefix('vision_model.')}", target.removeprefix("vision."), how)
        for source, target, how in (*rest, *_HF_CLIP_REST)
        if source.startswith("vision_model.")
    ]
    names = f"{prefix}encoder.layers", "encoder.blocks"
    rows += block_rows(*names, HF_CLIP_BLOCK, encoder.depth)
    return Table(tuple(rows), {f"{prefix}embeddings.position_ids": _BUFFER})
