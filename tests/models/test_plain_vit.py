"""The plain ViT: where the last norm sits, what is pooled, and what a config refuses."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from models.configs import EncoderConfig
from models.plain_vit import ViT, ViTConfig
from tests.conftest import few, random_images, rel_max_error

ENCODER = EncoderConfig(16, 1, 2, 32, "gelu", 1e-6)
CONFIG = ViTConfig(16, 8, "bicubic", ENCODER, num_classes=3)
IMAGES = random_images(height=16, width=24)

forward = nnx.jit(lambda model, images: model(images))


def model(**changes):
    return ViT(dataclasses.replace(CONFIG, **changes), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("norm", few(["tokens", "pooled"]))
def test_the_mean_is_of_the_patches_alone(class_token, norm):
    vit = model(class_token=class_token, pool="avg", norm=norm)
    output = forward(vit, IMAGES)
    assert output.tokens.shape == (2, class_token + 2 * 3, 16)
    mean = np.asarray(output.tokens)[:, int(class_token) :].mean(axis=1)
    expected = mean if norm == "tokens" else nnx.jit(lambda norm, x: norm(x))(vit.norm, mean)
    assert rel_max_error(output.pooled, expected) < 1e-6


def test_the_class_token_is_the_same_wherever_the_norm_sits():
    tokens, pooled = model(norm="tokens"), model(norm="pooled")
    tokens, pooled = forward(tokens, IMAGES), forward(pooled, IMAGES)
    assert rel_max_error(tokens.pooled, pooled.pooled) < 1e-6
    assert rel_max_error(tokens.tokens, pooled.tokens) > 1e-3


def test_a_model_without_a_classifier_says_so():
    with pytest.raises(ValueError, match="no classifier: its num_classes is 0"):
        model(num_classes=0).classify(IMAGES)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(pool="map"), "pool must be one of token, avg"),
        (dict(norm="none"), "norm must be one of tokens, pooled"),
        (dict(class_token=False), "needs class_token"),
        (dict(num_classes=-1), "num_classes must be at least 0"),
        (dict(patch_size=5), "16 does not divide by patch_size 5"),
        (dict(position_resize="nearest"), "position_resize must be one of"),
    ],
)
def test_configs_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)
