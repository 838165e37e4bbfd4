"""DINOv2's and DINOv3's configs, and rotary positions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import dinov2, dinov3, registry
from models.rotary import patch_coordinates, rotary_angles, rotate
from tests.conftest import rel_max_error

GRID, HEADS, HEAD_DIM, PREFIX = (4, 5), 2, 8, 3


def angles_of(grid):
    return rotary_angles(patch_coordinates(grid), HEAD_DIM, theta=100.0)


@functools.partial(jax.jit, static_argnames="num_prefix")
def turn(states, num_prefix):
    return rotate(states, angles_of(GRID), num_prefix=num_prefix)


def random_states(seed, num_tokens):
    shape = (2, num_tokens, HEADS, HEAD_DIM)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_products_of_rotated_states_depend_only_on_the_difference_of_positions():
    query, key = (
        turn(np.repeat(random_states(seed, 1), 20, axis=1), num_prefix=0) for seed in (0, 1)
    )
    products = np.einsum("bnhd,bmhd->bhnm", query, key).reshape(2, HEADS, *GRID, *GRID)
    shifted_down = products[:, :, 1:, :, 1:, :]
    assert rel_max_error(shifted_down, products[:, :, :-1, :, :-1, :]) < 1e-5
    shifted_right = products[:, :, :, 1:, :, 1:]
    assert rel_max_error(shifted_right, products[:, :, :, :-1, :, :-1]) < 1e-5
    assert np.std(products, axis=(2, 3, 4, 5)).min() > 0.1  # but on that they do


def test_rotation_keeps_norms_and_the_tokens_in_front():
    states = random_states(0, PREFIX + 20)
    turned = np.asarray(turn(states, num_prefix=PREFIX))
    np.testing.assert_array_equal(turned[:, :PREFIX], states[:, :PREFIX])
    norm = lambda x: np.linalg.norm(x, axis=-1)
    np.testing.assert_allclose(norm(turned), norm(states), rtol=1e-6)


def test_rotation_is_computed_in_float32_whatever_the_states():
    assert jax.eval_shape(lambda: angles_of(GRID)).dtype == np.float32
    states = random_states(0, PREFIX + 20).astype(jnp.bfloat16)
    exact = np.asarray(turn(states.astype(np.float32), num_prefix=PREFIX))
    turned = turn(states, num_prefix=PREFIX)
    assert turned.dtype == jnp.bfloat16
    np.testing.assert_array_equal(turned, exact.astype(jnp.bfloat16))


def test_angles_are_those_of_the_patches_centres():
    """Centres of a grid of 2 by 1 are at ∓1/2 down and 0 across; periods are 1 and 100^(1/2)."""
    angles, of_one = map(np.asarray, jax.jit(lambda: [angles_of((2, 1)), angles_of((1, 1))])())
    np.testing.assert_allclose(angles[1], [np.pi, np.pi / 10, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(angles[0], -angles[1])
    np.testing.assert_array_equal(of_one, np.zeros((1, 4)))


@pytest.mark.parametrize(
    "config, changes, message",
    [
        (dinov2.VARIANTS["dinov2-vit-s-14"], dict(num_registers=-1), "num_registers .* got -1"),
        (dinov2.VARIANTS["dinov2-vit-s-14"], dict(num_classes=-1), "num_classes .* got -1"),
        (dinov2.VARIANTS["dinov2-vit-s-14"], dict(image_size=512), "512 does not divide .* 14"),
        (dinov2.VARIANTS["dinov2-vit-s-14"], dict(position_resize="near"), "got 'near'"),
        (dinov3.VARIANTS["dinov3-vit-s-16"], dict(num_registers=-1), "num_registers .* got -1"),
        (dinov3.VARIANTS["dinov3-vit-s-16"], dict(rope_theta=0.0), "rope_theta .* got 0.0"),
        (
            dinov3.VARIANTS["dinov3-vit-s-16"],
            dict(encoder=dict(biases="vq")),
            "letters of qkv in this order, got 'vq'",
        ),
        (
            dinov3.VARIANTS["dinov3-vit-s-16"],
            dict(encoder=dict(num_heads=64)),
            "multiple of 4, got 6",
        ),
    ],
)
def test_bad_configs_raise(config, changes, message):
    with pytest.raises(ValueError, match=message):
        registry.override(config, changes)
