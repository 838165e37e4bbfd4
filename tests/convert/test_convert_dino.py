"""The other names of DINOv2's tensors, and what is refused."""

import dataclasses
import json
import re

import numpy as np
import pytest
import safetensors.numpy

import convert
from convert.errors import ConversionError
from convert.loading import convert_checkpoint
from convert.verify import BOUND, verify
from tests import zoo

CASES = pytest.mark.parametrize("case", ["dinov2_hf", "dinov2_registers_hf"])
TO_NEWEST = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "mlp.weights_out": "mlp.down_proj",
}


def newest(case):
    """The tensors of a case by transformers 5's own names: gate and first layer apart."""
    tensors = zoo.renamed(zoo.tensors(case), TO_NEWEST)
    for name in [name for name in tensors if ".weights_in." in name]:
        gate, up = np.split(tensors.pop(name), 2)
        tensors[name.replace("weights_in", "gate_proj")] = gate
        tensors[name.replace("weights_in", "up_proj")] = up
    return tensors


@CASES
def test_the_authors_files_are_read_without_a_config(case, tmp_path):
    safetensors.numpy.save_file(zoo.original_dinov2(case), tmp_path / "dinov2.safetensors")
    model, report = convert_checkpoint(tmp_path / "dinov2.safetensors")
    published = convert.load_pretrained(zoo.write(case, tmp_path / "hf"))
    rule = "bicubic_offset" if case == "dinov2_hf" else "bicubic_antialias"
    changes = dict(position_resize=rule, num_classes=0)
    assert model.config == dataclasses.replace(published.config, **changes)
    assert str(report.layout) == "dinov2 (original)" and report.ignored.keys() == {"mask_token"}
    if published.config.num_classes:
        del published.head
    zoo.assert_same_leaves(model, published)


@CASES
def test_the_names_of_transformers_5_are_read(case, tmp_path):
    published = convert.load_pretrained(zoo.write(case, tmp_path / "hf"))
    folder = zoo.write(case, tmp_path / "newest")
    safetensors.numpy.save_file(newest(case), folder / "model.safetensors")
    zoo.assert_same_leaves(convert.load_pretrained(folder), published)


def test_a_mixture_of_names_is_refused(tmp_path):
    tensors = zoo.original_dinov2("dinov2_registers_hf")
    tensors["blocks.0.mlp.fc1.weight"] = tensors.pop("blocks.0.mlp.w12.weight")
    safetensors.numpy.save_file(tensors, tmp_path / "dinov2.safetensors")
    with pytest.raises(ConversionError, match=r"blocks.0.mlp.*(missing|unknown)"):
        convert.load_pretrained(tmp_path / "dinov2.safetensors")


def cut(name, axis, size):
    return lambda tensors: tensors | {name: np.take(tensors[name], range(size), axis)}


@pytest.mark.parametrize(
    "change, message",
    [
        (
            cut("patch_embed.proj.weight", 0, 32),
            "width 32 does not divide into heads of 64 channels; --heads N",
        ),
        (cut("patch_embed.proj.weight", 0, 0), "width 0 does not divide into heads"),
        (cut("pos_embed", 1, 0), r"shapes.image_size must be .* got \[0, 0\]"),
        (cut("pos_embed", 1, 12), "3 by 3 patches does not have 11 positions; --patch-grid H,W"),
        (lambda tensors: tensors | {"pos_embed": np.ones(3)}, "pos_embed .* not of 3 axes"),
    ],
)
def test_files_of_no_dinov2_of_the_authors_are_refused(tmp_path, change, message):
    tensors = {
        k: np.ascontiguousarray(v) for k, v in change(zoo.original_dinov2("dinov2_hf")).items()
    }
    safetensors.numpy.save_file(tensors, tmp_path / "dinov2.safetensors")
    with pytest.raises(ConversionError, match=message):
        convert.load_pretrained(tmp_path / "dinov2.safetensors")


def test_the_prefix_that_transformers_5_uses_for_dinov3_is_read(tmp_path):
    published = convert.load_pretrained(zoo.write("dinov3_hf", tmp_path / "hf"))
    folder = zoo.write("dinov3_hf", tmp_path / "newest")
    tensors = {re.sub("^layer", "model.layer", k): v for k, v in zoo.tensors("dinov3_hf").items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    zoo.assert_same_leaves(convert.load_pretrained(folder), published)


BIASES = pytest.mark.parametrize("biases", ["", "q", "k", "v", "qk", "qv", "kv", "qkv"])


def with_biases(folder, biases):
    """The case dinov3_hf with biases in these projections."""
    folder = zoo.write("dinov3_hf", folder)
    change_config(folder, **{f"{x}_bias": x[0] in biases for x in ("query", "key", "value")})
    tensors = zoo.tensors("dinov3_hf")
    tensors = {k: x for k, x in tensors.items() if not re.search("[qkv]_proj.bias", k)}
    for name in [f"layer.{i}.attention.{x}_proj.bias" for i in range(2) for x in biases]:
        tensors[name] = zoo.random_weight(name, (32,))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder


def change_config(folder, **changes):
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(values))


@BIASES
def test_any_projection_may_have_a_bias(tmp_path, biases):
    model = convert.load_pretrained(with_biases(tmp_path / "checkpoint", biases))
    attention = model.encoder.blocks[1].attention
    for name in ("query", "key", "value"):
        assert (getattr(attention, name).bias is not None) == (name[0] in biases)


@pytest.mark.reference
@pytest.mark.parametrize("biases", ["k", "qk", "kv"])
def test_biases_compute_what_transformers_does(tmp_path, biases):
    comparisons = verify(with_biases(tmp_path / "checkpoint", biases))
    assert max(comparison.error for comparison in comparisons) < BOUND / 10


def refuses(case, folder, message, **changes):
    folder = zoo.write(case, folder)
    change_config(folder, **changes)
    with pytest.raises(ConversionError, match=message):
        convert.load_pretrained(folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(mlp_bias=False), "mlp_bias must be True"),
        (dict(num_attention_heads=16), "multiple of 4, got 2"),
        (dict(rope_scaling={"factor": 2.0}), "rope_scaling must be None"),
        (dict(rope_parameters={"rope_theta": 50.0}), r"rope_theta must be 100\.0, got 50\.0"),
        (dict(rope_parameters={"rope_type": "linear"}), "rope_type must be 'default'"),
        (dict(rope_parameters={"factor": 2.0}), r"'rope_parameters\.factor' is unknown"),
    ],
)
def test_other_computations_than_dinov3s_are_refused(tmp_path, changes, message):
    refuses("dinov3_hf", tmp_path / "checkpoint", message, **changes)


def test_registers_are_those_of_another_model_type(tmp_path):
    message = "num_register_tokens must be 0, got 4"
    refuses("dinov2_hf", tmp_path / "checkpoint", message, num_register_tokens=4)


@pytest.mark.parametrize("theta", [{"rope_theta": 50.0}, {}])
def test_theta_may_be_said_twice(tmp_path, theta):
    folder = zoo.write("dinov3_hf", tmp_path / "checkpoint")
    values = json.loads((folder / "config.json").read_text())
    values.pop("rope_theta")
    rope = {"rope_type": "default", "rope_theta": 100.0} | theta
    (folder / "config.json").write_text(json.dumps(values | theta | {"rope_parameters": rope}))
    assert convert.load_pretrained(folder).config.rope_theta == rope["rope_theta"]
