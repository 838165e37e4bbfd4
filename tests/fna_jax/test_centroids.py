"""Centroid attention against its formula, exact attention, and what defines it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import fna_jax.near_field as near_field_module
import fna_jax.softmax as softmax_module
from fna_jax import exact_attention
from fna_jax.centroids import Clusters, Windows, centroid_attention, centroid_key_value
from tests.conftest import random_qkv, rel_max_error

STATIC = ("windows", "residual", "scale")
centroid = jax.jit(centroid_attention, static_argnames=STATIC)
exact = jax.jit(exact_attention, static_argnames="scale")

GRID, PREFIX, TOKENS = (5, 7), 2, 37
WINDOWS = {
    "none": None,
    "own": Windows(GRID, (2, 3), 0, PREFIX),
    "around": Windows(GRID, (3, 4), 1, PREFIX),
}


def partition(seed=0, batch=2, tokens=TOKENS, clusters=6):
    """Random clusters, of which one is empty."""
    assignment = np.random.default_rng(seed).integers(0, clusters - 1, (batch, tokens))
    return Clusters(assignment.astype(np.int32), clusters)


def of_windows(windows):
    clusters = jax.jit(lambda: windows.clusters((2,)))()
    return jax.tree.map(np.asarray, clusters)


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def brute_force(q, k, v, assignment, num_clusters, windows, residual, scale):
    """One image and head in float64, with dense matrices, token by token."""
    tokens = len(q)
    of_cluster = assignment[:, None] == np.arange(num_clusters)  # [N, S]
    mean = lambda x, member: np.stack([x[m].mean(0) if m.any() else 0 * x[0] for m in member.T])
    means_k, means_v = mean(k, of_cluster), mean(v, of_cluster)
    if windows is None:
        window, near = assignment, np.zeros((num_clusters, tokens), bool)
    else:
        window = np.asarray(windows.clusters().assignment)
        grid = np.full((windows.num_windows,) * 2, True)  # the prefix is near to all
        p = windows.num_prefix
        grid[p:, p:] = [[j in row for j in range(len(grid) - p)] for row in windows.neighbours()]
        near = grid[:, window] & (assignment >= 0)
    window = np.where(assignment >= 0, window, -1)
    num_windows = len(near)
    mean_q = mean(q, window[:, None] == np.arange(num_windows))

    def cheap(query, w):
        far = (of_cluster & ~near[w][:, None]).sum(0)
        keys = np.concatenate([k[near[w]], means_k[far > 0]])
        values = np.concatenate([v[near[w]], means_v[far > 0]])
        log_mass = np.concatenate([np.zeros(near[w].sum()), np.log(far[far > 0])])
        return softmax(scale * query @ keys.T + log_mass) @ values

    real = assignment >= 0
    lacking = np.stack(
        [
            softmax(scale * c @ k[real].T) @ v[real] - cheap(c, w) if (window == w).any() else 0 * c
            for w, c in enumerate(mean_q)
        ]
    )
    rows = [
        cheap(q[i], window[i]) + (lacking[window[i]] if residual else 0) if real[i] else 0 * q[i]
        for i in range(tokens)
    ]
    return np.stack(rows)


def expected(query, key, value, clusters, *, windows=None, residual=True, scale=None):
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    shared = query.shape[2] // key.shape[2]
    out = np.zeros_like(query)
    for b, assignment in enumerate(np.asarray(clusters.assignment)):
        for h in range(query.shape[2]):
            of_head = query[b, :, h], key[b, :, h // shared], value[b, :, h // shared]
            settings = clusters.num_clusters, windows, residual, scale
            out[b, :, h] = brute_force(*of_head, assignment, *settings)
    return out


@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize(("heads", "settings"), [(2, {"residual": False}), (4, {"scale": 0.7})])
def test_equals_the_formula(windows, heads, settings):
    qkv = random_qkv(tokens=TOKENS, heads=heads, kv_heads=2)
    settings = settings | dict(windows=WINDOWS[windows])
    out = centroid(*qkv, partition(), **settings)
    assert rel_max_error(out, expected(*qkv, partition(), **settings)) < 2e-6


@pytest.mark.parametrize("windows", ["none", "around"])
def test_clusters_may_be_the_windows(windows):
    qkv = random_qkv(1, tokens=TOKENS)
    clusters = of_windows(WINDOWS["around"])
    out = centroid(*qkv, clusters, windows=WINDOWS[windows])
    assert rel_max_error(out, expected(*qkv, clusters, windows=WINDOWS[windows])) < 2e-6


@pytest.mark.parametrize("windows", WINDOWS)
def test_padding_changes_nothing_and_is_finite(windows):
    qkv = random_qkv(2, tokens=TOKENS)
    mask = np.ones((2, TOKENS), bool)
    mask[1, [4, 9, 10, 30]] = False
    clusters = partition()
    poisoned = [np.where(mask[..., None, None], x, np.nan) for x in qkv]
    out = centroid(*poisoned, clusters, windows=WINDOWS[windows], key_mask=mask)
    marked = Clusters(np.where(mask, clusters.assignment, np.int32(-1)), clusters.num_clusters)
    reference = expected(*qkv, marked, windows=WINDOWS[windows])
    assert rel_max_error(np.where(mask[..., None, None], out, 0), reference) < 2e-6
    assert np.isfinite(out).all()
    unmasked = centroid(*qkv, marked, windows=WINDOWS[windows])  # the partition says it, too
    assert rel_max_error(np.where(mask[..., None, None], unmasked, 0), reference) < 2e-6


@pytest.mark.parametrize(
    ("windows", "residual"), [*((windows, True) for windows in WINDOWS), ("none", False)]
)
def test_exact_if_every_token_is_its_own_cluster(windows, residual):
    qkv = random_qkv(3, tokens=TOKENS)
    assignment = np.stack([np.random.default_rng(b).permutation(TOKENS) for b in range(2)])
    clusters = Clusters(assignment.astype(np.int32), TOKENS)
    out = centroid(*qkv, clusters, windows=WINDOWS[windows], residual=residual)
    assert rel_max_error(out, exact(*qkv)) < 2e-6


def test_one_window_of_all_tokens_is_exact_without_a_prefix_or_residual():
    windows = Windows((2, 4), (1, 1))
    qkv = random_qkv(tokens=8)
    out = centroid(*qkv, of_windows(windows), windows=windows, residual=False)
    assert rel_max_error(out, exact(*qkv)) < 2e-6


@pytest.mark.parametrize("windows", WINDOWS)
def test_exact_at_the_mean_queries(windows):
    query, key, value = random_qkv(4, tokens=TOKENS)
    groups = partition() if windows == "none" else of_windows(WINDOWS[windows])
    query = np.take_along_axis(query, groups.assignment[..., None, None], axis=1)  # equal in each
    out = centroid(query, key, value, partition(), windows=WINDOWS[windows])
    assert rel_max_error(out, exact(query, key, value)) < 2e-6


@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize("residual", [True, False])
def test_rows_sum_to_one(windows, residual):
    query, key, value = random_qkv(5, tokens=TOKENS)
    settings = dict(windows=WINDOWS[windows], residual=residual)
    out = centroid(query, key, np.ones_like(value), partition(), **settings)
    np.testing.assert_allclose(out, 1, atol=2e-6)


def test_no_order_matters():
    qkv = random_qkv(6, tokens=TOKENS)
    clusters = partition()
    out = np.asarray(centroid(*qkv, clusters))
    order = np.random.default_rng(0).permutation(TOKENS)
    names = np.random.default_rng(1).permutation(clusters.num_clusters).astype(np.int32)
    shuffled = Clusters(names[clusters.assignment[:, order]], clusters.num_clusters)
    assert rel_max_error(centroid(*(x[:, order] for x in qkv), shuffled), out[:, order]) < 2e-6


@pytest.mark.parametrize("windows", WINDOWS)
def test_a_translation_of_all_keys_changes_nothing(windows):
    query, key, value = random_qkv(7, tokens=TOKENS)
    settings = dict(windows=WINDOWS[windows])
    moved = key + np.float32([3, -1, 2, 0, 1, -2, 0.5, 4])
    out = centroid(query, key, value, partition(), **settings)
    assert rel_max_error(centroid(query, moved, value, partition(), **settings), out) < 5e-6


def test_repeated_tokens_are_exact_in_one_cluster():
    few = random_qkv(8, tokens=5)
    assignment = np.random.default_rng(0).integers(0, 5, (2, TOKENS))
    qkv = [np.take_along_axis(x, assignment[..., None, None], axis=1) for x in few]
    out = centroid(*qkv, Clusters(assignment.astype(np.int32), 5))
    assert rel_max_error(out, exact(*qkv)) < 2e-6


@pytest.mark.parametrize("windows", WINDOWS)
def test_extremes_stay_finite_and_right(windows):
    query, key, value = random_qkv(9, tokens=TOKENS)
    one = Clusters(np.zeros((2, TOKENS), np.int32), 1)
    settings = dict(windows=WINDOWS[windows])
    constant = [np.ones_like(x) for x in (query, key, value)]
    np.testing.assert_allclose(centroid(*constant, one, **settings), 1, atol=1e-6)
    giant = value.copy()
    giant[:, 11] = 1e30
    for states in ((query, key, giant), (query * 1e4, key * 1e4, value)):
        assert np.isfinite(centroid(*states, partition(), **settings)).all()
    out = centroid(query, key, value, one, **settings)
    assert rel_max_error(out, expected(query, key, value, one, **settings)) < 2e-6


@pytest.mark.parametrize("windows", ["none", "around"])
def test_gradients_are_those_of_differences(windows):
    states = [jnp.asarray(x) for x in random_qkv(10, batch=(1,), tokens=TOKENS, heads=1, dim=3)]
    attend = functools.partial(centroid, clusters=partition(batch=1), windows=WINDOWS[windows])
    run = lambda query, key, value: attend(query, key, value)
    check_grads(run, states, order=1, modes=["rev"], eps=1e-2, rtol=2e-3)  # eps² and float32


@pytest.mark.parametrize("windows", WINDOWS)
def test_bfloat16_is_within_its_rounding(windows):
    states = random_qkv(11, tokens=TOKENS, dtype=jnp.bfloat16)
    out = centroid(*states, partition(), windows=WINDOWS[windows])
    assert out.dtype == jnp.bfloat16
    reference = expected(*states, partition(), windows=WINDOWS[windows])
    assert rel_max_error(out, reference) < 2**-6  # three roundings of 2⁻⁸, and that of the means


@pytest.mark.parametrize("windows", ["none", "around"])
def test_vmap_and_blocks_are_the_same(windows, monkeypatch):
    qkv = random_qkv(12, tokens=TOKENS)
    clusters, settings = partition(), dict(windows=WINDOWS[windows])
    out = centroid(*qkv, clusters, **settings)
    run = lambda q, k, v, a: centroid_attention(q, k, v, Clusters(a, 6), **settings)
    assert rel_max_error(jax.jit(jax.vmap(run))(*qkv, clusters.assignment), out) < 2e-6
    monkeypatch.setattr(softmax_module, "_BLOCK_LOGITS", 64)
    monkeypatch.setattr(softmax_module, "_MIN_ROWS", 4)
    monkeypatch.setattr(softmax_module, "_HEAD_LOGITS", 64)
    assert rel_max_error(jax.jit(run)(*qkv, clusters.assignment), out) < 2e-6


def test_a_cache_holds_what_attention_needs():
    query, key, value = random_qkv(13, tokens=TOKENS, heads=4, kv_heads=2)
    clusters = partition()
    cache = jax.jit(centroid_key_value)(query, key, value, clusters)
    logits = np.einsum("bnkhd,bskd->bnkhs", query.reshape(2, TOKENS, 2, 2, -1), cache.key) / 8**0.5
    weights = softmax(logits + np.asarray(cache.log_mass)[:, None, None, None])
    out = np.einsum("bnkhs,bskd->bnkhd", weights, cache.value).reshape(query.shape)
    at_token = np.asarray(clusters.assignment)[..., None, None]
    out += np.take_along_axis(np.asarray(cache.residual), at_token, axis=1)
    assert rel_max_error(out, centroid(query, key, value, clusters)) < 2e-6
    assert np.isneginf(np.asarray(cache.log_mass)[:, 5]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(clusters=partition(tokens=36)), "clusters must be"),
        (dict(clusters=np.zeros((2, TOKENS), int)), "clusters must be Clusters"),
        (dict(windows=Windows((6, 6), (2, 2))), "the windows are of 36 tokens"),
        (dict(key_mask=np.ones((2, TOKENS))), "key_mask must be"),
        (dict(key=np.zeros((2, 36, 2, 8), np.float32)), "key and value must share"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    query, key, value = random_qkv(tokens=TOKENS)
    inputs = dict(query=query, key=key, value=value, clusters=partition()) | change
    with pytest.raises(ValueError, match=message):
        centroid_attention(**inputs)


@pytest.mark.parametrize("name", ["own", "around"])
def test_the_form_for_a_kernel_is_the_same(name, monkeypatch):
    """On a GPU near and far keys lie together, for one kernel; here as its plain form."""
    qkv, windows = random_qkv(tokens=TOKENS, heads=4, kv_heads=2), WINDOWS[name]
    options = dict(key_mask=np.arange(TOKENS)[None] < [[TOKENS], [30]])
    plain = centroid(*qkv, partition(), windows=windows, **options)
    monkeypatch.setattr(near_field_module, "flash_obstacle", lambda *_: None)
    once_more = jax.jit(functools.partial(centroid_attention, windows=windows))
    together = once_more(*qkv, partition(), **options)
    np.testing.assert_allclose(together, plain, atol=2e-6)
