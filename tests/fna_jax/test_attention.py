"""Fast Nyström Attention against its formula, its golden outputs and exact attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fna_jax import exact_attention, fast_nystrom_attention, landmark_key_value
from tests.conftest import random_qkv, rel_max_error
from tests.fna_jax.formulas import (
    GOLDEN,
    LANDMARKS,
    brute_force_exact,
    brute_force_fna,
    exact,
    fna,
    key_value,
)


@pytest.mark.parametrize("case", ["0", "1"])
def test_golden_core(case):
    query, key, value, s = (
        GOLDEN[f"{case}/{name}"] for name in ("query", "key", "value", "landmarks_guarantee")
    )
    assert rel_max_error(fna(query, key, value, s), GOLDEN[f"{case}/output"]) < 5e-6
    landmark_key, landmark_value = key_value(query, key, value, s)
    np.testing.assert_array_equal(landmark_key, GOLDEN[f"{case}/landmark_key"])
    assert rel_max_error(landmark_value, GOLDEN[f"{case}/landmark_value"]) < 5e-6


# FNA: what its formula implies.


@pytest.mark.parametrize("scale", [None, 0.9])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_fna_is_its_formula(scale, kv_heads):
    qkv = random_qkv(heads=4, kv_heads=kv_heads)
    expected = brute_force_fna(*qkv, LANDMARKS, scale)
    assert rel_max_error(fna(*qkv, LANDMARKS, scale=scale), expected) < 5e-6
    repeated = (qkv[0], *(np.repeat(x, 4 // kv_heads, axis=2) for x in qkv[1:]))
    assert rel_max_error(fna(*repeated, LANDMARKS, scale=scale), expected) < 5e-6


def test_scale_is_that_of_a_scaled_query():
    query, key, value = random_qkv()
    expected = fna(query * 3, key, value, LANDMARKS, scale=0.2)
    assert rel_max_error(fna(query, key, value, LANDMARKS, scale=0.6), expected) < 5e-6


def test_landmark_key_value_stand_in_for_the_cache():
    query, key, value = random_qkv()
    landmark_key, landmark_value = key_value(query, key, value, LANDMARKS)
    output = exact(query, landmark_key, landmark_value)
    assert rel_max_error(output, fna(query, key, value, LANDMARKS)) < 1e-6


def test_landmark_rows_are_the_landmark_kernel_times_its_values():
    query, key, value = random_qkv()
    landmark_key, landmark_value = key_value(query, key, value, LANDMARKS)
    index = LANDMARKS[..., None, None]
    expected = brute_force_exact(
        np.take_along_axis(query, index, 1), np.asarray(landmark_key), np.asarray(landmark_value)
    )
    output = np.take_along_axis(np.asarray(fna(query, key, value, LANDMARKS)), index, 1)
    assert rel_max_error(output, expected) < 1e-6


def test_order_of_the_landmarks_does_not_matter():
    qkv = random_qkv()
    permuted = LANDMARKS[:, [3, 0, 5, 1, 4, 2]]
    assert rel_max_error(fna(*qkv, permuted), fna(*qkv, LANDMARKS)) < 5e-6


def test_a_repeated_landmark_counts_twice():
    qkv = random_qkv()
    repeated = np.concatenate([LANDMARKS, LANDMARKS[:, :1]], axis=1)
    output = fna(*qkv, repeated)
    assert rel_max_error(output, fna(*qkv, LANDMARKS)) > 1e-2
    assert rel_max_error(output, brute_force_fna(*qkv, repeated)) < 5e-6


def test_converged_landmark_rows_are_exact_and_others_are_not():
    qkv = random_qkv()
    with jax.enable_x64(True):
        output = fna(*(x.astype(np.float64) for x in qkv), LANDMARKS, inverse_steps=30)
    expected = brute_force_exact(*qkv)
    index = LANDMARKS[..., None, None]
    rows = [np.take_along_axis(np.asarray(x), index, 1) for x in (output, expected)]
    assert rel_max_error(*rows) < 1e-14
    assert rel_max_error(output, expected) > 1e-2


def test_implied_attention_rows_sum_to_one_when_converged():
    query, key, _ = random_qkv(dtype=np.float64)
    ones = np.ones_like(key)  # the output for constant values is the sum of the implied weights
    with jax.enable_x64(True):
        converged = fna(query, key, ones, LANDMARKS, inverse_steps=30)
    np.testing.assert_allclose(converged, 1, rtol=1e-13)
    six = np.asarray(fna(*(x.astype(np.float32) for x in (query, key, ones)), LANDMARKS))
    assert six.min() > 0.7 and six.max() < 1.2  # around 0.8 to 1.1


def test_every_token_a_landmark_is_exact_attention():
    qkv = random_qkv(tokens=30, dtype=np.float64)
    everything = np.tile(np.arange(30), (2, 1))
    expected = brute_force_exact(*qkv)
    with jax.enable_x64(True):
        assert rel_max_error(fna(*qkv, everything, inverse_steps=20), expected) < 5e-13
    six = fna(*(x.astype(np.float32) for x in qkv), everything)
    assert 0.005 < rel_max_error(six, expected) < 0.1  # 3 %: six steps are a filter


def test_one_landmark_gives_every_token_its_attention():
    qkv = random_qkv()
    output = fna(*qkv, LANDMARKS[:, :1])
    row = np.take_along_axis(brute_force_exact(*qkv), LANDMARKS[:, :1, None, None], 1)
    assert rel_max_error(output, np.broadcast_to(row, output.shape)) < 5e-6


def test_one_token():
    qkv = random_qkv(tokens=1)
    assert rel_max_error(fna(*qkv, np.zeros((2, 1), int)), qkv[2]) < 1e-6
    assert rel_max_error(exact(*qkv), qkv[2]) < 1e-6


def test_batch_dimensions():
    qkv = random_qkv(batch=(2, 3))
    landmarks = np.stack([LANDMARKS, LANDMARKS[::-1], LANDMARKS + 1 - 2 * (LANDMARKS > 38)], axis=1)
    output = fna(*qkv, landmarks)
    for index in [(0, 0), (0, 1), (1, 2)]:
        alone = fna(*(x[index] for x in qkv), landmarks[index])
        assert rel_max_error(output[index], alone) < 5e-6
    mapped = jax.jit(jax.vmap(jax.vmap(fast_nystrom_attention)))(*qkv, landmarks)
    assert rel_max_error(mapped, output) < 5e-6
    exactly = exact(*qkv)
    assert rel_max_error(exactly[1, 2], exact(*(x[1, 2] for x in qkv))) < 5e-6


def test_jit_is_eager():
    qkv = random_qkv()
    assert rel_max_error(fna(*qkv, LANDMARKS), fast_nystrom_attention(*qkv, LANDMARKS)) < 5e-6


@pytest.mark.parametrize(
    "dtype, tolerance",
    [(jnp.bfloat16, 2e-2), (jnp.float16, 5e-3)],
)
def test_half_precision(dtype, tolerance):
    qkv = tuple(jnp.asarray(x, dtype) for x in random_qkv())
    output = fna(*qkv, LANDMARKS)
    assert output.dtype == dtype
    assert rel_max_error(output, brute_force_fna(*qkv, LANDMARKS)) < tolerance
    assert rel_max_error(exact(*qkv), brute_force_exact(*qkv)) < tolerance


@pytest.mark.parametrize("factor", [0, 1, 30])
def test_duplicate_tokens_are_finite(factor):
    qkv = tuple(factor * np.repeat(x[:, :1], 40, axis=1) for x in random_qkv())
    output = fna(*qkv, LANDMARKS)
    scale = max(np.abs(qkv[2]).max(), 1)
    np.testing.assert_allclose(output, qkv[2], atol=1e-5 * scale)  # equal values average to one


# Gradients.


@pytest.mark.parametrize("function", ["fna", "exact"])
def test_gradient_is_the_slope(function):
    inputs = random_qkv(tokens=12, dtype=np.float64)
    direction = random_qkv(seed=1, tokens=12, dtype=np.float64)
    apply = {"fna": lambda *x: fast_nystrom_attention(*x, LANDMARKS % 12), "exact": exact_attention}

    with jax.enable_x64(True):
        loss = jax.jit(lambda *x: jnp.sum(jnp.sin(apply[function](*x))))
        gradients = jax.jit(jax.grad(loss, (0, 1, 2)))(*inputs)
        step = 1e-5
        ahead, behind = (
            float(loss(*(x + sign * step * d for x, d in zip(inputs, direction))))
            for sign in (1, -1)
        )
    slope = sum(np.sum(np.asarray(g) * d) for g, d in zip(gradients, direction))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-7)


def test_forced_implementation_is_the_default_here():
    qkv = random_qkv()
    assert rel_max_error(exact(*qkv, implementation="xla"), exact(*qkv)) < 1e-6
    chosen = fna(*qkv, LANDMARKS, implementation="xla")
    np.testing.assert_array_equal(chosen, fna(*qkv, LANDMARKS))


# Errors: one sentence with the value and what was expected.


@pytest.mark.parametrize("function", [fast_nystrom_attention, landmark_key_value])
@pytest.mark.parametrize(
    "change, message",
    [
        (dict(query=np.zeros((40, 8), np.float32)), r"must be \[\*B, N, H, D\].*\(40, 8\)"),
        (dict(key=np.zeros((2, 40, 2, 8), np.float16)), "share a dtype.*float16"),
        (dict(value=np.zeros((2, 41, 2, 8), np.float32)), r"share a shape.*\(2, 41, 2, 8\)"),
        (dict(query=np.zeros((3, 40, 2, 8), np.float32)), r"batch and head.*\(3, 40, 2, 8\)"),
        (dict(query=np.zeros((2, 40, 2, 9), np.float32)), r"batch and head.*\(2, 40, 2, 9\)"),
        (dict(query=np.zeros((2, 40, 3, 8), np.float32)), r"\(2\) must divide.*\(3\)"),
        (dict(query=np.zeros((2, 20, 2, 8), np.float32)), "20 queries and 40 keys"),
        (dict(landmarks=LANDMARKS[0]), r"landmarks must be \[2, 'S'\].*got indices \(6,\)"),
        (dict(landmarks=LANDMARKS[:1]), r"landmarks must be \[2, 'S'\].*got indices \(1, 6\)"),
        (dict(key_mask=np.ones((2, 39), bool)), r"key_mask must be bool\[2, 40\].*bool\[2, 39\]"),
        (dict(key_mask=np.ones((2, 40), np.float32)), r"key_mask must be bool.*float32\[2, 40\]"),
        (dict(inverse_steps=-1), "at least 0, got -1"),
        (dict(implementation="cudnn"), "implementation='xla', 'pallas' or None, got 'cudnn'"),
        (dict(implementation="pallas"), "'pallas' cannot run: it needs an NVIDIA GPU"),
    ],
)
def test_fna_errors(function, change, message):
    inputs = dict(zip(("query", "key", "value"), random_qkv()), landmarks=LANDMARKS)
    with pytest.raises(ValueError, match=message):
        function(**{**inputs, **change})


def test_landmarks_of_floats_raise():
    with pytest.raises(ValueError, match=r"integers \[\*B, S\], got float32"):
        fast_nystrom_attention(*random_qkv(), LANDMARKS.astype(np.float32))
