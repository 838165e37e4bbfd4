"""Causal centroid attention by runs: the formula, causality, padding, and where it is exact."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import fna_jax.softmax as softmax_module
from fna_jax.runs import causal_centroid_attention
from tests.conftest import random_qkv, rel_max_error
from tests.fna_jax.formulas import per_head, softmax

TOKENS, RUN = 23, 4  # the last run is shorter
attend = jax.jit(causal_centroid_attention, static_argnames=("run_length", "scale"))


def brute_force(query, key, value, run=RUN, scale=None):
    c = query.shape[-1] ** -0.5 if scale is None else scale

    def head(q, k, v):
        rows = []
        for i in range(len(q)):
            near = max(i // run - 1, 0) * run  # the first token that is near
            runs = [slice(start, start + run) for start in range(0, near, run)]
            keys = np.stack([*(k[s].mean(0) for s in runs), *k[near : i + 1]])
            values = np.stack([*(v[s].mean(0) for s in runs), *v[near : i + 1]])
            masses = np.array([run] * len(runs) + [1] * (i + 1 - near))
            rows.append(softmax(c * keys @ q[i] + np.log(masses)) @ values)
        return np.stack(rows)

    return per_head(head, query, key, value)


def causal(query, key, value):
    return brute_force(query, key, value, run=1)  # each token is near or its own mean


@pytest.mark.parametrize(("heads", "settings"), [(2, {}), (4, {"scale": 0.7})])
def test_equals_the_formula(heads, settings):
    qkv = random_qkv(tokens=TOKENS, heads=heads, kv_heads=2)
    out = attend(*qkv, run_length=RUN, **settings)
    assert rel_max_error(out, brute_force(*qkv, **settings)) < 2e-6
    assert rel_max_error(out, causal(*qkv)) > 0.1


@pytest.mark.parametrize("run", [1, 12, 23, 99])  # 12: two runs, which are near to each other
def test_exact_where_runs_have_one_token_or_all_are_near(run):
    qkv = random_qkv(1, tokens=TOKENS)
    logits = np.einsum("bnhd,bmhd->bhnm", *qkv[:2]) / 8**0.5
    logits = np.where(np.tri(TOKENS, dtype=bool), logits, -np.inf)
    expected = np.einsum("bhnm,bmhd->bnhd", softmax(logits), qkv[2])
    assert rel_max_error(attend(*qkv, run_length=run), expected) < 2e-6


@pytest.mark.parametrize("first", [1, 8, 10, 22])
def test_nothing_comes_from_the_future(first):
    qkv = random_qkv(2, tokens=TOKENS)
    later = [np.where(np.arange(TOKENS)[:, None, None] < first, x, 3 * x[::-1]) for x in qkv]
    before, after = (np.asarray(attend(*x, run_length=RUN)) for x in (qkv, later))
    np.testing.assert_array_equal(before[:, :first], after[:, :first])
    assert (before[:, first:] != after[:, first:]).any(axis=-1).all()


def test_all_of_the_past_counts():
    query, key, value = random_qkv(3, batch=(1,), tokens=TOKENS, heads=1, dim=2)
    weights = jax.jacobian(lambda value: attend(query, key, value, run_length=RUN)[0, :, 0, 0])
    matrix = weights(value)[:, 0, :, 0, 0]
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(matrix > 0, np.tri(TOKENS, dtype=bool))


def test_padding_anywhere_changes_nothing():
    qkv = random_qkv(4, tokens=TOKENS)
    mask = np.ones((2, TOKENS), bool)
    mask[0, :5], mask[1, [0, 9, 22]] = False, False
    poisoned = [np.where(mask[..., None, None], x, np.nan) for x in qkv]
    out = attend(*poisoned, run_length=RUN, key_mask=mask)
    assert np.isfinite(out).all()
    for row, real in enumerate(mask):
        alone = brute_force(*(x[row : row + 1, real] for x in qkv))
        assert rel_max_error(out[row : row + 1, real], alone) < 2e-6


def test_repeated_tokens_are_exact():
    """Of runs, each of one token: their means are the tokens, and their masses count them."""
    states = [np.repeat(x, RUN, axis=1) for x in random_qkv(5, tokens=6)]
    assert rel_max_error(attend(*states, run_length=RUN), causal(*states)) < 2e-6


def test_extremes_stay_finite_and_right():
    query, key, value = random_qkv(6, tokens=TOKENS)
    constant = [np.ones_like(x) for x in (query, key, value)]
    np.testing.assert_allclose(attend(*constant, run_length=RUN), 1, atol=1e-6)
    assert np.isfinite(attend(query * 1e4, key * 1e4, value, run_length=RUN)).all()


def test_gradients_are_those_of_differences():
    states = [jnp.asarray(x) for x in random_qkv(7, batch=(1,), tokens=11, heads=1, dim=3)]
    mask = np.arange(11)[None] > 0
    real = lambda x: jnp.where(mask[..., None, None], x, 0)
    run = lambda *states: real(attend(*states, run_length=3, key_mask=mask))
    check_grads(run, states, order=1, modes=["rev"], eps=1e-2, rtol=2e-3)  # eps² and float32


def test_bfloat16_is_within_its_rounding():
    states = random_qkv(8, tokens=TOKENS, dtype=jnp.bfloat16)
    out = attend(*states, run_length=RUN)
    assert out.dtype == jnp.bfloat16
    assert rel_max_error(out, brute_force(*states)) < 2**-6  # roundings of 2⁻⁸, and of the means


def test_vmap_and_blocks_are_the_same(monkeypatch):
    qkv = random_qkv(9, tokens=TOKENS, heads=4, kv_heads=2)
    out = attend(*qkv, run_length=RUN)
    run = functools.partial(causal_centroid_attention, run_length=RUN)
    assert rel_max_error(jax.jit(jax.vmap(run))(*qkv), out) < 2e-6
    for name, number in (("_BLOCK_LOGITS", 64), ("_MIN_ROWS", 1), ("_HEAD_LOGITS", 64)):
        monkeypatch.setattr(softmax_module, name, number)
    assert rel_max_error(jax.jit(run)(*qkv), out) < 2e-6


def test_memory_is_linear():
    """No array of the program has as many numbers as there are pairs of tokens."""
    x = jax.ShapeDtypeStruct((1, 2**15, 1, 8), jnp.bfloat16)
    program = attend.lower(x, x, x, run_length=128).as_text()
    shapes = re.findall(r"tensor<([\dx]+)x(?:f32|bf16|i1)>", program)
    largest = max(math.prod(map(int, shape.split("x"))) for shape in shapes)
    assert 2**18 <= largest <= 2**20  # a state, and a block's logits; pairs are 2**30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(run_length=0), "run_length must be an integer of at least 1, got 0"),
        (dict(run_length=2.0), r"run_length must be an integer of at least 1, got 2\.0"),
        (dict(query=np.zeros((2, 5, 2, 8), np.float32)), "is self-attention, got 5 queries and 23"),
        (dict(key_mask=np.ones((2, TOKENS))), "key_mask must be"),
        (dict(key=np.zeros((2, 36, 2, 8), np.float32)), "key and value must share"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    query, key, value = random_qkv(tokens=TOKENS)
    inputs = dict(query=query, key=key, value=value, run_length=RUN) | change
    with pytest.raises(ValueError, match=message):
        causal_centroid_attention(**inputs)
