"""V-JEPA 2: tubelets and their places, boxes as windows, and memory at its published sizes."""

import dataclasses
import itertools
import math
import re

import jax
import numpy as np
import pytest
from flax import nnx

import models
from fna_jax import FNAConfig
from models import registry
from models.reductions import Remaining
from models.rotary import rotate_neighbours, tubelet_angles
from models.vjepa2 import VARIANTS
from tests.conftest import random_images, rel_max_error
from tests.models.test_every_family import tiny

PUBLISHED = VARIANTS["vjepa2-vit-l-16-256"]
GRID = (3, 2, 4)  # tubelets in time, down and across: no two alike, and not square
VIDEOS = random_images(1, batch=2 * 6, height=16, width=32).reshape(2, 6, 16, 32, 3)
BOXES = FNAConfig((0,), 8, approximation="centroid", partition="windows")

forward = nnx.jit(lambda model, videos: model(videos))


@pytest.fixture(scope="module")
def boxes():
    """The output of the tiny model with clusters that are windows in block 0, and its features."""
    capture = models.Capture(features=(1,), finished=True)
    run = nnx.jit(lambda model, videos: model(videos, capture=capture))
    return run(models.with_attention(tiny("vjepa2"), BOXES), VIDEOS)


def test_tokens_are_tubelets_in_time_down_and_across():
    model = tiny("vjepa2")
    tokens = np.asarray(jax.jit(model.embed)(VIDEOS)).reshape(2, *GRID, -1)
    kernel, bias = (
        np.asarray(x[...]) for x in jax.tree.leaves(nnx.state(model.patch_embedding))[::-1]
    )
    for t, i, j in itertools.product(*map(range, GRID)):
        tubelet = VIDEOS[:, 2 * t : 2 * t + 2, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
        pixels = np.moveaxis(tubelet, 1, 3).reshape(2, 8, 8, 6)  # frame by frame, then channels
        expected = np.einsum("bhwc,hwcd->bd", pixels, kernel) + bias
        assert rel_max_error(tokens[:, t, i, j], expected) < 2e-6


@pytest.mark.slow
def test_an_image_is_a_video_of_two_frames_that_are_the_same():
    model, image = tiny("vjepa2"), VIDEOS[:, 0]
    alone, twice = forward(model, image), forward(model, np.stack([image, image], axis=1))
    assert rel_max_error(alone.tokens, twice.tokens) < 2e-6
    assert model.grid(image) == (2, 4) and model.grid(VIDEOS) == GRID


@pytest.mark.parametrize("head_dim", [6, 16])
def test_each_channel_turns_by_its_own_angle(head_dim):
    """A part of 2 ⌊D/6⌋ channels for each axis, its angles twice in a row, the rest at no place."""
    rng = np.random.default_rng(head_dim)
    places = rng.integers(0, 30, (5, 3))
    states = rng.standard_normal((2, 1 + 5, 2, head_dim)).astype(np.float32)
    turn = lambda x: rotate_neighbours(x, tubelet_angles(places, head_dim), num_prefix=1)
    found = np.asarray(jax.jit(turn)(states))
    np.testing.assert_array_equal(found[:, 0], states[:, 0])
    half = head_dim // 6
    for token, channel in itertools.product(range(5), range(head_dim)):
        axis, within = divmod(channel, 2 * half)
        period = 10000 ** ((within % half) / half)
        angle = places[token, axis] / period if axis < 3 else 0.0
        own, other = (states[:, 1 + token, :, i] for i in (channel, channel ^ 1))
        sign = 1 if channel % 2 else -1
        expected = own * np.cos(angle) + sign * other * np.sin(angle)
        np.testing.assert_allclose(found[:, 1 + token, :, channel], expected, atol=1e-5)


def test_places_are_numbers_of_tubelets():
    shallow = registry.override(PUBLISHED, {"encoder": {"depth": 1}})
    model = registry.abstract_model(registry.FAMILIES["vjepa2"].model, shallow)
    of_video = np.asarray(model._angles(np.array([[3, 5, 7]])))[0]
    np.testing.assert_allclose(of_video[[0, 10, 20, 30, 40, 50]], [3, 3, 5, 5, 7, 7])
    np.testing.assert_array_equal(of_video[60:], 0)  # of 64 channels 3 · 20 turn
    of_image = np.asarray(model._angles(np.array([[5, 7]])))[0]
    np.testing.assert_array_equal(of_image[:20], 0)
    np.testing.assert_array_equal(of_image[20:], of_video[20:])


def test_features_lie_on_the_grid_of_the_video(boxes):
    features = boxes.captured.features[1]
    assert features.shape == (2, *GRID, 32)
    np.testing.assert_array_equal(features.reshape(boxes.tokens.shape), boxes.tokens)


def test_windows_are_boxes_in_time_and_space(boxes):
    of_video = np.asarray(boxes.landmarks.assignment[0]).reshape(GRID)
    assert len(np.unique(of_video)) == 8
    for window in np.unique(of_video):
        places = np.argwhere(of_video == window)
        assert len(places) == np.prod(np.ptp(places, axis=0) + 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "windows", [dict(num_landmarks=2, windows=4, near=1), dict(num_landmarks=24)]
)
def test_it_is_exact_where_nothing_is_left_out(windows):
    """All tokens near to each, or a cluster for each."""
    settings = dataclasses.replace(BOXES, layers="0:2", **windows)
    exact = forward(tiny("vjepa2"), VIDEOS)
    output = forward(models.with_attention(tiny("vjepa2"), settings), VIDEOS)
    assert rel_max_error(output.tokens, exact.tokens) < 1e-5
    assert rel_max_error(output.pooled, exact.pooled) < 1e-5


def test_merged_tubelets_are_turned_by_their_mean_places():
    """As if some were gone already, where each is at a place of its own."""
    turn = lambda x, query, key, value, landmarks: query
    (attend,) = tiny("vjepa2").position_attends([turn], VIDEOS)
    states = np.random.default_rng(0).standard_normal((2, 24, 2, 16)).astype(np.float32)
    left = Remaining.all_of(states[:, :, 0], GRID, 0)
    clusters = dataclasses.replace(left.clusters, num_clusters=25)
    merged = dataclasses.replace(left, clusters=clusters)
    run = jax.jit(lambda landmarks: attend(None, states, states, states, landmarks))
    np.testing.assert_allclose(run((merged,)), run(()), atol=1e-4)  # places are in float32
    assert rel_max_error(run((merged,)), states) > 0.1


@pytest.mark.parametrize("size", ["8,192 tokens", "18,432 tokens"])
def test_nothing_is_as_large_as_the_matrix_of_all_tokens(size):
    side = 256 if size.startswith("8") else 384
    small = dict(width=8, depth=1, num_heads=1, mlp_dim=8)
    changes = dict(encoder=small, num_classes=3, pooler_depth=1)
    model = registry.abstract_model(
        registry.FAMILIES["vjepa2"].model, registry.override(PUBLISHED, changes)
    )
    videos = jax.ShapeDtypeStruct((1, 64, side, side, 3), np.float32)
    num_tokens = math.prod(model.grid(videos))
    assert f"{num_tokens:,} tokens" == size
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda state, videos: nnx.merge(graphdef, state).classify(videos))
    shapes = re.findall(r"tensor<([0-9x]+)x[a-z]", run.lower(state, videos).as_text())
    sizes = {math.prod(map(int, shape.split("x"))) for shape in shapes}
    assert 8 * num_tokens in sizes and max(sizes - {videos.size}) < num_tokens**2 / 8


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 5, 16, 16, 3), "5 frames do not divide by the 2 of a tubelet; .* 4 or 6"),
        ((1, 1, 16, 16, 3), "nearest that do: 2$"),
        ((1, 0, 16, 16, 3), "0 frames"),
        ((1, 2, 16, 20, 3), "width 20 does not divide .*: 16 or 24"),
        ((2, 16, 16), "preprocessed floats"),
        ((1, 2, 16, 16, 4), "preprocessed floats"),
    ],
)
def test_videos_that_do_not_divide_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        tiny("vjepa2")(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(num_frames=0), "num_frames .* got 0"),
        (dict(pooler_depth=0), "pooler_depth .* got 0"),
        (dict(encoder=dict(num_heads=256)), "at least 6, got 4"),
        (dict(encoder=dict(width=21, num_heads=3)), "an even number of channels, .* got 7"),
        (dict(image_size=255), "255 does not divide"),
    ],
)
def test_bad_configs_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        registry.override(PUBLISHED, changes)


def test_the_encoder_alone_has_no_classifier():
    model = registry.abstract_model(
        registry.FAMILIES["vjepa2"].model, dataclasses.replace(tiny("vjepa2").config, num_classes=0)
    )
    assert not hasattr(model, "pooler")
    with pytest.raises(ValueError, match="no classifier"):
        model.classify(VIDEOS)
