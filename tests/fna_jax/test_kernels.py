"""The kernels for NVIDIA GPUs, interpreted, against the forms in jax.numpy that they stand for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fna_jax import exact_attention, farthest_point_sampling
from fna_jax.kernels import compute_capability, differentiated_as, gpu_obstacle
from fna_jax.kernels.farthest import farthest_points
from fna_jax.kernels.flash import flash_attention
from fna_jax.kernels.inverse import newton_schulz
from fna_jax.softmax import softmax_attention
from tests.fna_jax.formulas import inverse_of, softmax

plain_attention = jax.jit(functools.partial(softmax_attention, scale=0.3))


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("num_queries", "num_keys", "num_heads", "num_groups", "head_dim", "value_dim"),
    [
        (140, 20, 2, 2, 16, 16),  # few keys: two blocks of queries
        (20, 200, 2, 1, 24, 8),  # few queries: four parts of the keys; grouped heads; odd lanes
        (1, 1, 1, 1, 4, 4),
    ],
)
def test_flash_attention(num_queries, num_keys, num_heads, num_groups, head_dim, value_dim):
    query = random(0, 2, num_queries, num_heads, head_dim)
    key = random(1, 2, num_keys, num_groups, head_dim)
    value = random(2, 2, num_keys, num_groups, value_dim)
    log_mass = random(3, 2, num_keys)
    log_mass[:, 1::3] = -np.inf  # keys that do not take part
    log_mass[0, : num_keys - num_keys // 2] = -np.inf  # a whole block, or all
    kernel = jax.jit(functools.partial(flash_attention, scale=0.3, interpret=True))
    right = plain_attention(query, key, value, log_mass=log_mass)
    np.testing.assert_allclose(kernel(query, key, value, log_mass), right, atol=2e-6)


@pytest.mark.parametrize("size", [5, 32])
def test_newton_schulz(size):
    kernel = softmax(random(0, 2, 3, size, size))
    fused = jax.jit(functools.partial(newton_schulz, steps=6, interpret=True))
    np.testing.assert_allclose(fused(kernel), inverse_of(kernel), atol=2e-5)


@pytest.mark.parametrize(
    ("num_points", "width", "num_samples"),
    [(150, 70, 20), (7, 3, 7)],  # three blocks of tokens and two of features; more than there are
)
def test_farthest_points(num_points, width, num_samples):
    points = np.round(4 * random(0, 2, num_points, width))  # of integers sums are exact, and tied
    eligible = random(1, 2, num_points) < 0.5
    distance = np.where(eligible, np.float32(np.inf), -np.float32(np.inf))
    kernel = functools.partial(farthest_points, num_samples=num_samples, interpret=True)
    plain = lambda x, e: farthest_point_sampling(x, num_samples, eligible=e)
    np.testing.assert_array_equal(
        jax.jit(jax.vmap(kernel))(points, distance), jax.jit(jax.vmap(plain))(points, eligible)
    )


def test_derivatives_are_those_of_the_plain_form():
    plain = lambda x, y: jnp.sum(jnp.sin(x) * y)
    fused = differentiated_as(plain, lambda x, y: jnp.float32(7))
    assert fused(1.0, 2.0) == 7
    np.testing.assert_allclose(jax.jit(jax.grad(fused))(1.0, 2.0), 2 * np.cos(1.0), rtol=1e-6)
    tangents = jax.jit(functools.partial(jax.jvp, fused))((1.0, 2.0), (0.5, 3.0))
    np.testing.assert_allclose(tangents, (7, np.cos(1.0) + 3 * np.sin(1.0)), rtol=1e-6)


class Device:
    """What a device tells of itself."""

    def __init__(self, capability):
        self.compute_capability = capability


def test_only_nvidia_gpus_have_a_capability():
    assert compute_capability(Device("9.0")) == 9
    assert compute_capability(Device("gfx90a")) is None
    assert compute_capability(jax.devices("cpu")[0]) is None


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="kernels run on a GPU")
def test_kernels_on_another_device_raise():
    states = [random(0, 1, 5, 2, 4)] * 3
    assert gpu_obstacle(*states)
    with pytest.raises(ValueError, match=r"'pallas' cannot run: it needs an NVIDIA GPU.*'xla'"):
        exact_attention(*states, implementation="pallas")
