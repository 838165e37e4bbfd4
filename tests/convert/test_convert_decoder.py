"""Configs and tensors of language models: what is read, and what is refused."""

import json

import numpy as np
import pytest
import safetensors.numpy

import convert
import models
from convert.__main__ import main
from convert.hf_decoder import DEFAULTS, parse_decoder
from models.decoder import VARIANTS
from models.rope import RopeScaling
from tests import zoo


@pytest.fixture
def folder(tmp_path):
    """Writes a case with changes to its config; gives its folder."""

    def write(case, **fields):
        folder = zoo.write(case, tmp_path / "source")
        values = json.loads((folder / "config.json").read_text()) | fields
        (folder / "config.json").write_text(json.dumps(values))
        return folder

    return write


def parsed(model_type, **fields):
    config, unknown, _ = parse_decoder("config.json", {"model_type": model_type, **fields})
    assert not unknown
    return config


# As published; the fields are facts of each config.json.
LLAMA = {"hidden_size": 4096, "num_attention_heads": 32, "rms_norm_eps": 1e-5, "vocab_size": 32000}
PUBLISHED = {
    "llama-2-7b": dict(
        model_type="llama",
        **LLAMA,
        max_position_embeddings=4096,
        pretraining_tp=1,
        rope_scaling=None,
    ),
    "vicuna-7b-v1.5": dict(
        model_type="llama", **LLAMA, max_position_embeddings=4096, pad_token_id=0
    ),
    "mistral-7b-v0.1": dict(
        model_type="mistral", **LLAMA, max_position_embeddings=32768, sliding_window=4096
    ),
    "mistral-7b-v0.2": dict(
        model_type="mistral",
        **LLAMA,
        max_position_embeddings=32768,
        sliding_window=None,
        rope_theta=1e6,
    ),
    "qwen2-0.5b": dict(
        model_type="qwen2",
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=131072,
        sliding_window=131072,
        max_window_layers=24,
        use_sliding_window=False,
        rope_theta=1e6,
        tie_word_embeddings=True,
    ),
    "qwen3-0.6b": dict(
        model_type="qwen3",
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        rope_theta=1e6,
        attention_bias=False,
        tie_word_embeddings=True,
    ),
}


def test_what_is_published_is_what_the_registry_has():
    assert PUBLISHED.keys() == VARIANTS.keys()
    for name, values in PUBLISHED.items():
        assert parsed(**values) == VARIANTS[name], name


@pytest.mark.parametrize(
    "fields, scaling",
    [
        (dict(rope_scaling={"type": "linear", "factor": 4.0}), RopeScaling("linear", 4.0)),
        (dict(rope_scaling={"rope_type": "linear", "factor": 2}), RopeScaling("linear", 2.0)),
        (dict(rope_scaling={"type": "dynamic", "factor": 2.0}), RopeScaling()),
        (dict(rope_scaling={"rope_type": "default"}), RopeScaling()),
        (
            dict(
                rope_scaling={
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                }
            ),
            RopeScaling("llama3", 8.0, 1.0, 4.0, 8192),
        ),
    ],
)
def test_scalings_of_positions(fields, scaling):
    config = parsed("llama", rope_theta=5e5, **fields)
    assert (config.rope_theta, config.rope_scaling) == (5e5, scaling)
    inside = fields["rope_scaling"] | {"rope_theta": 5e5}  # as transformers 5 writes it
    assert parsed("llama", rope_parameters=inside) == config


def test_vicuna_of_16k_has_all_of_its_positions():
    scaling = {"factor": 4.0, "type": "linear"}
    lengths = dict(max_position_embeddings=4096, max_sequence_length=16384)
    assert parsed("llama", rope_scaling=scaling, **lengths).max_positions == 16384


def test_heads_of_a_config_that_tells_little():
    config = parsed("llama", hidden_size=64, num_attention_heads=4)
    assert (config.num_kv_heads, config.head_dim) == (4, 16)
    assert parsed("mistral", hidden_size=512, head_dim=None).head_dim == 16
    assert parsed("qwen3", hidden_size=64).head_dim == 128


@pytest.mark.parametrize(
    "case, fields, words",
    [
        ("llama_hf", dict(attention_bias=True), "attention_bias must be False, got True"),
        ("llama_hf", dict(mlp_bias=True), "mlp_bias must be False, got True"),
        ("llama_hf", dict(partial_rotary_factor=0.5), "partial_rotary_factor must be 1.0"),
        ("llama_hf", dict(rope_scaling={"type": "yarn"}), "must be one of default, linear,"),
        ("llama_hf", dict(rope_scaling={"type": "linear"}), "rope_scaling lacks factor"),
        ("llama_hf", dict(rope_scaling=[1]), "rope_scaling must be an object"),
        ("llama_hf", dict(rope_theta="big"), "rope_theta must be a number"),
        ("llama_hf", dict(num_attention_heads=5), "hidden_size 32 does not divide by 5 heads"),
        ("llama_hf", dict(num_key_value_heads=3), "num_heads 4 does not divide by num_kv_heads 3"),
        ("llama_hf", dict(head_dim=7), "heads of even size, got 7"),
        ("llama_hf", dict(quantization_config={"bits": 4}), "quantization_config must be absent"),
        ("qwen2_hf", dict(use_sliding_window=True), "use_sliding_window must be False, got True"),
        ("qwen3_hf", dict(layer_types=["full_attention", "sliding_attention"]), "layer_types must"),
        ("mistral_hf", dict(model_type="mixtral"), "a mixture of experts"),
        ("qwen2_hf", dict(tie_word_embeddings=False), r"lm_head\.weight is missing"),
        ("qwen2_hf", dict(model_type="qwen3"), "q_norm"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(folder, refused, case, fields, words):
    import re

    assert re.search(words, refused(folder(case, **fields)))


def test_tensors_that_repeat_or_follow_from_the_config_are_ignored(folder):
    source = folder("qwen2_hf")
    file = source / "model.safetensors"
    tensors = zoo.tensors("qwen2_hf")
    expected, _ = convert.loading.convert_checkpoint(source)
    head = tensors["model.embed_tokens.weight"]
    more = {"lm_head.weight": head, "model.layers.1.self_attn.rotary_emb.inv_freq": np.ones(4)}
    safetensors.numpy.save_file(tensors | more, file)
    model, report = convert.loading.convert_checkpoint(source)
    assert report.ignored.keys() == more.keys() and model.config == expected.config


def test_the_files_of_dialogues_come_along(folder, tmp_path, capsys):
    source, names = folder("llama_hf"), ("chat_template.jinja", "generation_config.json")
    for name in names:
        (source / name).write_text("{}")
    assert main([str(source), str(tmp_path / "out")]) == 0
    assert all((tmp_path / "out" / name).is_file() for name in names)
    assert "family      decoder (transformers)" in capsys.readouterr().out
    assert models.load(tmp_path / "out").config.depth == 2


@pytest.mark.reference
@pytest.mark.parametrize("model_type", DEFAULTS)
def test_defaults_are_those_of_transformers(model_type):
    pytest.importorskip("torch")
    convert.originals.prepare_libraries()
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.for_model(model_type).to_dict()
    assert parse_decoder("config.json", theirs) == parse_decoder(
        "config.json", {"model_type": model_type}
    )
