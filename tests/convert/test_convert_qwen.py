"""The names and configs of Qwen3-VL and of its tower alone, and what is refused."""

import json

import numpy as np
import pytest
import safetensors.numpy

from convert.loading import convert_checkpoint
from tests import zoo

WHOLE, TOWER = "qwen3_vl_hf", "qwen3_vl_vision"


@pytest.fixture
def folder(tmp_path):
    return zoo.write(WHOLE, tmp_path / "source")


def change(folder, *, vision=None, text=None, **whole):
    """Sets fields of the config, of its part for the tower and for the text; None removes one."""
    file = folder / "config.json"
    values = json.loads(file.read_text()) | whole
    values["vision_config"] |= vision or {}
    values["text_config"] |= text or {}
    for part in (values, values["vision_config"], values["text_config"]):
        for name in [name for name, value in part.items() if value is None]:
            del part[name]
    file.write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("names", [{"model.visual.": "visual.", "model.lang": "lang"}, None])
def test_the_tower_is_the_same_in_files_of_all_kinds(folder, names):
    """Of the model with and without its head, and of the tower alone."""
    expected, report = convert_checkpoint(folder, family=TOWER)
    language = {name for name in zoo.tensors(WHOLE) if not name.startswith("model.visual.")}
    assert report.ignored.keys() == language and len(language) > 10
    assert set(report.ignored.values()) == {"of the language model: the tower alone is read"}
    tensors = zoo.tensors(WHOLE)
    if names is None:
        names = {"model.visual.": ""}
        tensors = {name: x for name, x in tensors.items() if name not in language}
        values = json.loads((folder / "config.json").read_text())["vision_config"]
        values["model_type"] = "qwen3_vl_vision"
        (folder / "config.json").write_text(json.dumps(values))
    file = folder / "model.safetensors"
    safetensors.numpy.save_file(zoo.renamed(tensors, names), file)
    model, report = convert_checkpoint(folder, family=TOWER)
    assert model.config == expected.config and not report.unknown_fields
    zoo.assert_same_leaves(model, expected)


def test_the_whole_model_is_the_same_without_the_prefix_and_has_the_tower(folder):
    expected, report = convert_checkpoint(folder)
    assert not report.ignored and not report.unknown_fields
    tower, _ = convert_checkpoint(folder, family=TOWER)
    zoo.assert_same_leaves(expected.vision, tower)
    file = folder / "model.safetensors"
    safetensors.numpy.save_file(
        zoo.renamed(zoo.tensors(WHOLE), {"model.lang": "lang", "model.vis": "vis"}), file
    )
    model, report = convert_checkpoint(folder)
    assert model.config == expected.config and not report.ignored
    zoo.assert_same_leaves(model, expected)


def test_a_head_of_its_own_is_read_unless_either_section_ties_it(folder):
    tied = zoo.tensors(WHOLE)
    head = {"lm_head.weight": tied["model.language_model.embed_tokens.weight"]}
    safetensors.numpy.save_file(tied | head, folder / "model.safetensors")
    for whole, text in ((True, False), (False, True), (None, True)):
        change(folder, tie_word_embeddings=whole, text={"tie_word_embeddings": text})
        model, report = convert_checkpoint(folder)
        assert model.config.decoder.tied_head and report.ignored.keys() == head.keys()
    change(folder, tie_word_embeddings=False, text={"tie_word_embeddings": False})
    model, report = convert_checkpoint(folder)
    assert not model.config.decoder.tied_head and not report.ignored
    np.testing.assert_array_equal(model.decoder.head.kernel, head["lm_head.weight"].T)


def test_sections_and_theta_are_read_from_old_and_new_files(folder):
    def read():
        config = convert_checkpoint(folder)[0].config.decoder
        return config.rope_sections, config.rope_theta

    assert read() == ((2, 1, 1), 5e6)
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 50.0}
    change(folder, text={"rope_scaling": None, "rope_theta": None, "rope_parameters": rope})
    assert read() == ((2, 1, 1), 50)


def test_the_wavelengths_are_read_from_old_and_new_files(folder):
    theta = lambda: convert_checkpoint(folder)[0].config.vision.rope_theta
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
    change(folder, vision=vision)
    assert message in refused(folder)
    assert message in refused(folder, "--family", TOWER)


@pytest.mark.parametrize(
    "text, message",
    [
        ({"mrope_section": [1, 1, 2]}, "rope_sections must share the 4 planes"),
        ({"mrope_section": [2, 2]}, "rope_sections must share the 4 planes"),
        ({"mrope_section": None}, "got (24, 20, 20)"),
        ({"mrope_section": "all"}, "mrope_section must be a list of integers, got 'all'"),
        ({"mrope_interleaved": False}, "rope_scaling.mrope_interleaved must be True, got False"),
    ],
)
def test_places_that_are_refused(folder, refused, text, message):
    values = json.loads((folder / "config.json").read_text())["text_config"]["rope_scaling"] | text
    values = {name: value for name, value in values.items() if value is not None}
    assert message in refused(change(folder, text={"rope_scaling": values}))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"text": {"model_type": "qwen3"}}, "model_type must be one of qwen3_vl_text, got 'qwen3'"),
        ({"text": {"num_hidden_layers": 1}}, "deepstack (0, 1) needs as many blocks"),
        ({"vision": {"out_hidden_size": 16}}, "out_width 16 is not the language model's width 24"),
        ({"image_token_id": 40}, "image_token_id 40 is none of the 40 tokens"),
        ({"video_token_id": 5}, "image_token_id and video_token_id are both 5"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(folder, refused, changes, message):
    assert message in refused(change(folder, **changes))


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl_moe"])
def test_relatives_are_refused_by_name(folder, refused, model_type):
    message = refused(change(folder, model_type=model_type))
    assert f"model_type {model_type!r} is not supported" in message


def test_fields_that_nobody_knows_are_told(folder):
    change(folder, vision={"windows": 4}, wishes=1)
    _, report = convert_checkpoint(folder)
    assert report.unknown_fields == ("config.json.wishes", "vision_config.windows")
