"""Landmark selection against a brute force, its rules for masks, and its golden indices."""

import functools

import jax
import numpy as np
import pytest

from fna_jax import Landmarks, farthest_point_sampling, select_landmarks
from fna_jax.landmarks import METHODS
from tests.conftest import REFERENCES

GOLDEN = np.load(REFERENCES / "fna_core.npz")

fps = jax.jit(farthest_point_sampling, static_argnames="num_samples")
select = jax.jit(select_landmarks, static_argnames=("num_landmarks", "method"))


def brute_force_fps(points, num_samples, eligible=None):
    """Greedy k-center by the definition, float64; -1 where the eligible points run out."""
    points = np.asarray(points, np.float64)
    left = list(range(len(points)) if eligible is None else np.flatnonzero(eligible))
    taken = []
    while left and len(taken) < num_samples:
        gaps = [
            min((np.linalg.norm(points[i] - points[j]) for j in taken), default=0) for i in left
        ]
        taken.append(left.pop(int(np.argmax(gaps))))  # the first of the largest
    return taken + [-1] * (num_samples - len(taken))


def points(seed=0, tokens=30, width=5, batch=()):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((*batch, tokens, width)).astype(np.float32)


def mask(seed, share, batch=(3,), tokens=30):
    return np.random.default_rng(seed).random((*batch, tokens)) < share


def slots(landmarks):
    """Indices as a NumPy array, -1 on invalid slots."""
    return np.where(landmarks.valid, landmarks.indices, -1)


def expected_row(features, num_landmarks, guarantee, exclude):
    """The rules of `select_landmarks` for one image."""
    first = np.flatnonzero(guarantee)[:num_landmarks]
    rest = brute_force_fps(features, num_landmarks - len(first), ~guarantee & ~exclude)
    return [*first, *rest]


@pytest.mark.parametrize("case", ["0", "1"])
@pytest.mark.parametrize("kind", ["plain", "guarantee", "guarantee_exclude", "query_mean"])
def test_golden_landmarks(case, kind):
    array = {name: GOLDEN[f"{case}/{name}"] for name in ("features", "guarantee", "exclude")}
    features = array["features"]
    if kind == "query_mean":
        features = GOLDEN[f"{case}/query"].mean(axis=2)
    expected = GOLDEN[f"{case}/landmarks_{kind}"]
    landmarks = select(
        features,
        expected.shape[1],
        guarantee=None if kind == "plain" else array["guarantee"],
        exclude=array["exclude"] if kind == "guarantee_exclude" else None,
    )
    np.testing.assert_array_equal(slots(landmarks), expected)


# Farthest point sampling.


@pytest.mark.parametrize("num_samples", [1, 2, 7, 30])
@pytest.mark.parametrize("width", [1, 5])
def test_fps_is_the_greedy_k_center(num_samples, width):
    x = points(tokens=30, width=width)
    indices = fps(x, num_samples)
    assert indices.dtype == np.int32
    np.testing.assert_array_equal(indices, brute_force_fps(x, num_samples))


def test_ties_go_to_the_lowest_index():
    grid = np.stack(np.meshgrid(np.arange(5), np.arange(6)), -1).reshape(30, 2)  # exact distances
    indices = np.asarray(fps(grid, 30))
    np.testing.assert_array_equal(indices, brute_force_fps(grid, 30))
    assert sorted(indices) == list(range(30))
    np.testing.assert_array_equal(fps(np.array([[0.0], [1], [-1], [1]]), 3), [0, 1, 2])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_only_eligible_points_are_taken(share):
    x, eligible = points(), mask(4, share, batch=())
    indices = fps(x, 7, eligible=eligible)
    np.testing.assert_array_equal(indices, brute_force_fps(x, 7, eligible))


def test_fps_of_one_point():
    np.testing.assert_array_equal(fps(np.ones((1, 3)), 1), [0])
    np.testing.assert_array_equal(fps(np.ones((1, 3)), 1, eligible=np.array([False])), [-1])


def test_constant_points_are_taken_in_order():
    np.testing.assert_array_equal(fps(np.ones((30, 5)), 7), np.arange(7))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("where", ["first", "some", "all"])
def test_non_finite_points_never_give_duplicates(bad, where):
    x = points()
    x[{"first": [0], "some": [3, 4, 20], "all": slice(None)}[where]] = bad
    indices = np.asarray(fps(x, 30))
    assert sorted(indices) == list(range(30))
    eligible = np.arange(30) % 3 == 0
    few = np.asarray(fps(x, 30, eligible=eligible))
    assert sorted(few[:10]) == list(range(0, 30, 3)) and (few[10:] == -1).all()


def test_fps_in_half_precision_measures_in_float32():
    x = (300 * points()).astype(np.float16)  # squared distances overflow float16
    np.testing.assert_array_equal(fps(x, 9), brute_force_fps(x, 9))


def test_fps_under_vmap_is_a_loop():
    x, eligible = points(batch=(3,)), mask(5, 0.3)
    mapped = jax.jit(jax.vmap(lambda x, e: farthest_point_sampling(x, 9, eligible=e)))(x, eligible)
    for row, x_row, eligible_row in zip(np.asarray(mapped), x, eligible):
        np.testing.assert_array_equal(row, fps(x_row, 9, eligible=eligible_row))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((np.ones((2, 30, 5)), 3), r"points must be \[N, C\].*\(2, 30, 5\).*vmap"),
        ((np.ones((30, 5)), 0), r"in 1..30 \(the tokens\), got 0"),
        ((np.ones((30, 5)), 31), "got 31"),
        ((np.ones((30, 5)), 2.0), "static integer, got 2.0"),
    ],
)
def test_fps_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        farthest_point_sampling(*arguments)


@pytest.mark.parametrize("eligible", [np.ones(29, bool), np.ones((1, 30), bool), np.ones(30)])
def test_fps_refuses_a_mask_that_does_not_fit(eligible):
    with pytest.raises(ValueError, match=r"eligible must be bool\[30\], got (bool|float)"):
        farthest_point_sampling(np.ones((30, 5)), 3, eligible=eligible)


def test_a_traced_number_of_samples_raises():
    with pytest.raises(ValueError, match="static integer"):
        jax.jit(lambda n: farthest_point_sampling(np.ones((30, 5)), n))(3)


# Guarantee and exclude.


@pytest.mark.parametrize("guaranteed", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("excluded", [0.0, 0.3, 1.0])
def test_guarantee_and_exclude(guaranteed, excluded):
    x, guarantee, exclude = points(batch=(3,)), mask(6, guaranteed), mask(7, excluded)
    landmarks = select(x, 9, guarantee=guarantee, exclude=exclude)
    for b in range(3):
        np.testing.assert_array_equal(
            slots(landmarks)[b], expected_row(x[b], 9, guarantee[b], exclude[b])
        )


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_a_batch_may_differ_in_what_is_available(method):
    exclude = np.arange(30) >= np.array([30, 5, 0])[:, None]  # 30, 5 and no eligible tokens
    guarantee = np.zeros((3, 30), bool)
    guarantee[:, 20] = [False, True, True]
    rng = jax.random.key(0) if method == "random" else None
    landmarks = select(
        points(batch=(3,)), 9, method=method, guarantee=guarantee, exclude=exclude, rng=rng
    )
    np.testing.assert_array_equal(np.asarray(landmarks.valid).sum(-1), [9, 6, 1])
    np.testing.assert_array_equal(np.where(landmarks.valid, 0, landmarks.indices), 0)
    assert sorted(slots(landmarks)[1]) == [-1, -1, -1, 0, 1, 2, 3, 4, 20]
    assert slots(landmarks)[2].tolist() == [20] + [-1] * 8


def test_guaranteed_tokens_do_not_seed_the_distances():
    x = np.array([[0.0], [0.0], [9.0], [1.0]])
    guarantee = np.array([False, False, True, False])
    # Seeded by the 9, the first sample would be the same but the 1 would be no farther than the 0.
    assert select(x, 3, guarantee=guarantee).indices.tolist() == [2, 0, 3]
    far = x.copy()
    far[2] = -1e6
    assert select(far, 3, guarantee=guarantee).indices.tolist() == [2, 0, 3]


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_batch_dimensions(batch):
    x, guarantee = points(batch=batch), mask(8, 0.1, batch)
    landmarks = select(x, 7, guarantee=guarantee)
    assert landmarks.indices.shape == landmarks.valid.shape == (*batch, 7)
    assert landmarks.indices.dtype == np.int32 and landmarks.valid.dtype == bool
    for index in np.ndindex(*batch):
        np.testing.assert_array_equal(
            slots(landmarks)[index], expected_row(x[index], 7, guarantee[index], np.zeros(30, bool))
        )


def test_select_under_vmap_and_eager_is_the_batched_call():
    x, guarantee, exclude = points(batch=(3,)), mask(6, 0.1), mask(7, 0.8)
    batched = slots(select(x, 9, guarantee=guarantee, exclude=exclude))
    one = lambda x, g, e: select_landmarks(x, 9, guarantee=g, exclude=e)
    np.testing.assert_array_equal(slots(jax.jit(jax.vmap(one))(x, guarantee, exclude)), batched)
    eager = select_landmarks(x, 9, guarantee=guarantee, exclude=exclude)
    np.testing.assert_array_equal(slots(eager), batched)


@pytest.mark.parametrize("method", METHODS)
def test_every_token_a_landmark(method):
    rng = jax.random.key(0) if method == "random" else None
    landmarks = select(points(batch=(3,)), 30, method=method, rng=rng)
    np.testing.assert_array_equal(
        np.sort(slots(landmarks)), np.broadcast_to(np.arange(30), (3, 30))
    )


# Random landmarks.


def test_random_landmarks_are_uniform_without_replacement_and_respect_masks():
    guarantee, exclude = np.arange(20) == 3, np.arange(20) >= 16
    draw = functools.partial(
        select_landmarks, np.ones((20, 1)), 6, method="random", guarantee=guarantee, exclude=exclude
    )
    draws = slots(
        jax.jit(jax.vmap(lambda key: draw(rng=key)))(jax.random.split(jax.random.key(0), 3000))
    )
    assert (draws[:, 0] == 3).all()
    assert all(len(set(row)) == 6 for row in draws.tolist())
    counts = np.bincount(draws[:, 1:].ravel(), minlength=20)
    assert counts[3] == 0 and (counts[16:] == 0).all()
    # Each of 15 tokens is drawn with probability 1/3: mean 1000, standard deviation 26.
    np.testing.assert_allclose(np.delete(counts[:16], 3), 1000, atol=5 * 26)


def test_random_landmarks_differ_between_images_and_keys_and_repeat_for_a_key():
    draw = lambda seed: slots(
        select(np.ones((2, 30, 1)), 9, method="random", rng=jax.random.key(seed))
    )
    assert (draw(0)[0] != draw(0)[1]).any()
    assert (draw(0) != draw(1)).any()
    np.testing.assert_array_equal(draw(0), draw(0))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(features=np.ones(30)), r"\[\*B, N, C\], got shape \(30,\)"),
        (dict(num_landmarks=31), r"1..30 \(the tokens\), got 31"),
        (dict(num_landmarks=0), "got 0"),
        (dict(method="kmeans"), "'kmeans'; choose from fps, random"),
        (dict(method="random"), r"pass rng=jax.random.key\(seed\)"),
        (dict(rng=0), "method='fps' draws nothing"),
        (dict(guarantee=np.ones(30, bool)), r"guarantee must be bool\[2, 30\], got bool\[30\]"),
        (dict(exclude=np.ones((2, 30), np.int32)), r"exclude must be bool.*got int32\[2, 30\]"),
    ],
)
def test_select_errors(change, message):
    with pytest.raises(ValueError, match=message):
        select_landmarks(**{"features": np.ones((2, 30, 5)), "num_landmarks": 3, **change})


def test_landmarks_are_a_pytree_that_marks_empty_slots():
    landmarks = Landmarks.from_indices(np.array([4, -1, 2]))
    assert landmarks.indices.tolist() == [4, 0, 2] and landmarks.valid.tolist() == [
        True,
        False,
        True,
    ]
    leaves, treedef = jax.tree.flatten(landmarks)
    assert len(leaves) == 2 and isinstance(jax.tree.unflatten(treedef, leaves), Landmarks)
