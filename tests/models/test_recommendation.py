"""The settings that are recommended fit every model and every number of tokens."""

import dataclasses

import jax
import numpy as np
import pytest

import models
from evals.jobs.cost import vision_cost
from fna_jax.config import config_by_block
from models.recommendation import recommended_for
from tests.models.test_every_family import FEW_FAMILIES, tiny

SIZES = [1, 64, 257, 999, 1000, 1370, 1999, 2000, 4097, 16130]

PUBLISHED = {name: models.registry.published(name)[1] for name in models.list_models()}
WITH_TOWERS = [name for name, config in PUBLISHED.items() if models.registry.has_vision(config)]


def encoder_of(name):
    """The encoder of a published size."""
    return models.registry.vision_config(PUBLISHED[name]).encoder


@pytest.mark.parametrize("name", WITH_TOWERS)
def test_what_is_recommended_saves_arithmetic_from_some_number_of_tokens_on(name):
    encoder, gains = encoder_of(name), {}
    halves = set(), set(range(encoder.depth // 2, encoder.depth)), set(range(encoder.depth))
    for error, where in ((0.25, {2}), (0.2, {1, 2}), (0.1, {1}), (0.06, {1}), (0.05, {0})):
        for num_tokens in SIZES:
            fnas = recommended_for(encoder, num_tokens, error)
            blocks = config_by_block(fnas).keys()  # two configs have none of them in common
            assert blocks in [set(), *(halves[number] for number in where)]
            gains[error, num_tokens] = vision_cost(encoder, num_tokens, fnas).speedup
        of_sizes = [gains[error, num_tokens] for num_tokens in SIZES]
        assert of_sizes[:4] == [1] * 4 and of_sizes == sorted(of_sizes)
        assert all(gain == 1 or gain > 1.05 for gain in of_sizes)
    assert gains[0.25, 16130] > 1.5 > gains[0.05, 16130] == 1
    for num_tokens in SIZES:  # a higher ceiling is no slower
        of_errors = [gains[error, num_tokens] for error in (0.05, 0.06, 0.1, 0.2, 0.25)]
        assert of_errors == sorted(of_errors)


@FEW_FAMILIES
def test_every_family_runs_it(family):
    model = tiny(family)
    side = 8 * 35  # 1,225 patches
    images = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    num_tokens = 35**2 + models.vision_tower(model).num_prefix
    fnas = models.recommended(model, num_tokens)
    view = models.vision_tower(models.with_attention(model, fnas))
    assert len(fnas) == 2 and fnas[0].windows and not fnas[1].windows
    assert jax.eval_shape(view, images).tokens.shape == (1, num_tokens, 32)


def test_a_model_of_one_block_is_approximated_in_it():
    encoder = dataclasses.replace(encoder_of("vit-ti-16"), depth=1)
    (fna,) = recommended_for(encoder, 5000, error=0.25)
    assert fna.layers == (0,)


def test_what_is_no_model_and_a_number_of_tokens_that_is_none_are_refused():
    with pytest.raises(TypeError, match="ViTConfig is not one of the models"):
        models.recommended(tiny("vit").config, 5000)
    with pytest.raises(ValueError, match="num_tokens must be at least 1, got 0"):
        models.recommended(tiny("vit"), 0)
    with pytest.raises(TypeError):
        models.recommended(tiny("vit"), 1e3)
