"""Views with centroid attention, and with other settings in other blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from fna_jax import Clusters, FNAConfig, Landmarks, Masking, kmeans_clusters
from tests.conftest import random_images, rel_max_error
from tests.models.test_every_family import FEW_FAMILIES, tiny

CENTROID = dict(approximation="centroid", features="k")
IMAGES = random_images(height=40, width=24)  # 5 × 3 patches


@nnx.jit
def forward(model, images):
    return model(images)


@nnx.jit
def compare(model, images):
    return model(images, compare=True)


@FEW_FAMILIES
def test_with_each_token_its_own_cluster_every_family_is_exact(family):
    model = tiny(family)
    num_tokens = models.vision_tower(model).num_prefix + 15
    view = models.with_attention(model, FNAConfig("0:2", num_tokens, **CENTROID))
    output = forward(view, IMAGES)
    assert rel_max_error(output.tokens, forward(model, IMAGES).tokens) < 1e-5
    assert isinstance(output.landmarks, Clusters)


@pytest.mark.slow
def test_blocks_have_settings_of_their_own():
    model = tiny("dinov2")
    near = FNAConfig((0,), 15, approximation="centroid", partition="windows", windows=4, near=1)
    fna = FNAConfig((1,), 8, resample=True)
    both = models.with_attention(model, [fna, near])
    output, errors = forward(both, IMAGES), compare(both, IMAGES).attention_error
    assert isinstance(output.landmarks, Landmarks)  # the last block's
    for row, config in enumerate((near, fna)):
        alone = compare(models.with_attention(model, config), IMAGES).attention_error
        np.testing.assert_allclose(errors[row], alone[0], rtol=1e-4)


@pytest.mark.slow
def test_clusters_are_handed_on_as_they_are_or_refined():
    model, settings = tiny("clip"), dict(num_landmarks=6, partition="kmeans", **CENTROID)
    clusters = {
        (layers, refine): forward(
            models.with_attention(model, FNAConfig(layers, refine=refine, **settings)), IMAGES
        ).landmarks
        for layers, refine in (("0:1", 0), ("0:2", 0), ("0:2", 1))
    }
    first, shared, refined = clusters.values()
    np.testing.assert_array_equal(shared.assignment, first.assignment)

    tower = models.with_attention(model, FNAConfig("0:1", **settings)).vision
    expected = clusters_in_second_block(tower, first)
    np.testing.assert_array_equal(refined.assignment, expected.assignment)
    assert (np.asarray(refined.assignment) != first.assignment).any()


@jax.jit
def clusters_in_second_block(tower, first):
    """Those of the first block after one step on the second block's keys."""
    tokens = tower(IMAGES, capture=models.Capture(outputs=(0,))).captured.outputs[0]
    block = tower.encoder.blocks[1]
    key = block.attention.project(block.norm1(tokens))[1]
    return kmeans_clusters(jnp.mean(key, axis=2), first, steps=1)


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        ([FNAConfig("0:2", 4), FNAConfig((1,), 4)], r"blocks \[1\] are in the layers of two"),
        ([FNAConfig((0,), 4), FNAConfig((2,), 4)], "has blocks 0 to 1"),
        (FNAConfig((0,), 1, **CENTROID), "leaves no cluster to the patches"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(configs, message):
    with pytest.raises(ValueError, match=message):
        models.with_attention(tiny("clip"), configs)


def test_masking_in_a_block_of_centroids_is_refused():
    view = models.with_attention(tiny("clip"), FNAConfig((1,), 4, **CENTROID))
    with pytest.raises(ValueError, match="block 1 runs centroid attention"):
        models.with_interventions(view, {1: Masking("X->T")})
