"""Features of blocks as maps of the image, the same in every family."""

import dataclasses

import jax
import pytest

import convert
import models
from tests import zoo
from tests.conftest import random_images, rel_max_error
from tests.models.test_every_family import FEW_FAMILIES, tiny


@FEW_FAMILIES
def test_features_are_the_patches_of_a_blocks_output_on_their_grid(family):
    tower = models.vision_tower(tiny(family))
    capture = models.Capture(features="0:2", outputs="0:2")

    @jax.jit
    def run(images):
        captures = capture, dataclasses.replace(capture, finished=True)
        plain, finished = (tower(images, capture=capture) for capture in captures)
        states = plain.captured.outputs
        ended = {block: tower.finish(tokens)[0] for block, tokens in states.items()}
        return plain.tokens, (plain.captured, states), (finished.captured, ended)

    tokens, *pairs = run(random_images(height=16, width=40))  # 2 by 5 patches
    for captured, states in pairs:
        assert captured.features.keys() == {0, 1}
        for block, features in captured.features.items():
            assert features.shape == (2, 2, 5, 32)
            for row, column in ((0, 0), (0, 4), (1, 3)):
                token = states[block][:, tower.num_prefix + 5 * row + column]
                assert rel_max_error(features[:, row, column], token) < 1e-6
    assert rel_max_error(pairs[1][1][1], tokens) < 1e-6


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: models.Capture(finished=True), "finished=True is about features"),
        (lambda: models.Capture(features="x"), "features must be block indices"),
        (
            lambda: tiny("vit")(random_images(), capture=models.Capture(features=(2,))),
            "blocks 0 to 1, got 2",
        ),
    ],
)
def test_features_of_no_block_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.reference
def test_features_are_those_of_transformers_backbones(transformers, tmp_path):
    import torch

    folder = zoo.write("dinov2_registers_hf", tmp_path / "source")
    backbone = transformers.Dinov2WithRegistersBackbone.from_pretrained(folder, out_indices=[1, 2])
    images = zoo.random_weight("images", (2, 32, 48, 3))
    with torch.no_grad():
        maps = backbone.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).feature_maps
    capture = models.Capture(features=(0, 1), finished=True)
    features = convert.load_pretrained(folder)(images, capture=capture).captured.features
    for block, expected in enumerate(maps):
        expected = expected.numpy().transpose(0, 2, 3, 1)
        assert rel_max_error(features[block], expected) < 1e-5  # measured: 3e-6
