"""Llama, Mistral, Qwen2 and Qwen3 as Hugging Face's transformers writes them."""

from convert.errors import ConversionError, show
from convert.fields import Fields
from convert.layout import Layout, Parsed, of_model_type
from convert.rows import QKV, block_rows
from convert.table import FLAT, LINEAR, MERGE_HEADS, SAME, SPLIT_HEADS, Row, Table
from models.decoder import DecoderConfig
from models.rope import UNSCALED, RopeScaling

# The documented defaults of LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config and
# Qwen3VLTextConfig: a config.json, or the text_config of a larger model, leaves out what equals
# them.
_LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,  # as many as heads
    "head_dim": None,  # of the width
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "max_sequence_length": None,  # of Vicuna, where it is longer
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "sliding_window": None,
}
_MISTRAL = _LLAMA | {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
_QWEN2 = _LLAMA | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}
DEFAULTS = {
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "qwen2": _QWEN2,
    "qwen3": _QWEN2 | {"head_dim": 128},
}
PLACED = {  # language models whose tokens have places in images
    "qwen3_vl_text": _QWEN2
    | {"head_dim": 128, "max_position_embeddings": 128000, "rope_theta": 5e5},
}
_EXPERTS = "a mixture of experts; take a dense model of the family"
_REFUSED = {"mixtral": _EXPERTS, "qwen2_moe": _EXPERTS, "qwen3_moe": _EXPERTS}

_BLOCK = (
    ("input_layernorm.weight", "norm1.scale", SAME),
    ("self_attn.q_proj.weight", "attention.query.kernel", SPLIT_HEADS),
    ("self_attn.k_proj.weight", "attention.key.kernel", SPLIT_HEADS),
    ("self_attn.v_proj.weight", "attention.value.kernel", SPLIT_HEADS),
    ("self_attn.o_proj.weight", "attention.out.kernel", MERGE_HEADS),
    ("post_attention_layernorm.weight", "norm2.scale", SAME),
    ("mlp.gate_proj.weight", "mlp.gate.kernel", LINEAR),
    ("mlp.up_proj.weight", "mlp.fc1.kernel", LINEAR),
    ("mlp.down_proj.weight", "mlp.fc2.kernel", LINEAR),
)
_BIASES = tuple((f"self_attn.{name[0]}_proj.bias", f"attention.{name}.bias", FLAT) for name in QKV)
_HEAD_NORMS = (
    ("self_attn.q_norm.weight", "attention.query_norm.scale", SAME),
    ("self_attn.k_norm.weight", "attention.key_norm.scale", SAME),
)
_BUFFER = "a buffer of older versions, which follows from the config"
_TIED = "the embeddings again"


def decoder_table(config: DecoderConfig, *, model="model", head="lm_head", target="") -> Table:
    """The key table of a decoder, which may be a part of a model.

    Args:
      config: of the decoder.
      model, head: what the names of its tensors begin with.
      target: what those of its leaves begin with, as "decoder.".
    """
    block = _BLOCK + _BIASES * config.qkv_bias + _HEAD_NORMS * config.qk_norm
    rows = [
        Row(f"{model}.embed_tokens.weight", f"{target}token_embedding.embedding", SAME),
        Row(f"{model}.norm.weight", f"{target}final_norm.scale", SAME),
        *block_rows(f"{model}.layers", f"{target}blocks", block, config.depth),
    ]
    names = (f"{model}.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(config.depth))
    ignored = dict.fromkeys(names, _BUFFER)
    if config.tied_head:
        ignored[f"{head}.weight"] = _TIED
    else:
        rows.append(Row(f"{head}.weight", f"{target}head.kernel", LINEAR))
    return Table(tuple(rows), ignored)


def parse_decoder(name, values: dict, kinds=DEFAULTS) -> Parsed:
    """The config of a decoder from the object `name` of a config, which has a `model_type`.

    Args:
      name: to name it in errors.
      values: of the object.
      kinds: the defaults of the language models that it may be, by their `model_type`.

    Raises:
      ConversionError: a value that is not of its type, or that the model does not support.
    """
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in kinds:
        raise ConversionError(
            f"{name}.model_type must be one of {', '.join(kinds)}, got {show(model_type)}"
        )
    fields = Fields(name, values, kinds[model_type])
    fields.fix(attention_bias=False, mlp_bias=False, use_sliding_window=False)
    fields.fix(partial_rotary_factor=1.0)
    fields.ignore("pretraining_tp", "max_window_layers")
    width, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    depth, head_dim = fields.depth("num_hidden_layers"), fields.size_or_none("head_dim")
    if head_dim is None and width % heads:
        raise ConversionError(f"{name}.hidden_size {width} does not divide by {heads} heads")
    fields.fix(layer_types=["full_attention"] * depth)
    window = fields.size_or_none("sliding_window")
    theta, scaling, sections, unknown = _rope(fields, placed=model_type in PLACED)
    longest = fields.size("max_position_embeddings"), fields.size_or_none("max_sequence_length")
    config = DecoderConfig(
        vocab_size=fields.size("vocab_size"),
        width=width,
        depth=depth,
        num_heads=heads,
        num_kv_heads=fields.size_or_none("num_key_value_heads") or heads,
        head_dim=head_dim or width // heads,
        mlp_dim=fields.size("intermediate_size"),
        max_positions=max(longest[0], longest[1] or 0),
        rope_theta=theta,
        norm_epsilon=fields.epsilon("rms_norm_eps"),
        rope_scaling=scaling,
        qkv_bias=model_type == "qwen2",
        qk_norm=model_type in ("qwen3", "qwen3_vl_text"),
        tied_head=fields.flag("tie_word_embeddings", null=False),
        sliding_window=window if model_type == "mistral" else None,
        activation=fields.activation("hidden_act"),
        rope_sections=sections,
    )
    return Parsed(config, [*fields.unknown(), *unknown])


def _rope(fields: Fields, *, placed):
    """Theta, scaling, sections where tokens have places, and fields that nobody knows.

    Transformers 5 writes both into `rope_parameters`, and 4 the scaling into `rope_scaling`.
    """
    name = "rope_parameters" if fields.values.get("rope_parameters") else "rope_scaling"
    fields.ignore("rope_parameters", "rope_scaling")
    theta = fields.number("rope_theta", least=1, most=1e12)
    rope = fields.section(name, {"type": "default"})
    rope.ignore("type")  # of older versions
    if "rope_theta" in rope.values:
        theta = rope.number("rope_theta", least=1, most=1e12)
    named = "rope_type" if "rope_type" in rope.values else "type"
    kind = rope.choice(named, ("default", "linear", "dynamic", "llama3"))
    scaling = UNSCALED
    if kind == "linear":
        scaling = RopeScaling("linear", _factor(rope))
    elif kind == "llama3":
        scaling = RopeScaling(
            "llama3",
            _factor(rope),
            float(rope.number("low_freq_factor", least=1e-6, most=1e6)),
            float(rope.number("high_freq_factor", least=1e-6, most=1e6)),
            rope.size("original_max_position_embeddings"),
        )
    elif kind == "dynamic":  # which begins beyond max_position_embeddings, and that is refused
        _factor(rope)
    rope.ignore("original_max_position_embeddings")
    sections = _sections(rope) if placed else ()
    return float(theta), scaling, sections, rope.unknown()


def _sections(rope):
    """Of the planes of a head; DecoderConfig checks how many they are."""
    rope.ignore("mrope_section")
    rope.fix(mrope_interleaved=True)
    sections = rope.values.get("mrope_section", [24, 20, 20])
    if not isinstance(sections, list) or any(type(planes) is not int for planes in sections):
        raise ConversionError(
            f"{rope.name}.mrope_section must be a list of integers, got {show(sections)}"
        )
    return tuple(sections)


def _factor(rope):
    return float(rope.number("factor", least=1, most=1e6))


LAYOUT = Layout(
    family="decoder",
    library="transformers",
    describes=of_model_type(*DEFAULTS),
    has_keys=lambda names: "model.layers.0.mlp.gate_proj.weight" in names,
    parse=lambda source: parse_decoder("config.json", source.config),
    tables=lambda config: (decoder_table(config),),
    refused=_REFUSED,
)
