"""The inverse of the landmark kernel: a filter of its singular values, and the golden ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fna_jax import newton_schulz_inverse
from tests.conftest import rel_max_error
from tests.fna_jax.formulas import GOLDEN, inverse_of, iterate_inverse, softmax


def row_stochastic(seed, size, batch=()):
    """Kernels like those of FNA: singular values from one down to about 1e-4."""
    rng = np.random.default_rng(seed)
    return softmax(rng.standard_normal((*batch, size, size)) + 2 * np.eye(size))


@pytest.mark.parametrize("case", ["0", "1"])
def test_golden_inverse(case):
    query, key, s = (GOLDEN[f"{case}/{name}"] for name in ("query", "key", "landmarks_guarantee"))
    query, key = (np.take_along_axis(x, s[..., None, None], axis=1) for x in (query, key))
    kernel = softmax(np.einsum("bihd,bjhd->bhij", query, key) * query.shape[-1] ** -0.5)
    assert rel_max_error(inverse_of(kernel), GOLDEN[f"{case}/inverse"]) < 5e-6


@pytest.mark.parametrize("steps", [0, 1, 6, 12])
def test_inverse_is_the_spectral_filter(steps):
    kernel = row_stochastic(0, 12)
    left, sigma, right = np.linalg.svd(kernel)
    weight = sigma**2 / kernel.sum(0).max()
    for _ in range(steps):
        weight = weight * (13 - weight * (15 - weight * (7 - weight))) / 4
    with jax.enable_x64(True):
        inverse = inverse_of(kernel, steps)
    assert inverse.dtype == np.float64
    assert rel_max_error(inverse, right.T @ np.diag(weight / sigma) @ left.T) < 1e-14


@pytest.mark.parametrize(
    "initial, kept", [(1e-5, 0.012), (1e-4, 0.111), (1e-3, 0.687), (3e-3, 0.967), (1e-2, 1.000)]
)
def test_six_steps_keep_the_weights_of_the_paper(initial, kept):
    # [[a, b], [b, a]] has the singular values 1 and a − b, and columns sum to 1.
    sigma = initial**0.5
    kernel = np.array([[1 + sigma, 1 - sigma], [1 - sigma, 1 + sigma]]) / 2
    direction = np.array([1.0, -1.0])
    with jax.enable_x64(True):
        weight = direction @ kernel @ np.asarray(inverse_of(kernel)) @ direction / 2
    np.testing.assert_allclose(weight, kept, atol=6e-4)  # the table has three decimals


def test_converged_inverse():
    kernel = row_stochastic(1, 16)
    with jax.enable_x64(True):
        inverse = inverse_of(kernel, 25)
    assert rel_max_error(inverse, np.linalg.inv(kernel)) < 5e-15


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_inverse_of_half_precision_kernels_is_float32(dtype):
    kernel = row_stochastic(2, 8).astype(dtype)
    inverse = inverse_of(kernel)
    assert inverse.dtype == jnp.float32
    expected = iterate_inverse(np.asarray(kernel, np.float64), 6)
    assert rel_max_error(inverse, expected) < 5e-6


def test_inverse_of_one_landmark():
    np.testing.assert_array_equal(inverse_of(np.ones((3, 1, 1), np.float32)), np.ones((3, 1, 1)))


def test_inverse_of_a_batch_is_that_of_each():
    kernels = row_stochastic(3, 6, batch=(2, 3)).astype(np.float32)
    inverses = inverse_of(kernels)
    for index in np.ndindex(2, 3):
        alone = inverse_of(kernels[index])
        assert rel_max_error(inverses[index], alone) < 5e-6


@pytest.mark.parametrize("kernel", [np.full((7, 7), 1 / 7), np.repeat([[0.9, 0.1, 0]], 3, axis=0)])
def test_inverse_of_singular_kernels_is_finite(kernel):
    inverse = np.asarray(inverse_of(kernel.astype(np.float32), 20))
    assert np.isfinite(inverse).all()
    assert rel_max_error(kernel @ inverse @ kernel, kernel) < 3e-6  # a generalised inverse


@pytest.mark.parametrize(
    "shape, steps, message",
    [((3, 4), 6, r"\[..., S, S\].*\(3, 4\)"), ((3,), 6, r"\(3,\)"), ((3, 3), -1, "got -1")],
)
def test_inverse_errors(shape, steps, message):
    with pytest.raises(ValueError, match=message):
        newton_schulz_inverse(np.ones(shape), steps)


def test_an_inverse_of_another_name_raises():
    with pytest.raises(ValueError, match="or None, got 'cudnn'"):
        newton_schulz_inverse(np.ones((3, 3)), implementation="cudnn")
