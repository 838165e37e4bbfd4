"""Learned positions on other grids, tokens in front."""

import jax
import numpy as np
import pytest

from models.embeddings import POSITION_RESIZES, prepend, resize_positions, resize_to_corners

resize = jax.jit(resize_positions, static_argnames=("grid", "learned", "rule", "num_prefix"))
RULES = pytest.mark.parametrize("rule", POSITION_RESIZES)


@RULES
def test_positions_at_the_native_grid_are_untouched(rule):
    positions = np.random.default_rng(0).standard_normal((64, 32), np.float32)
    assert resize_positions(positions, (8, 8), learned=(8, 8), rule=rule, num_prefix=0) is positions
    resized = resize(
        np.ones((64, 32), np.float32), (5, 11), learned=(8, 8), rule=rule, num_prefix=0
    )
    np.testing.assert_allclose(resized, np.ones((55, 32)), rtol=1e-6)  # weights sum to one


@RULES
def test_resized_positions_keep_rows_and_columns_apart(rule):
    down = np.repeat(np.arange(8, dtype=np.float32), 8)[:, None]
    resized = resize(down, (16, 6), learned=(8, 8), rule=rule, num_prefix=0)
    resized = np.asarray(resized).reshape(16, 6)
    np.testing.assert_allclose(resized, resized[:, :1] * np.ones(6), rtol=1e-6)
    assert (np.diff(resized[1:-1, 0]) > 0).all()  # bicubic may overshoot at the border


@RULES
def test_a_learned_grid_need_not_be_square(rule):
    across = np.tile(np.arange(9, dtype=np.float32), 4)[:, None]
    keywords = dict(learned=(4, 9), rule=rule, num_prefix=0)
    assert resize_positions(across, (4, 9), **keywords) is across
    resized = np.asarray(resize(across, (6, 6), **keywords)).reshape(6, 6)
    np.testing.assert_allclose(resized, np.ones((6, 1)) * resized[:1], rtol=1e-5)
    assert (np.diff(resized[0, 1:-1]) > 0).all()  # bicubic may overshoot at the border


@RULES
def test_positions_of_tokens_in_front_stay(rule):
    positions = np.random.default_rng(0).standard_normal((2 + 16, 8), np.float32)
    resized = resize(positions, (3, 7), learned=(4, 4), rule=rule, num_prefix=2)
    assert resized.shape == (2 + 21, 8)
    np.testing.assert_array_equal(resized[:2], positions[:2])


def test_the_rules_differ():
    positions = np.random.default_rng(0).standard_normal((64, 8), np.float32)
    resized = [
        resize(positions, (5, 6), learned=(8, 8), rule=rule, num_prefix=0)
        for rule in POSITION_RESIZES
    ]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.max(np.abs(np.asarray(resized[i]) - resized[j])) > 0.01


def test_tokens_are_prepended_in_order_to_every_image():
    shapes = (3, 4, 2), (2,), (2, 2)
    tokens, one, two = (np.full(shape, x, np.float32) for x, shape in enumerate(shapes))
    out = np.asarray(prepend(tokens, one, two))
    assert out.shape == (3, 7, 2)
    np.testing.assert_array_equal(out[2, :, 0], [1, 2, 2, 0, 0, 0, 0])


def test_positions_that_reach_from_corner_to_corner():
    """Of a plane over rows and columns, what is bilinear is the plane, whatever the grid."""
    plane = lambda down, across: (down[:, None] + 10 * across).reshape(-1, 1)
    learned = plane(np.linspace(0, 3, 4), np.linspace(0, 2, 9)).astype(np.float32)
    for height, width in ((4, 9), (6, 5), (3, 17), (2, 2)):
        resized = resize_to_corners(learned, (height, width), learned=(4, 9))
        expected = plane(np.linspace(0, 3, height), np.linspace(0, 2, width))
        np.testing.assert_allclose(resized, expected, rtol=1e-5, atol=1e-6)
    one = resize_to_corners(learned, (1, 1), learned=(4, 9))  # at the first corner
    np.testing.assert_array_equal(one, learned[:1])
