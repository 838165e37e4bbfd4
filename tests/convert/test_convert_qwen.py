"""The names and configs of Qwen3-VL's tower: alone, with its model, and what is refused."""

import json

import numpy as np
import pytest
import safetensors.numpy

from convert.loading import convert_checkpoint
from tests import zoo

WHOLE = "qwen3_vl_hf"


@pytest.fixture
def folder(tmp_path):
    return zoo.write(WHOLE, tmp_path / "source")


def change(folder, *, vision=None, **whole):
    """Sets fields of the config and of its part for the tower; None removes one."""
    file = folder / "config.json"
    values = json.loads(file.read_text()) | whole
    values["vision_config"] |= vision or {}
    for part in (values, values["vision_config"]):
        for name in [name for name, value in part.items() if value is None]:
            del part[name]
    file.write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("names", [{"model.visual.": "visual.", "model.lang": "lang"}, None])
def test_the_tower_is_the_same_in_files_of_all_kinds(folder, names):
    """Of the model without its head, and of the tower alone."""
    expected, report = convert_checkpoint(folder)
    language = {name for name in zoo.tensors(WHOLE) if not name.startswith("model.visual.")}
    assert report.ignored.keys() == language and len(language) > 10
    assert set(report.ignored.values()) == {"of the language model: the tower is read"}
    tensors = zoo.tensors(WHOLE)
    if names is None:
        names = {"model.visual.": ""}
        tensors = {name: x for name, x in tensors.items() if name not in language}
        values = json.loads((folder / "config.json").read_text())["vision_config"]
        values["model_type"] = "qwen3_vl_vision"
        (folder / "config.json").write_text(json.dumps(values))
    file = folder / "model.safetensors"
    safetensors.numpy.save_file(zoo.renamed(tensors, names), file)
    model, report = convert_checkpoint(folder)
    assert model.config == expected.config and not report.unknown_fields
    zoo.assert_same_leaves(model, expected)


def test_the_wavelengths_are_read_from_old_and_new_files(folder):
    theta = lambda: convert_checkpoint(folder)[0].config.rope_theta
    assert theta() == 10000
    change(folder, vision={"rope_theta": 100})
    assert theta() == 100
    change(folder, vision={"rope_parameters": {"rope_type": "axial", "rope_theta": 50.0}})
    assert theta() == 50


def test_a_tensor_that_nobody_knows_is_refused(folder, refused):
    tensors = zoo.tensors(WHOLE) | {"model.language_model.layers.0.extra": np.zeros(1, np.float32)}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    assert "model.language_model.layers.0.extra' is unknown" in refused(folder)


@pytest.mark.parametrize(
    "vision, message",
    [
        ({"in_channels": 4}, "vision_config.in_channels must be 3, got 4"),
        ({"temporal_patch_size": 1}, "vision_config.temporal_patch_size must be 2, got 1"),
        ({"num_position_embeddings": 15}, "must be those of a square, got 15"),
        ({"deepstack_visual_indexes": "5"}, "must be a list of blocks, got '5'"),
        ({"deepstack_visual_indexes": [True]}, "must be a list of blocks, got [True]"),
        ({"deepstack_visual_indexes": [1, 0]}, "deepstack must be ascending blocks from 0 to 1"),
        ({"deepstack_visual_indexes": [0, 2]}, "deepstack must be ascending blocks from 0 to 1"),
        ({"deepstack_visual_indexes": [0]}, "deepstack_merger_list.1.linear_fc1.bias' is unknown"),
        ({"num_heads": 3}, "width 32 does not divide by 3 heads"),
        ({"hidden_act": "relu"}, "vision_config.hidden_act must be one of"),
        ({"patch_size": [4, 8]}, "patch_size must be of something square, got [4, 8]"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type must be 'axial', got 'yarn'"),
        ({"rope_parameters": {"factor": 2.0}}, "'rope_parameters.factor' is unknown"),
        ({"depth": 0}, "vision_config.depth must be an integer in 1..128, got 0"),
    ],
)
def test_configs_that_are_refused(folder, refused, vision, message):
    assert message in refused(change(folder, vision=vision))


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl_moe"])
def test_relatives_are_refused_by_name(folder, refused, model_type):
    message = refused(change(folder, model_type=model_type))
    assert f"model_type {model_type!r} is not supported" in message


def test_fields_that_nobody_knows_are_told(folder):
    change(folder, vision={"windows": 4}, wishes=1)
    _, report = convert_checkpoint(folder)
    assert report.unknown_fields == ("config.json.wishes", "vision_config.windows")
