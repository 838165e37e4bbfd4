"""Detectors on cases by hand and against the definitions, in plain Python and NumPy float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fna_jax import (
    artifact_tokens,
    attention_sinks,
    class_token_proxy,
    exact_attention,
    incoming_attention,
    massive_by_attention,
    massive_by_norm,
    suppression_matrix,
)
from tests.conftest import random_qkv, rel_max_error
from tests.fna_jax.test_export import assert_portable, exported
from tests.fna_jax.test_masking import Inputs, brute_force_weights

incoming = jax.jit(incoming_attention)
proxy_of = jax.jit(class_token_proxy, static_argnames="has_class_token")
suppression = jax.jit(suppression_matrix)
by_norm = jax.jit(massive_by_norm, static_argnames=("num_prefix", "min_ratio"))
by_attention = jax.jit(massive_by_attention, static_argnames=("num_prefix", "threshold"))

# Attention received, and the suppression matrix.


@pytest.mark.parametrize("masked", [False, True])
def test_incoming_attention_and_proxies_are_their_formulas(masked):
    inputs = Inputs.random()
    key_mask = inputs.key_mask if masked else None
    real = inputs.key_mask if masked else np.ones((2, 13), bool)
    weights = brute_force_weights(*inputs[:2], key_mask=key_mask).mean(1)  # [B, N, N]
    query, key = inputs.padded("query", "key")[:2] if masked else inputs[:2]

    received = np.stack([rows[r].mean(0) for rows, r in zip(weights, real)])
    own = np.stack([rows.diagonal()[r].mean() for rows, r in zip(weights, real)])
    found = incoming(query, key, key_mask=key_mask)
    assert rel_max_error(found, received) < 1e-6
    np.testing.assert_allclose(np.asarray(found).sum(axis=-1), 1, atol=6e-7)
    nobody = np.zeros((2, 13), bool)
    np.testing.assert_array_equal(incoming(query, key, key_mask=nobody), 0)
    of_class = proxy_of(query, key, key_mask=key_mask)
    assert rel_max_error(of_class, weights[:, 0] / weights[:, 0, :1]) < 1e-6
    of_all = proxy_of(query, key, key_mask=key_mask, has_class_token=False)
    assert rel_max_error(of_all, received / own[:, None]) < 1e-6


def test_a_class_token_that_pays_itself_nothing_leaves_the_proxy_finite():
    """Nor does it end the search for sinks: the strongest is found first."""
    key = np.zeros((1, 6, 1, 4), np.float32)
    query, key[0, 3] = np.ones_like(key), 100  # e^−200 is zero in float32

    @jax.jit
    def found():
        proxy_given = lambda masked: class_token_proxy(query, key, key_mask=~masked)
        rank = attention_sinks(proxy_given, (1, 6), num_prefix=1)
        return proxy_given(np.zeros((1, 6), bool)), rank

    proxy, rank = map(np.asarray, found())
    assert np.all(np.isfinite(proxy)) and np.argmax(proxy) == 3
    np.testing.assert_array_equal(rank, [[0, 0, 0, 1, 0, 0]])  # then the others are equal


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
def test_suppression_matrix_is_the_loop(dtype, tolerance):
    _, _, value, x, out_kernel, *_ = Inputs.random()
    expected = np.zeros((2, 4, 13, 13))
    x[1, 2] = 0
    for b, h, i, j in np.ndindex(expected.shape):
        given = value[b, j, h // 2].astype(np.float64) @ out_kernel[h]  # two heads share a value
        expected[b, h, i, j] = x[b, i] @ given / max(np.linalg.norm(x[b, i]), 1e-30)
    found = np.asarray(suppression(*(a.astype(dtype) for a in (x, value, out_kernel))))
    assert found.dtype == np.float32
    assert rel_max_error(found, expected) < tolerance
    np.testing.assert_array_equal(found[1, :, 2], 0)


# Massive tokens.


def test_massive_by_attention_is_strictly_above_the_threshold():
    proxy = np.array([[1, 0.5, 0.25, 0.26, 0, 7], [1, 9, 0.1, 0.25, 0.2, np.nan]], np.float32)
    found = by_attention(proxy, num_prefix=2, threshold=0.25)
    np.testing.assert_array_equal(found, np.array([[0, 0, 0, 1, 0, 1], [0, 0, 0, 0, 0, 0]]))
    default = by_attention(np.array([1, 0.29, 0.31], np.float32), num_prefix=1)
    np.testing.assert_array_equal(default, [False, False, True])


NORMS = {  # of eight patches: the massive ones among them
    "one": ([5, 6, 7, 200, 8, 9, 6, 7], [3]),
    "several, with gaps among them": ([100, 6, 7, 330, 8, 9, 150, 7], [0, 3, 6]),
    "ties": ([5, 5, 90, 5, 90, 5, 5, 5], [2, 4]),
    "an even spread": ([5, 6, 7, 8, 9, 10, 11, 12], []),
    "a gap below the least ratio": ([5, 6, 7, 8, 7, 6, 5, 15], []),
    "a gap of the least ratio": ([5, 6, 7, 8, 7, 6, 5, 16.1], [7]),
    "less than twice another gap": ([1, 1, 1, 1, 1, 1, 3, 10], []),
    "tiny norms": ([1e-3, 6, 7, 8, 1e-4, 9, 6, 7], []),
    "tiny norms and a massive one": ([1e-3, 6, 7, 8, 0, 90, 6, 7], [5]),
    "all alike": ([5] * 8, []),
    "zeros": ([0] * 8, []),
    "a NaN": ([5, 6, np.nan, 200, 8, 9, 6, 7], []),
}


def test_massive_by_norm_is_per_image():
    patches = np.array([patches for patches, _ in NORMS.values()], np.float32)
    norms = np.pad(patches, ((0, 0), (2, 0)), constant_values=1000)  # the prefix is no candidate
    expected = {name: massive for name, (_, massive) in NORMS.items()}
    for found in (
        by_norm(norms, num_prefix=2),
        by_norm(norms.reshape(3, 4, 10), num_prefix=2),
        jax.jit(jax.vmap(lambda x: massive_by_norm(x, num_prefix=2)))(norms),
        by_norm(norms.astype(jnp.bfloat16), num_prefix=2),
    ):
        found = np.asarray(found).reshape(12, 10)[:, 2:]
        assert {name: list(np.flatnonzero(row)) for name, row in zip(NORMS, found)} == expected


def test_the_least_ratio_of_the_gap():
    norms = np.array([9, 5, 6, 7, 8, 7, 6, 5, 15], np.float32)  # 15 / 8 = 1.875
    found = lambda ratio: np.asarray(by_norm(norms, num_prefix=1, min_ratio=ratio))
    assert found(1.87)[8] and not found(1.88).any()


@pytest.mark.parametrize("patches", [[9.0], [1.0, 90.0]])
def test_one_or_two_patches_are_not_massive(patches):
    assert not np.any(by_norm(np.array([5.0, *patches], np.float32), num_prefix=1))


def test_massive_by_norm_of_a_thousand_images():
    rng = np.random.default_rng(0)
    norms = rng.lognormal(np.log(8), 0.2, (1000, 257)).astype(np.float32)
    assert not np.asarray(by_norm(norms, num_prefix=1)).any()
    planted = rng.permuted(np.arange(257) < rng.integers(0, 8, (1000, 1)), axis=1)
    planted[:, 0] = False
    norms[planted] = rng.uniform(100, 300, planted.sum())
    np.testing.assert_array_equal(by_norm(norms, num_prefix=1), planted)


# Attention sinks.

QUERY, KEY, VALUE = random_qkv(10, batch=(3,), tokens=24, heads=4)
KEY[:, 0] += 0.2 * QUERY[:, 0]  # the class token keeps some of its attention


def two_layers(removed):
    """The proxy of a second layer, after a first that reads the same tokens."""
    query = QUERY + exact_attention(QUERY, KEY, VALUE, key_mask=~removed)
    return class_token_proxy(query, KEY, key_mask=~removed)


def rank_by_definition(image, max_sinks):
    """In each round the patch with the most attention, as long as the class token has less."""
    query, key, value = (x[image : image + 1].astype(np.float64) for x in (QUERY, KEY, VALUE))
    rank = np.zeros(24, int)
    for number in range(1, max_sinks + 1):
        kept = (rank == 0)[None]
        weights = brute_force_weights(query, key, key_mask=kept)
        second = query + np.einsum("bhij,bjhd->bihd", weights, value)
        attention = brute_force_weights(second, key, key_mask=kept)[0, :, 0].mean(0)
        strongest = 2 + np.argmax(attention[2:])  # those found receive none
        if attention[strongest] <= attention[0]:
            break
        rank[strongest] = number
    return rank


@pytest.mark.parametrize("max_sinks", [4, 20])
def test_attention_sinks_are_those_of_the_loop(max_sinks):
    rank = jax.jit(
        lambda: attention_sinks(two_layers, (3, 24), num_prefix=2, max_sinks=max_sinks)
    )()
    expected = np.stack([rank_by_definition(image, max_sinks) for image in range(3)])
    np.testing.assert_array_equal(rank, expected)
    at_once = np.asarray(jax.jit(two_layers)(np.zeros((3, 24), bool)))[:, 2:] > 1
    # Of these some fall away, while others take their place.
    assert list(at_once.sum(axis=1)) == [5, 0, 3]
    assert list(expected.max(1)) == [min(7, max_sinks), 0, 1]


def test_ties_and_bounds_of_sinks():
    @functools.partial(jax.jit, static_argnums=1)
    def found(proxy, n):
        level = lambda removed: jnp.broadcast_to(jnp.float32(proxy), removed.shape)
        return attention_sinks(level, (2, 6), num_prefix=1, max_sinks=n)

    find = lambda proxy, n: np.asarray(found(proxy, n))
    np.testing.assert_array_equal(find(2, 3), [[0, 1, 2, 3, 0, 0]] * 2)
    np.testing.assert_array_equal(find(2, 64), [[0, 1, 2, 3, 4, 5]] * 2)  # until none is left
    for proxy, n in ((1, 64), (np.nan, 64), (2, 0)):  # the class token's own is not exceeded
        assert not find(proxy, n).any()


def test_an_image_that_is_done_stays_done():
    given = lambda removed: jnp.where(removed.any(), 2.0, jnp.array([[0, 2.0, 0], [0, 0, 0]]))
    found = jax.jit(lambda: attention_sinks(given, (2, 3), num_prefix=1))()
    np.testing.assert_array_equal(found, [[0, 1, 2], [0, 0, 0]])


def test_sinks_under_vmap():
    proxy = np.random.default_rng(1).uniform(0, 2, (4, 9)).astype(np.float32)
    find = lambda proxy: attention_sinks(lambda removed: proxy, proxy.shape, num_prefix=1)
    np.testing.assert_array_equal(jax.jit(jax.vmap(find))(proxy), jax.jit(find)(proxy))


def test_artifacts_are_sinks_that_are_not_massive():
    found = artifact_tokens(np.array([[0, 1, 0, 2, 3]]), np.array([[0, 1, 1, 0, 0]], bool))
    assert found.dtype == bool
    np.testing.assert_array_equal(found, [[0, 0, 0, 1, 1]])


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_detectors_export(platform):
    def detect(query, key, value, mask):
        proxy = lambda removed: class_token_proxy(query, key, key_mask=mask & ~removed)
        massive = massive_by_norm(jnp.linalg.norm(value[:, :, 0], axis=-1), num_prefix=1)
        massive |= massive_by_attention(proxy(~mask), num_prefix=1)
        return artifact_tokens(attention_sinks(proxy, mask.shape, num_prefix=1), massive)

    text = exported(detect, 2, 64, platforms=[platform]).mlir_module()
    assert_portable(text)
    assert text.count("stablehlo.while") == 1


@pytest.mark.parametrize("num_prefix", [-1, 5])
def test_prefix_errors(num_prefix):
    options = dict(num_prefix=num_prefix)
    for detect in (
        lambda: massive_by_norm(np.ones((2, 5)), **options),
        lambda: massive_by_attention(np.ones((2, 5)), **options),
        lambda: attention_sinks(lambda removed: np.ones((2, 5)), (2, 5), **options),
    ):
        with pytest.raises(ValueError, match=rf"num_prefix must lie in 0..4, got {num_prefix}"):
            detect()
