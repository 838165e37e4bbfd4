"""Learned positions on other grids, tokens in front."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.embeddings import POSITION_RESIZES, prepend, resize_positions

resize = jax.jit(resize_positions, static_argnames=("grid", "learned", "rule", "num_prefix"))
RULES = pytest.mark.parametrize("rule", POSITION_RESIZES)


@RULES
def test_positions_at_the_native_grid_are_untouched(rule):
    positions = jnp.asarray(np.random.default_rng(0).standard_normal((64, 32)), jnp.float32)
    assert resize_positions(positions, (8, 8), learned=(8, 8), rule=rule, num_prefix=0) is positions
    resized = resize(jnp.ones((64, 32)), (5, 11), learned=(8, 8), rule=rule, num_prefix=0)
    np.testing.assert_allclose(resized, np.ones((55, 32)), rtol=1e-6)  # weights sum to one


@RULES
def test_resized_positions_keep_rows_and_columns_apart(rule):
    down = jnp.broadcast_to(jnp.arange(8.0)[:, None, None], (8, 8, 1)).reshape(64, 1)
    resized = resize(down, (16, 6), learned=(8, 8), rule=rule, num_prefix=0)
    resized = np.asarray(resized).reshape(16, 6)
    np.testing.assert_allclose(resized, resized[:, :1] * np.ones(6), rtol=1e-6)
    assert (np.diff(resized[1:-1, 0]) > 0).all()  # bicubic may overshoot at the border


@RULES
def test_a_learned_grid_need_not_be_square(rule):
    across = jnp.broadcast_to(jnp.arange(9.0)[:, None], (4, 9, 1)).reshape(36, 1)
    keywords = dict(learned=(4, 9), rule=rule, num_prefix=0)
    assert resize_positions(across, (4, 9), **keywords) is across
    resized = np.asarray(resize_positions(across, (6, 6), **keywords)).reshape(6, 6)
    np.testing.assert_allclose(resized, np.ones((6, 1)) * resized[:1], rtol=1e-5)
    assert (np.diff(resized[0, 1:-1]) > 0).all()  # bicubic may overshoot at the border


@RULES
def test_positions_of_tokens_in_front_stay(rule):
    positions = jnp.asarray(np.random.default_rng(0).standard_normal((2 + 16, 8)), jnp.float32)
    resized = resize(positions, (3, 7), learned=(4, 4), rule=rule, num_prefix=2)
    assert resized.shape == (2 + 21, 8)
    np.testing.assert_array_equal(resized[:2], positions[:2])


def test_the_rules_differ():
    positions = jnp.asarray(np.random.default_rng(0).standard_normal((64, 8)), jnp.float32)
    resized = [
        resize(positions, (5, 6), learned=(8, 8), rule=rule, num_prefix=0)
        for rule in POSITION_RESIZES
    ]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.max(np.abs(resized[i] - resized[j])) > 0.01


def test_tokens_are_prepended_in_order_to_every_image():
    tokens = jnp.zeros((3, 4, 2))
    out = prepend(tokens, jnp.ones(2), 2 * jnp.ones((2, 2)))
    assert out.shape == (3, 7, 2)
    np.testing.assert_array_equal(out[2, :, 0], [1, 2, 2, 0, 0, 0, 0])
