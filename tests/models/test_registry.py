"""Names, overrides and published sizes."""

import dataclasses

import jax
import pytest
from flax import nnx

import models
from models import clip, registry
from tests.conftest import tiny_clip

PUBLISHED_PARAMETERS = {
    "clip-vit-b-16": 149_620_737,
    "clip-vit-b-32": 151_277_313,
    "clip-vit-l-14": 427_616_513,
    "clip-vit-l-14-336": 427_944_193,
}


def test_every_model_has_a_published_size():
    assert models.list_models() == sorted(PUBLISHED_PARAMETERS)


@pytest.mark.parametrize("name", models.list_models())
def test_parameter_counts_are_the_published_ones(name):
    model = nnx.eval_shape(lambda: models.create(name, rngs=nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in leaves) == PUBLISHED_PARAMETERS[name]
    assert {leaf.dtype.name for leaf in leaves} == {"float32"}


def test_overrides_reach_nested_configs_and_leave_the_rest():
    overrides = dict(text={"encoder": {"depth": 1}}, vision={"encoder": {"depth": 1}})
    config = nnx.eval_shape(lambda: tiny_clip(**overrides)).config
    published = clip.VARIANTS["clip-vit-b-32"]
    assert config.text.encoder == dataclasses.replace(published.text.encoder, depth=1)
    assert config.text.vocab_size == published.text.vocab_size
    assert config.projection_dim == 24
    assert published.text.encoder.depth == 12


@pytest.mark.parametrize(
    "overrides, message",
    [
        (dict(projection_dims=3), "CLIPConfig has no .*'projection_dims'; .*'projection_dim'"),
        (dict(vision=dict(encoder=dict(dept=3))), "EncoderConfig has no .*'dept'; .* 'depth'"),
        (dict(vision=dict(patch_size=5)), "224 does not divide by patch_size 5"),
        (dict(vision=dict(encoder=dict(num_heads=5))), "width 768 does not divide by 5 heads"),
        (dict(text=dict(encoder=dict(activation="relu"))), "silu, got 'relu'"),
        (dict(dtype="float16"), "dtype must be one of float32, bfloat16, got 'float16'"),
        (dict(param_dtype=None), "param_dtype must be .*, got None"),
        (dict(vision=3), "VisionConfig.* got 3"),
        (dict(projection_dim="24"), "projection_dim must be .*int.*, got '24'"),
        (dict(projection_dim=dict(a=1)), "projection_dim must be .*int.*, got {'a': 1}"),
        (dict(vision=dict(patch_size="32")), "patch_size must be .*int.*, got '32'"),
        (dict(vision=dict(patch_size=0)), "patch_size must be at least 1, got 0"),
        (dict(text=dict(encoder=dict(num_heads=0))), "num_heads must be at least 1, got 0"),
        (dict(text=dict(encoder=dict(depth=-1))), "depth must be at least 1, got -1"),
    ],
)  # fmt: skip
def test_bad_overrides_raise(overrides, message):
    with pytest.raises(ValueError, match=message):
        nnx.eval_shape(lambda: models.create("clip-vit-b-32", rngs=nnx.Rngs(0), **overrides))


def test_a_nested_config_may_be_given_whole():
    text = dataclasses.replace(clip.VARIANTS["clip-vit-l-14"].text, context_length=9)
    assert nnx.eval_shape(lambda: tiny_clip(text=text)).config.text is text


@pytest.mark.parametrize(
    "name, hint", [("clip-vit-b-23", "clip-vit-b-32"), ("CLIP-ViT-L-14", "-l-14")]
)
def test_unknown_names_raise_with_the_nearest(name, hint):
    with pytest.raises(ValueError, match=f"unknown model {name!r}.*Known: clip-vit-b-16") as error:
        models.create(name, rngs=nnx.Rngs(0))
    assert hint in str(error.value)


def test_config_survives_a_dictionary():
    config = clip.VARIANTS["clip-vit-l-14"]
    assert registry.config_from_dict(clip.CLIPConfig, dataclasses.asdict(config)) == config


def test_family_of_a_stranger_raises():
    with pytest.raises(TypeError, match="Linear is not one of the models: clip"):
        registry.family_of(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
