"""V-JEPA 2 as Hugging Face's transformers writes it: the whole model, and its classifier."""

from convert.fields import LARGEST_DEPTH, Fields
from convert.layout import Layout, Parsed, Source, of_model_type
from convert.qwen_vision import FRAMES_CONVOLUTION
from convert.rows import HF_VIT_HEAD, QKV, TIMM_MLP, block_rows
from convert.table import BATCHED, FLAT, MERGE_HEADS, SAME, SPLIT_HEADS, Row, Table
from convert.tensors import shape_of
from models.configs import EncoderConfig
from models.inputs.qwen_images import FRAMES
from models.vjepa2 import VJEPA2Config

# The documented defaults of VJEPA2Config.
_DEFAULTS = {
    "patch_size": 16,
    "crop_size": 256,
    "frames_per_clip": 64,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "mlp_ratio": 4.0,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
    "num_pooler_layers": 3,
}
_OF_PREDICTOR = (
    "pred_hidden_size",
    "pred_num_attention_heads",
    "pred_num_hidden_layers",
    "pred_num_mask_tokens",
    "pred_zero_init_mask_tokens",
    "pred_mlp_ratio",
)


def _weight_and_bias(source, target, weight=("kernel", SPLIT_HEADS), bias=FLAT):
    leaf, transform = weight
    return (
        (f"{source}.weight", f"{target}.{leaf}", transform),
        (f"{source}.bias", f"{target}.bias", bias),
    )


def _norm(source, target):
    return _weight_and_bias(source, target, ("scale", SAME), SAME)


def _projections(names, target):
    """The rows of query, key and value, whose names in the file these are."""
    pairs = zip(names, QKV, strict=True)
    return tuple(row for name, leaf in pairs for row in _weight_and_bias(name, f"{target}{leaf}"))


def _out(source):
    return _weight_and_bias(source, "attention.out", ("kernel", MERGE_HEADS), SAME)


_BLOCK = (
    *_norm("norm1", "norm1"),
    *_projections([f"attention.{name}" for name in QKV], "attention."),
    *_out("attention.proj"),
    *_norm("norm2", "norm2"),
    *TIMM_MLP,
)
_POOLER_BLOCK = (
    *_norm("layer_norm1", "norm1"),
    *_projections([f"self_attn.{name[0]}_proj" for name in QKV], "attention."),
    *_out("self_attn.out_proj"),
    *_norm("layer_norm2", "norm2"),
    *TIMM_MLP,
)
_CROSS = (
    *_norm("layer_norm1", "norm1"),
    *_projections([f"cross_attn.{name[0]}_proj" for name in QKV], ""),
    *_norm("layer_norm2", "norm2"),
    *TIMM_MLP,
)
_REST = (
    ("embeddings.patch_embeddings.proj.weight", "patch_embedding.conv.kernel", FRAMES_CONVOLUTION),
    ("embeddings.patch_embeddings.proj.bias", "patch_embedding.conv.bias", SAME),
    *_norm("layernorm", "final_norm"),
)
_PREDICTOR = "of the predictor, which trained the encoder and is not converted"


def tables(config: VJEPA2Config) -> tuple[Table, ...]:
    """The key layouts: of the whole model, and of one with a classifier."""
    prefix = "vjepa2." if config.num_classes else ""
    rows = [Row(f"{prefix}encoder.{source}", *row) for source, *row in _REST]
    rows += block_rows(f"{prefix}encoder.layer", "encoder.blocks", _BLOCK, config.encoder.depth)
    if config.num_classes:
        rows += [Row("pooler.query_tokens", "pooler.probe", BATCHED), *HF_VIT_HEAD]
        cross = "pooler.cross_attention_layer"
        rows += [Row(f"{cross}.{source}", f"pooler.{leaf}", how) for source, leaf, how in _CROSS]
        blocks = "pooler.self_attention_layers", "pooler.blocks"
        rows += block_rows(*blocks, _POOLER_BLOCK, config.pooler_depth)
    return (Table(tuple(rows), _predictor(f"{prefix}predictor.")),)


def _predictor(prefix):
    """The predictor's tensors, of a depth that the encoder does not know, and what they are."""
    names = ["embeddings.mask_tokens"]
    for layer in ("embeddings.predictor_embeddings", "layernorm", "proj"):
        names += [f"{layer}.weight", f"{layer}.bias"]
    names += [f"layer.{i}.{name}" for i in range(LARGEST_DEPTH) for name, *_ in _BLOCK]
    return dict.fromkeys((f"{prefix}{name}" for name in names), _PREDICTOR)


def parse(source: Source) -> Parsed:
    """The config from a `config.json`, the classes from the classifier's tensor.

    Raises:
      ConversionError: a value that is not of its type, or that the model does not support.
    """
    fields = Fields("config.json", source.config, _DEFAULTS)
    fields.fix(in_chans=3, tubelet_size=FRAMES, qkv_bias=True)
    fields.ignore(*_OF_PREDICTOR)
    width = fields.size("hidden_size")
    encoder = EncoderConfig(
        width,
        fields.depth("num_hidden_layers"),
        fields.size("num_attention_heads"),
        fields.mlp_dim(width),
        fields.activation("hidden_act"),
        fields.epsilon("layer_norm_eps"),
    )
    has_head = "classifier.weight" in source.tensors
    config = VJEPA2Config(
        fields.side("crop_size"),
        fields.side("patch_size"),
        fields.size("frames_per_clip"),
        encoder,
        shape_of(source.tensors, "classifier.weight", 2)[0] if has_head else 0,
        fields.depth("num_pooler_layers"),
    )
    return Parsed(config, fields.unknown())


LAYOUT = Layout(
    family="vjepa2",
    library="transformers",
    describes=of_model_type("vjepa2"),
    has_keys=lambda names: any(
        f"{prefix}encoder.embeddings.patch_embeddings.proj.weight" in names
        for prefix in ("", "vjepa2.")
    ),
    parse=parse,
    tables=tables,
)
