"""The other names of LLaVA's tensors, what its configs may say, and what is refused."""

import json
import re

import numpy as np
import pytest
import safetensors.numpy

import convert
from convert import llava, siglip
from convert.layout import Source
from convert.loading import convert_checkpoint
from models import registry
from tests import zoo
from tests.conftest import few

CASES = ("llava_hf", "llava_interleave_hf", "llava_next_hf", "llava_onevision_hf")
SPELLINGS = {
    "published": {"vision_tower.": "vision_tower.vision_model."},
    "module": {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head": "lm_head",
        "vision_tower.": "model.vision_tower.",
        "multi_modal_projector": "model.multi_modal_projector",
        "image_newline": "model.image_newline",
    },
    "older module": {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head": "lm_head",
        "vision_tower.": "model.vision_tower.vision_model.",
        "multi_modal_projector": "model.multi_modal_projector",
        "image_newline": "model.image_newline",
    },
}


def write(folder, case, tensors=None, **changes):
    """A case with other tensors, or other fields: None for one that is left out."""
    zoo.write(case, folder)
    if tensors is not None:
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text()) | changes
    values = {name: value for name, value in values.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def section(case, name, **changes):
    """A section of a case's config with other fields."""
    values = json.loads((zoo.ZOO / case / "config.json").read_text())[name] | changes
    return {name: {field: value for field, value in values.items() if value is not None}}


def parsed(case, **changes):
    """What the parser makes of a case's config with other fields, without any tensors."""
    values = json.loads((zoo.ZOO / case / "config.json").read_text()) | changes
    values = {name: value for name, value in values.items() if value is not None}
    return llava.parse_config(Source(zoo.ZOO / case / "model.safetensors", values, {})).config


@pytest.mark.parametrize("case", few(CASES, ["llava_next_hf"]))
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_the_names_is_read(tmp_path, case, spelling):
    renamed = zoo.renamed(zoo.tensors(case), SPELLINGS[spelling])
    assert renamed.keys() != zoo.tensors(case).keys()
    model, other = (
        convert.load_pretrained(write(tmp_path / name, case, tensors))
        for name, tensors in (("renamed", renamed), ("as it is", None))
    )
    zoo.assert_same_leaves(model, other)


@pytest.mark.parametrize("case, count", [("llava_hf", 18), ("llava_onevision_hf", 13)])
def test_what_a_llava_does_not_read_is_named_and_ignored(tmp_path, case, count):
    """CLIP's last block and norm; SigLIP's norm, and its pooling head in the files that have it."""
    tensors = zoo.tensors(case)
    if case == "llava_onevision_hf":
        pooling = (name.removeprefix("vision_model.") for name in siglip.POOLING_TENSORS)
        tensors |= {f"vision_tower.{name}": np.zeros(1, np.float32) for name in pooling}
    _, report = convert_checkpoint(write(tmp_path / "x", case, tensors))
    assert len(report.ignored) == count
    assert set(report.ignored.values()) == {"behind the block that a LLaVA reads"}
    assert report.num_mapped + count == len(tensors)


@pytest.mark.parametrize("head", ["same", "absent"])
def test_a_tied_head_may_be_in_the_file(tmp_path, head):
    tensors = zoo.tensors("llava_onevision_hf")
    name = "language_model.lm_head.weight"
    assert name not in tensors
    if head == "same":
        tensors[name] = tensors["language_model.model.embed_tokens.weight"]
    model, report = convert_checkpoint(write(tmp_path / "x", "llava_onevision_hf", tensors))
    assert model.config.decoder.tied_head and (name in report.ignored) == (head == "same")


@pytest.mark.parametrize(
    "whole, text, tied",
    [(True, False, True), (False, True, True), (None, None, False), (False, False, False)],
)
def test_the_head_is_tied_where_either_section_says_so(whole, text, tied):
    changes = section("llava_onevision_hf", "text_config", tie_word_embeddings=text)
    config = parsed("llava_onevision_hf", tie_word_embeddings=whole, **changes)
    assert config.decoder.tied_head is tied


@pytest.mark.parametrize("layer, depth", [(-1, 3), (-2, 2), (-3, 1), (1, 1), (2, 2), (3, 3)])
def test_the_tower_ends_with_the_block_that_is_read(layer, depth):
    assert parsed("llava_hf", vision_feature_layer=layer).vision.encoder.depth == depth


def test_the_class_token_stays_where_the_strategy_is_full():
    assert parsed("llava_hf", vision_feature_select_strategy="full").num_features == 17
    assert parsed("llava_hf").num_features == 16


@pytest.mark.parametrize("model_type", ["llava", "llava_next", "llava_onevision"])
def test_an_empty_config_is_the_published_size(model_type):
    """But for the language model, whose class's own defaults are of no checkpoint."""
    values = {"model_type": model_type, "text_config": {"vocab_size": 152000}}
    source = Source(zoo.ZOO / "model.safetensors", values, {})
    name = {
        "llava": "llava-1.5-7b",
        "llava_next": "llava-1.6-vicuna-7b",
        "llava_onevision": "llava-onevision-qwen2-0.5b",
    }[model_type]
    published = registry.FAMILIES["llava"].variants[name]
    config = llava.parse_config(source).config
    assert config.vision == published.vision and config.tiling == published.tiling
    assert config.image_token_id == published.image_token_id


@pytest.mark.parametrize(
    "case, changes, message",
    [
        ("llava_hf", {"vision_feature_layer": [-2, -5]}, "vision_feature_layer must be an integer"),
        ("llava_hf", {"vision_feature_layer": 0}, "must not be the embeddings, got 0"),
        ("llava_hf", {"vision_feature_layer": -5}, "integer in -3..3, got -5"),
        ("llava_hf", {"vision_feature_select_strategy": "cls"}, "one of default, full, got 'cls'"),
        ("llava_hf", {"projector_hidden_act": "relu"}, "projector_hidden_act must be one of"),
        ("llava_hf", {"image_token_index": 48}, "image_token_id 48 is none of the 48 tokens"),
        (
            "llava_interleave_hf",
            {"vision_feature_select_strategy": "default"},
            "drops a class token, and SigLIP's tower has none",
        ),
        ("llava_next_hf", {"vision_feature_select_strategy": "full"}, "needs CLIP's tower"),
        ("llava_next_hf", {"image_grid_pinpoints": [[32, 40]]}, "divide by the tiles' side 32"),
        ("llava_next_hf", {"image_grid_pinpoints": []}, r"heights and widths, got \[\]"),
        ("llava_next_hf", {"image_grid_pinpoints": [[32]]}, r"heights and widths, got \[32\]"),
        ("llava_next_hf", {"image_grid_pinpoints": "all"}, "heights and widths, got 'all'"),
        ("llava_next_hf", {"image_grid_pinpoints": [[True, 32]]}, "heights and widths"),
        ("llava_next_hf", {"use_image_newline_parameter": False}, "use_image_newline_parameter"),
        ("llava_onevision_hf", {"vision_aspect_ratio": "anyres"}, "vision_aspect_ratio must be"),
        (
            "llava_hf",
            section("llava_hf", "vision_config", model_type="dinov2"),
            "vision_config.model_type must be one of clip_vision_model, siglip_vision_model",
        ),
        (
            "llava_hf",
            section("llava_hf", "text_config", model_type="opt"),
            "text_config.model_type must be one of llama",
        ),
        (
            "llava_hf",
            section("llava_hf", "vision_config", num_hidden_layers=2),
            "num_hidden_layers is 2, but the file's tower has 3 blocks",
        ),
    ],
)
def test_what_is_not_supported_is_refused(tmp_path, refused, case, changes, message):
    assert re.search(message, refused(write(tmp_path / "source", case, **changes)))


def test_a_newline_that_is_missing_is_named(tmp_path, refused):
    tensors = zoo.tensors("llava_next_hf")
    del tensors["image_newline"]
    assert "image_newline is missing" in refused(write(tmp_path / "x", "llava_next_hf", tensors))


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_other_tiles_in_the_file_of_the_preprocessing_are_refused(tmp_path, refused, name):
    folder = zoo.write("llava_next_hf", tmp_path / "source")
    pinpoints = json.loads((folder / "config.json").read_text())["image_grid_pinpoints"]
    for different in (False, True):
        values = {"image_grid_pinpoints": pinpoints[different:]}
        if name == "processor_config.json":
            values = {"image_processor": values}
        (folder / name).write_text(json.dumps(values))
        if different:
            assert f"image_grid_pinpoints of {name} are not those" in refused(folder)
        else:
            convert_checkpoint(folder)
