"""Checkpoints of published sizes are what the originals would write; the benchmarks run."""

import dataclasses
import pathlib

import pytest

import models.registry
from benchmarks import conversion, zoo
from benchmarks.published import layouts_of, npz_of, random_tensors, write_random_checkpoint
from convert.layout import Source
from convert.tensors import Tensor
from models.siglip import SigLIPConfig, SigLIPVisionConfig

CONFIGS = [
    (name, config)
    for family in models.registry.FAMILIES.values()
    for name, config in family.variants.items()
]
SMALL = models.registry.override(
    models.registry.FAMILIES["dinov2"].variants["dinov2-vit-s-14"],
    {"encoder": {"width": 64, "depth": 2, "num_heads": 1, "mlp_dim": 256}, "image_size": 28},
)


def as_trained(config, like):
    """A config with what is the library's, not the model's, as another has it.

    That is the rule for positions, how texts are cleaned, and the GELU of some SigLIP of timm.
    """
    changes = {}
    if hasattr(like, "position_resize"):
        changes["position_resize"] = like.position_resize
    if isinstance(like, SigLIPVisionConfig):
        changes["encoder"] = {"activation": like.encoder.activation}
    elif isinstance(like, SigLIPConfig):
        vision = as_trained(config.vision, like.vision)
        config = dataclasses.replace(config, vision=vision)
        changes["text"] = {"cleaning": like.text.cleaning}
    return models.registry.override(config, changes)


@pytest.mark.parametrize("name, config", CONFIGS, ids=[name for name, _ in CONFIGS])
def test_parsing_gives_the_published_config_back(name, config):
    for layout, values in layouts_of(config):
        tensors = {}
        if classes := getattr(config, "num_classes", 0):
            shape = (classes, models.registry.vision_config(config).encoder.width)
            tensors = {"classifier.weight": Tensor(shape, "float32", None)}
        parsed = layout.parse(Source(pathlib.Path("model.safetensors"), values, tensors))
        assert parsed.unknown_fields == []
        if layout.library == "transformers" and layout.family.startswith("siglip"):
            assert parsed.config == config
        assert as_trained(parsed.config, like=config) == config


@pytest.mark.parametrize("name", ["vit-ti-16", "siglip-vit-b-16-224"])
def test_the_shapes_of_an_npz_give_the_config_back(name):
    encoder = {"encoder": dict(width=32, depth=2, num_heads=4, mlp_dim=64)}
    _, config = models.registry.published(name)
    of_towers = dict(vision=encoder, text=encoder) if hasattr(config, "text") else encoder
    ((layout, config),) = npz_of(models.registry.override(config, of_towers))
    arrays = random_tensors(layout, config)
    tensors = {name: Tensor(array.shape, "float32", None) for name, array in arrays.items()}
    parsed = layout.parse(Source(pathlib.Path("model.npz"), None, tensors))
    assert parsed.config == config


def test_every_model_is_in_one_group_of_those_that_are_measured():
    groups = zoo.groups_of_models()
    assert sorted(name for names in groups for name in names) == models.list_models()
    assert ["clip-vit-l-14", "clip-vit-l-14-336"] in groups
    assert ["llama-2-7b", "vicuna-7b-v1.5"] in groups and ["mistral-7b-v0.1"] in groups


def test_a_name_that_no_model_has_is_an_error():
    with pytest.raises(SystemExit, match="no model has 'dino9' in its name; there are clip-vit-"):
        zoo.main(["--match", "dino9"])


@pytest.mark.slow
def test_what_is_too_large_is_measured_as_those_who_know_one_of_fewer_blocks_write_it():
    assert zoo.libraries_of(["siglip2-vit-giant-opt-16-256"]) == ["transformers", "big_vision"]


@pytest.mark.slow
def test_conversion_is_measured(tmp_path):
    layout, values = layouts_of(SMALL)[0]
    file = write_random_checkpoint(tmp_path / "source", layout, SMALL, values)
    row = conversion.measure(file, tmp_path / "destination", "float32")
    assert row["peak_gb"] > row["file_gb"] and row["seconds"] > 0
    assert (tmp_path / "destination" / "model.json").is_file()


def test_random_tensors_have_the_dtype_asked_for():
    layout, _ = layouts_of(SMALL)[0]
    assert {x.dtype.name for x in random_tensors(layout, SMALL, "bfloat16").values()} == {
        "bfloat16"
    }


@pytest.mark.reference
def test_a_model_is_measured(monkeypatch):
    pytest.importorskip("torch")
    family = dataclasses.replace(models.registry.FAMILIES["dinov2"], variants={"tiny": SMALL})
    monkeypatch.setitem(models.registry.FAMILIES, "dinov2", family)
    row = zoo.measure(["tiny"], "transformers")
    assert float(row["max_error"]) < 1e-5 and row["blocks"] == "all"
    assert "`tiny`" in zoo.as_markdown([row])
