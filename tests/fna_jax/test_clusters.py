"""Partitions of tokens: nearest landmarks, Lloyd steps, and windows of a grid."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fna_jax import Landmarks
from fna_jax.centroids import Clusters, Windows, assign_clusters, kmeans_clusters

assign = jax.jit(assign_clusters, static_argnames="num_prefix")
kmeans = jax.jit(kmeans_clusters, static_argnames="steps")


def features(seed=0, shape=(2, 30, 5)):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def distances(points, centers):
    points, centers = np.asarray(points, np.float64), np.asarray(centers, np.float64)
    return np.sum((points[:, None] - centers[None]) ** 2, axis=-1)


@pytest.mark.parametrize("offset", [0, 3e3])
def test_every_token_joins_its_nearest_landmark(offset):
    points = features() + np.float32(offset)  # far from the origin, where squares lose digits
    landmarks = np.array([[4, 9, 20, 1], [0, 3, 2, 29]], np.int32)
    clusters = assign(points, landmarks)
    assert clusters.num_clusters == 4
    for x, s, assignment in zip(points, landmarks, np.asarray(clusters.assignment)):
        np.testing.assert_array_equal(assignment, distances(x, x[s]).argmin(1))
        np.testing.assert_array_equal(assignment[s], np.arange(4))


def test_ties_go_to_the_lowest_slot():
    points = np.zeros((1, 6, 2), np.float32)
    points[0, 3:] = 1
    clusters = assign(points, np.array([[5, 3, 0, 1]], np.int32))
    np.testing.assert_array_equal(clusters.assignment, [[2, 2, 2, 0, 0, 0]])


def test_empty_slots_and_padding_get_no_token():
    points = features()
    mask = np.arange(30) < np.array([[30], [20]])
    points[1, 20:] = np.nan
    landmarks = np.array([[4, -1, 9, 2], [7, 3, 25, -1]], np.int32)  # 25 is padding
    assignment = np.asarray(assign(points, landmarks, key_mask=mask).assignment)
    assert set(assignment[0]) == {0, 2, 3}
    assert set(assignment[1, :20]) == {0, 1}
    assert (assignment[1, 20:] == -1).all()
    alone = assign(points[1:, :20], landmarks[1:, :2]).assignment
    np.testing.assert_array_equal(assignment[1:, :20], alone)


def test_a_row_without_landmarks_has_no_clusters():
    empty = Landmarks(jnp.zeros((1, 3), jnp.int32), jnp.zeros((1, 3), bool))
    assert (np.asarray(assign(features(shape=(1, 8, 2)), empty).assignment) == -1).all()


def test_the_prefix_is_alone_in_its_clusters():
    points = features()
    points[:, 5] = points[:, 0]  # as near to the class token as can be
    landmarks = np.array([[0, 1, 9, 12], [0, 1, 7, 3]], np.int32)
    clusters = assign(points, landmarks, num_prefix=2)
    for steps in (0, 2):
        moved = np.asarray(kmeans(points, clusters, steps=steps).assignment)
        np.testing.assert_array_equal(moved[:, :2], [[0, 1], [0, 1]])
        assert (moved[:, 2:] >= 2).all()
    for x, s, assignment in zip(points, landmarks, np.asarray(clusters.assignment)):
        np.testing.assert_array_equal(assignment[2:], 2 + distances(x[2:], x[s[2:]]).argmin(1))


def lloyd(points, assignment, num_clusters):
    """One step for one image, empty clusters left out; in float64."""
    taken = [s for s in range(num_clusters) if (assignment == s).any()]
    means = [points[assignment == s].astype(np.float64).mean(0) for s in taken]
    return np.array(taken)[distances(points, means).argmin(1)]


def test_kmeans_takes_lloyd_steps():
    points = features(1)
    start = np.random.default_rng(2).integers(0, 6, (2, 30)).astype(np.int32)
    start[start == 4] = 3  # an empty cluster
    expected = start
    for steps in range(4):
        found = kmeans(points, Clusters(start, 6), steps=steps)
        np.testing.assert_array_equal(found.assignment, expected)
        expected = np.stack([lloyd(x, a, 6) for x, a in zip(points, expected)])


def test_kmeans_does_not_see_padding():
    points = features(3)
    mask = np.arange(30) < np.array([[30], [17]])
    points[1, 17:] = np.nan
    start = np.tile(np.arange(30, dtype=np.int32) % 5, (2, 1))
    padded = np.asarray(kmeans(points, Clusters(start, 5), steps=2, key_mask=mask).assignment)
    alone = kmeans(points[1:, :17], Clusters(start[1:, :17], 5), steps=2).assignment
    np.testing.assert_array_equal(padded[1:, :17], alone)
    assert (padded[1, 17:] == -1).all()
    again = kmeans(points, Clusters(padded, 5), steps=1)  # padding stays in none without a mask
    assert (np.asarray(again.assignment)[1, 17:] == -1).all()


def test_clusters_are_a_pytree_with_a_static_number():
    clusters = Windows((4, 4), (2, 2)).clusters((3,))
    leaves, tree = jax.tree.flatten(clusters)
    assert len(leaves) == 1
    assert jax.tree.unflatten(tree, leaves).num_clusters == 4
    landmarks = np.array([[1, 2], [3, 4]], np.int32)
    batched = jax.jit(jax.vmap(assign_clusters))(features(), landmarks)
    np.testing.assert_array_equal(batched.assignment, assign(features(), landmarks).assignment)


GRIDS = [((4, 6), (2, 3)), ((5, 7), (2, 3)), ((7, 5), (3, 5)), ((1, 6), (1, 4)), ((3, 3), (3, 3))]
GRIDS += [((4, 5, 3), (2, 2, 3)), ((5, 2, 3), (3, 1, 2))]  # of videos


@pytest.mark.parametrize(("grid", "cut"), GRIDS)
@pytest.mark.parametrize("prefix", [0, 2])
def test_windows_are_the_even_rectangles_of_the_grid(grid, cut, prefix):
    windows = Windows(grid, cut, num_prefix=prefix)
    assignment = np.asarray(windows.clusters((2,)).assignment)
    assert assignment.shape == (2, windows.num_tokens)
    np.testing.assert_array_equal(assignment[0, :prefix], np.arange(prefix))
    numbers = assignment[1, prefix:].reshape(grid) - prefix
    axes = (np.array_split(np.arange(n), k) for n, k in zip(grid, cut))
    for number, window in enumerate(itertools.product(*axes)):  # row by row
        assert (numbers[np.ix_(*window)] == number).all()
    assert windows.num_windows == prefix + math.prod(cut)


@pytest.mark.parametrize(("grid", "cut"), GRIDS)
def test_split_collects_windows_and_join_undoes_it(grid, cut):
    windows = Windows(grid, cut)
    numbers = np.asarray(windows.clusters((2,)).assignment) + 1  # zeros are filling
    patches = np.stack([numbers, 10 + np.arange(math.prod(grid)) + 0 * numbers], axis=-1)
    patches = patches.astype(np.int32)

    @jax.jit
    def there_and_back(patches):
        split = windows.split(patches)
        return split, windows.join(split)

    split, joined = map(np.asarray, there_and_back(patches))
    for window in range(windows.num_windows):
        assert set(np.unique(split[:, window, :, 0])) <= {0, window + 1}
    assert np.sum(split[..., 0] > 0) == numbers.size
    np.testing.assert_array_equal(joined, patches)


def test_neighbours_are_the_windows_around():
    np.testing.assert_array_equal(Windows((4, 4), (2, 2)).neighbours(), [[0], [1], [2], [3]])
    for grid, cut in (((9, 12), (3, 4)), ((4, 6, 4), (2, 3, 4))):
        around = Windows(grid, cut, near=1).neighbours()
        assert around.shape == (math.prod(cut), 3 ** len(cut))
        places = np.stack(np.unravel_index(np.arange(len(around)), cut), axis=-1)
        for place, found in zip(places, around):
            steps = np.abs(places - place).max(axis=1)
            np.testing.assert_array_equal(np.sort(found[found >= 0]), np.flatnonzero(steps <= 1))


@pytest.mark.parametrize(
    ("count", "grid", "cut"),
    [
        (144, (37, 37), (12, 12)), (64, (37, 37), (8, 8)), (50, (37, 37), (7, 7)),
        (140, (37, 37), (11, 12)), (144, (20, 40), (8, 18)), (1, (5, 5), (1, 1)),
        (99, (3, 4), (3, 4)), (7, (1, 30), (1, 7)),
        (64, (32, 16, 16), (7, 3, 3)), (1000, (4, 2, 3), (4, 2, 3)), (1, (2, 2, 2), (1, 1, 1)),
    ],
)  # fmt: skip
def test_windows_are_as_square_as_they_go(count, grid, cut):
    assert Windows.at_most(count, grid, 1, 3) == Windows(grid, cut, 1, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(grid=(4, 4), cut=(5, 1)), "cannot be cut"),
        (dict(grid=(4,), cut=(1, 1)), "grid must be two"),
        (dict(grid=(4, 4), cut=(0, 1)), "cut must be two"),
        (dict(grid=(4, 4), cut=(2, 2.5)), "cut must be two"),
        (dict(grid=(4, 4), cut=(1, 2, 2)), "cannot be cut"),
        (dict(grid=(4, 4, 4, 4), cut=(1, 1)), "grid must be two numbers .* or three"),
        (dict(grid=(4, 4), cut=(2, 2), near=2), "near must be 0"),
        (dict(grid=(4, 4), cut=(2, 2), num_prefix=-1), "num_prefix"),
    ],
)
def test_windows_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Windows(**arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: assign_clusters(x[0, 0], np.array([0])), "features must be"),
        (lambda x: assign_clusters(x, np.zeros((3, 2), int)), "landmarks must be"),
        (lambda x: assign_clusters(x, np.zeros((2, 2), int), num_prefix=2), "num_prefix must lie"),
        (lambda x: assign_clusters(x, np.zeros((2, 2), int), key_mask=x[..., 0]), "key_mask must"),
        (lambda x: kmeans_clusters(x, Clusters(jnp.zeros((2, 29), int), 3)), "clusters must be"),
        (lambda x: kmeans_clusters(x, Clusters(jnp.zeros((2, 30), int), 3), steps=-1), "at least"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(features())
