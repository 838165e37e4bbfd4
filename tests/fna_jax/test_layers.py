"""Centroid attention of a layer by its settings."""

import functools

import jax
import numpy as np
import pytest

from fna_jax import FNAConfig, select_landmarks
from fna_jax.centroids import Windows, assign_clusters, centroid_attention, kmeans_clusters
from fna_jax.layers import attend_in_layer, partition_in_layer
from tests.conftest import random_qkv

GRID, PREFIX, TOKENS = (5, 7), 1, 36
VIDEO = (5, 7, 1)  # as many patches, in time, down and across
QUERY, KEY, VALUE = random_qkv(tokens=TOKENS)
STATES = {"input": QUERY.reshape(2, TOKENS, -1), "q": QUERY, "k": KEY, "v": VALUE}


def config(num_landmarks=6, **settings):
    return FNAConfig((0,), num_landmarks, approximation="centroid", **settings)


@functools.partial(jax.jit, static_argnames="config")
def partition(config, clusters=None, **options):
    return partition_in_layer(STATES, config, clusters, grid=GRID, num_prefix=PREFIX, **options)


assign = jax.jit(assign_clusters, static_argnames="num_prefix")
kmeans = jax.jit(kmeans_clusters, static_argnames="steps")
select = jax.jit(select_landmarks, static_argnums=1)


def same(clusters, expected):
    np.testing.assert_array_equal(clusters.assignment, expected.assignment)
    assert clusters.num_clusters == expected.num_clusters
    assert clusters.num_prefix == expected.num_prefix


@pytest.mark.parametrize("features", ["k", "input"])
def test_clusters_of_landmarks(features):
    points = KEY.mean(2) if features == "k" else STATES["input"]
    guarantee = np.broadcast_to(np.arange(TOKENS) < PREFIX, (2, TOKENS))
    landmarks = select(points, 6, guarantee=guarantee)
    nearest = assign(points, landmarks, num_prefix=1)
    same(partition(config(features=features)), kmeans(points, nearest, steps=1))
    free = partition(config(features=features, guarantee_prefix=False))
    nearest = assign(points, select(points, 6))
    same(free, kmeans(points, nearest, steps=1))


def test_clusters_of_windows():
    windows = Windows(GRID, (2, 3), 0, PREFIX)
    same(partition(config(partition="windows")), windows.clusters((2,)))
    moved = kmeans(KEY.mean(2), windows.clusters((2,)), steps=3)
    same(partition(config(partition="kmeans", features="k")), moved)


def test_clusters_are_shared_refined_or_chosen_anew():
    before = Windows(GRID, (2, 3), 0, PREFIX).clusters((2,))
    same(partition(config(), before), before)
    refined = kmeans(VALUE.mean(2), before, steps=2)
    same(partition(config(features="v", refine=2), before), refined)
    same(partition(config(resample=True), before), partition(config()))


def test_padding_is_in_no_cluster():
    mask = np.arange(TOKENS) < np.array([[TOKENS], [30]])
    for settings in (config(), config(partition="kmeans"), config(partition="windows")):
        assignment = np.asarray(partition(settings, key_mask=mask).assignment)
        np.testing.assert_array_equal(assignment >= 0, mask)


@pytest.mark.parametrize(
    ("settings", "windows", "grid"),
    [
        ({}, None, GRID),
        (dict(windows=6), Windows(GRID, (2, 3), 0, PREFIX), GRID),
        (dict(windows=12, near=1, residual=False), Windows(GRID, (3, 4), 1, PREFIX), GRID),
        (dict(windows=12), Windows(VIDEO, (3, 4, 1), 0, PREFIX), VIDEO),
    ],
)
def test_attention_by_settings(settings, windows, grid):
    settings = config(**settings)
    clusters = partition(settings)
    of_layer = dict(config=settings, grid=grid, num_prefix=PREFIX)
    options = dict(windows=windows, residual=settings.residual)
    attend = jax.jit(functools.partial(attend_in_layer, **of_layer))
    by_hand = jax.jit(functools.partial(centroid_attention, **options))
    out = attend(QUERY, KEY, VALUE, clusters)
    np.testing.assert_array_equal(out, by_hand(QUERY, KEY, VALUE, clusters))
    assert np.isfinite(out).all()
