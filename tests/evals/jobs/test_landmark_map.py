import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from evals.jobs.landmark_map import cluster_maps, displayable, landmark_points
from evals.running.pretrained import open_pretrained
from fna_jax import FNAConfig
from models.inputs.preprocessing import Preprocessor


@pytest.mark.parametrize("height, width", [(64, 64), (32, 64)])
def test_points_are_centres_of_distinct_patches_inside_the_image(small_model, height, width):
    pretrained = open_pretrained(str(small_model)).with_attention(FNAConfig((1,), 8))
    images = np.random.default_rng(0).normal(size=(3, height, width, 3)).astype(np.float32)
    for points in landmark_points(pretrained, images):
        assert points.shape == (7, 2)  # without the class token
        assert len(np.unique(points, axis=0)) == 7
        np.testing.assert_array_equal(points % 8, 4.0)
        assert (points > 0).all() and (points < (height, width)).all()


def test_the_point_lies_where_the_patch_differs(small_model):
    """Farthest points on the input must find the one patch that is unlike the others."""
    fna = FNAConfig((0,), 3, features="input")
    pretrained = open_pretrained(str(small_model)).with_attention(fna)
    model = nnx.clone(pretrained.model)
    model.vision.positions[...] = jnp.zeros_like(model.vision.positions[...])
    pretrained = dataclasses.replace(pretrained, model=model)
    images = np.zeros((1, 64, 64, 3), np.float32)
    images[0, 16:24, 40:48] = 50.0
    assert [20.0, 44.0] in landmark_points(pretrained, images)[0].tolist()


@pytest.mark.parametrize("height, width", [(64, 32), (32, 64)])
def test_clusters_that_are_windows_lie_where_the_windows_do(small_model, height, width):
    fna = FNAConfig((1,), 2, approximation="centroid", partition="windows")
    pretrained = open_pretrained(str(small_model)).with_attention(fna)
    images = np.zeros((2, height, width, 3), np.float32)
    maps, points = cluster_maps(pretrained, images), landmark_points(pretrained, images)
    halves = np.repeat([[1], [2]], 4, axis=0).repeat(4, axis=1)  # of the long side; 0 is the prefix
    for clusters, middles in zip(maps, points):
        np.testing.assert_array_equal(clusters, halves if height > width else halves.T)
        expected = np.array([[16.0, 16.0], [48.0, 16.0]])
        np.testing.assert_array_equal(middles, expected if height > width else expected[:, ::-1])


def test_displayable_undoes_the_normalisation():
    preprocess = Preprocessor(None, None, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    shown = displayable(preprocess(pixels)[None], preprocess)[0]
    np.testing.assert_allclose(shown, pixels / 255, atol=1e-6)
