"""LoRA of peft beside its model: merged as W + s · B A, honoured or refused by name."""

import json
import math

import numpy as np
import pytest
import safetensors.numpy

import convert
import models
from convert.__main__ import main
from tests import pickled, zoo

CONFIG = {
    "peft_type": "LORA",
    "base_model_name_or_path": "someone/base",
    "r": 4,
    "lora_alpha": 6,
    "use_rslora": False,
    "fan_in_fan_out": False,
    "bias": "none",
    "init_lora_weights": True,
    "target_modules": ["query"],
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "use_dora": False,
    "task_type": None,
    "inference_mode": True,
}


def factors(name, shape, rank=4):
    """A and B of a layer whose weight has the shape."""
    return {
        f"base_model.model.{name}.lora_A.weight": zoo.random_weight(f"{name} A", (rank, shape[1])),
        f"base_model.model.{name}.lora_B.weight": zoo.random_weight(f"{name} B", (shape[0], rank)),
    }


def write_adapter(folder, tensors, *, pickle=False, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | changes))
    if pickle:
        pickled.write_archive(tensors, folder / "adapter_model.bin")
    else:
        safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def product(tensors, name, scale):
    a, b = (tensors[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
    return np.float32(scale) * (b @ a)


LAYERS = {  # of each layout some linear layers: fused ones, and those of a classifier
    "dinov2_hf": ["encoder.layer.0.attention.attention.query", "encoder.layer.1.mlp.fc2"],
    "dinov2_registers_hf": [
        "dinov2_with_registers.encoder.layer.1.mlp.weights_in",
        "dinov2_with_registers.encoder.layer.0.attention.output.dense",
    ],
    "vit_timm": ["blocks.0.attn.qkv", "blocks.1.attn.proj", "head"],
    "clip_hf": ["vision_model.encoder.layers.0.self_attn.v_proj", "visual_projection"],
    "clip_open_clip": ["visual.transformer.resblocks.0.mlp.c_fc"],
}


@pytest.fixture
def base(tmp_path):
    """Writes a case; gives its folder and its tensors."""
    return lambda case: (zoo.write(case, tmp_path / "source"), zoo.tensors(case))


@pytest.mark.parametrize("case", LAYERS)
def test_the_merged_weights_are_w_plus_s_b_a(base, tmp_path, case):
    folder, tensors = base(case)
    lora = {}
    for name in LAYERS[case]:
        lora |= factors(name, tensors[f"{name}.weight"].shape)
    adapter = write_adapter(tmp_path / "adapter", lora)
    merged = convert.load_pretrained(folder, adapter=adapter)
    for name in LAYERS[case]:
        tensors[f"{name}.weight"] += product(lora, name, 6 / 4)
    (file,) = folder.glob("*.safetensors")
    safetensors.numpy.save_file(tensors, file)
    zoo.assert_same_leaves(merged, convert.load_pretrained(folder), rtol=1e-6)


QUERY = "encoder.layer.0.attention.attention.query"


def query_of(model):
    kernel = model.encoder.blocks[0].attention.query.kernel[...]
    return np.asarray(kernel).reshape(kernel.shape[0], -1).T


@pytest.mark.parametrize(
    "changes, scale",
    [
        ({}, 6 / 4),
        ({"use_rslora": True}, 6 / 2),
        ({"lora_alpha": 1.5, "init_lora_weights": "gaussian"}, 1.5 / 4),
        ({"alpha_pattern": {"attention.query": 10}}, 10 / 4),
        ({"alpha_pattern": {"key": 10, f"^{QUERY}": 3}}, 3 / 4),
        ({"alpha_pattern": {"uery": 10, "^query": 3}}, 6 / 4),
        ({"r": 8, "rank_pattern": {"query": 4}, "use_rslora": True}, 6 / math.sqrt(4)),
        ({"something_new": None, "another": [], "lora_dropout": 0.1}, 6 / 4),
    ],
    ids=str,
)
def test_the_scale_is_the_configs(base, tmp_path, changes, scale):
    folder, tensors = base("dinov2_hf")
    lora = factors(QUERY, tensors[f"{QUERY}.weight"].shape)
    adapter = write_adapter(tmp_path / "adapter", lora, pickle="use_rslora" in changes, **changes)
    change = query_of(convert.load_pretrained(folder, adapter=adapter)) - tensors[f"{QUERY}.weight"]
    np.testing.assert_allclose(change, product(lora, QUERY, scale), rtol=1e-4, atol=1e-6)


def test_whole_tensors_take_the_place_of_the_models(base, tmp_path):
    """A backbone alone, and an adapter of a classifier on it: peft saves the classifier whole."""
    folder, tensors = base("vit_hf_bare")
    head = {"classifier.weight": zoo.random_weight("head", (5, 32)), "classifier.bias": np.ones(5)}
    head = {f"base_model.model.{k}": x.astype(np.float32) for k, x in head.items()}
    name = "vit.encoder.layer.0.intermediate.dense"
    lora = factors(name, tensors[f"{name.removeprefix('vit.')}.weight"].shape)
    adapter = write_adapter(tmp_path / "adapter", lora | head, modules_to_save=["classifier"])
    model = convert.load_pretrained(folder, adapter=adapter)
    assert model.config.num_classes == 5
    np.testing.assert_array_equal(
        model.head.kernel[...].T, head["base_model.model.classifier.weight"]
    )
    np.testing.assert_array_equal(model.head.bias[...], np.ones(5))
    expected = tensors["encoder.layer.0.intermediate.dense.weight"] + product(lora, name, 6 / 4)
    np.testing.assert_allclose(model.encoder.blocks[0].mlp.fc1.kernel[...].T, expected, rtol=1e-5)


def test_an_adapter_of_a_backbone_is_merged_into_a_model_with_a_classifier(base, tmp_path):
    folder, tensors = base("vit_hf")
    name = "encoder.layer.0.output.dense"
    lora = factors(name, tensors[f"vit.{name}.weight"].shape)
    adapter = write_adapter(tmp_path / "adapter", lora)
    model = convert.load_pretrained(folder, adapter=adapter)
    expected = tensors[f"vit.{name}.weight"] + product(lora, name, 6 / 4)
    np.testing.assert_allclose(model.encoder.blocks[0].mlp.fc2.kernel[...].T, expected, rtol=1e-5)


def test_the_names_of_transformers_5_are_those_of_the_same_layers(base, tmp_path):
    folder, tensors = base("dinov2_hf")
    lora = factors("encoder.layer.0.attention.q_proj", tensors[f"{QUERY}.weight"].shape)
    model = convert.load_pretrained(folder, adapter=write_adapter(tmp_path / "adapter", lora))
    change = product(lora, "encoder.layer.0.attention.q_proj", 6 / 4)
    np.testing.assert_allclose(
        query_of(model), tensors[f"{QUERY}.weight"] + change, rtol=1e-5, atol=1e-6
    )


def test_the_report_names_the_adapter(base, tmp_path, capsys):
    folder, tensors = base("dinov2_hf")
    lora = factors(QUERY, tensors[f"{QUERY}.weight"].shape)
    write_adapter(folder, lora)  # beside the weights
    assert main([str(folder), str(tmp_path / "out"), "--adapter", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "adapter     " in out and "not applied" not in out
    assert "LoRA of rank 4 merged into 1 layers; made for 'someone/base'" in out
    model = models.load(tmp_path / "out")
    assert not np.array_equal(query_of(model), tensors[f"{QUERY}.weight"])
    assert not (tmp_path / "out" / "adapter_config.json").exists()


REFUSED = [
    ({"use_dora": True}, "use_dora must be False"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out must be False"),
    ({"peft_type": "IA3"}, "peft_type must be 'LORA', got 'IA3'"),
    ({"bias": "all"}, "bias must be 'none', got 'all'"),
    ({"lora_bias": True}, "lora_bias must be False"),
    ({"layer_replication": [[0, 1]]}, "layer_replication must be None"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices must be None"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changed the weights"),
    ({"something_new": 3}, "'adapter_config.json.something_new' is unknown"),
    ({"alpha_pattern": {"layer.[0-9]+": 2}}, "is a regular expression"),
    ({"alpha_pattern": {"query": "2"}}, "alpha_pattern.query must be a number"),
    ({"alpha_pattern": [1]}, "alpha_pattern must be an object"),
    ({"lora_alpha": "6"}, "lora_alpha must be a number"),
    ({"use_rslora": "no"}, "use_rslora must be true or false"),
]


@pytest.mark.parametrize("changes, words", REFUSED, ids=str)
def test_other_adapters_are_refused_by_name(base, tmp_path, refused, changes, words):
    folder, tensors = base("dinov2_hf")
    lora = factors(QUERY, tensors[f"{QUERY}.weight"].shape)
    adapter = write_adapter(tmp_path / "adapter", lora, **changes)
    assert words in refused(folder, "--adapter", str(adapter))


A, B = (f"base_model.model.{QUERY}.lora_{x}.weight" for x in "AB")
TENSORS = [
    (lambda t: t.pop(B), "lacks A or B"),
    (lambda t: t.clear(), "no LoRA among its tensors"),
    (lambda t: t.update({A: t[A][:3]}), "has A [3, 64] and B [64, 4]"),
    (lambda t: t.update({A: t[A][:, :9]}), "its change [64, 9]"),
    (lambda t: t.update({A: t[A][..., None, None]}), "not linear"),
    (lambda t: t.update({A: t[A][:0], B: t[B][:, :0]}), "has A [0, 64]"),
    (lambda t: t.update({"x.lora_A.weight": t[A]}), "does not begin with base_model.model."),
    (lambda t: t.update({A.replace("A.weight", "magnitude_vector"): t[A][0]}), "another kind than"),
    (lambda t: t.update({A.replace("lora_A.weight", "lora_embedding_A"): t[A]}), "another kind"),
    (lambda t: t.update({"base_model.model.new": t[A]}), "'new' is unknown"),
    (
        lambda t: [t.update({k.replace("query", "quarry"): t.pop(k)}) for k in [*t]],
        "an adapter of another model: it changes 'encoder.layer.0.attention.attention.quarry",
    ),
]


@pytest.mark.parametrize("change, words", TENSORS)
def test_tensors_of_no_lora_are_refused(base, tmp_path, refused, change, words):
    folder, tensors = base("dinov2_hf")
    lora = factors(QUERY, tensors[f"{QUERY}.weight"].shape)
    change(lora)
    lora = {name: np.ascontiguousarray(x) for name, x in lora.items()}
    assert words in refused(folder, "--adapter", str(write_adapter(tmp_path / "adapter", lora)))


def test_a_folder_without_an_adapter(base, tmp_path, refused):
    folder, _ = base("dinov2_hf")
    assert "no folder of an adapter" in refused(folder, "--adapter", str(tmp_path / "none"))
    assert "no folder of an adapter" in refused(folder, "--adapter", str(folder))


def test_what_is_verified_has_no_adapter(base, tmp_path):
    folder, _ = base("dinov2_hf")
    with pytest.raises(convert.ConversionError, match="not verified"):
        convert.verify.verify(folder, given=convert.guesses.Given(adapter=folder))
