"""Fast Nyström Attention against its formula, its golden outputs and exact attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fna_jax.softmax as softmax_module
from fna_jax import (
    Landmarks,
    exact_attention,
    fast_nystrom_attention,
    landmark_key_value,
    newton_schulz_inverse,
)
from tests.conftest import REFERENCES, random_qkv, rel_max_error

GOLDEN = np.load(REFERENCES / "fna_core.npz")
LANDMARKS = np.array([[0, 5, 11, 17, 23, 38], [3, 1, 39, 20, 8, 30]], np.int32)  # for 40 tokens

fna = jax.jit(fast_nystrom_attention, static_argnames=("scale", "inverse_steps", "implementation"))
key_value = jax.jit(landmark_key_value)
exact = jax.jit(exact_attention, static_argnames=("scale", "implementation"))


# The formulas of the method in NumPy float64, one batch element and head at a time.


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def iterate_inverse(kernel, steps):
    eye = np.eye(len(kernel))
    inverse = kernel.T / kernel.sum(0).max()
    for _ in range(steps):
        t = kernel @ inverse
        inverse = inverse @ (13 * eye - t @ (15 * eye - t @ (7 * eye - t))) / 4
    return inverse


def per_head(function, query, key, value, *more):
    """`function(q, k, v, *more[b])` of each batch element b and head, stacked."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    groups = query.shape[2] // key.shape[2]
    rows = []
    for b in range(len(query)):
        heads = [
            function(
                query[b, :, h], key[b, :, h // groups], value[b, :, h // groups],
                *(x[b] for x in more),
            )
            for h in range(query.shape[2])
        ]  # fmt: skip
        rows.append(np.stack(heads, axis=1))
    return np.stack(rows)


def brute_force_fna(query, key, value, landmarks, scale=None, steps=6):
    c = query.shape[-1] ** -0.5 if scale is None else scale

    def head(q, k, v, s):
        inverse = iterate_inverse(softmax(c * q[s] @ k[s].T), steps)
        return softmax(c * q @ k[s].T) @ (inverse @ (softmax(c * q[s] @ k.T) @ v))

    return per_head(head, query, key, value, landmarks)


def brute_force_exact(query, key, value, scale=None):
    c = query.shape[-1] ** -0.5 if scale is None else scale
    return per_head(lambda q, k, v: softmax(c * q @ k.T) @ v, query, key, value)


def row_stochastic(seed, size, batch=()):
    """Kernels like those of FNA: singular values from one down to about 1e-4."""
    rng = np.random.default_rng(seed)
    return softmax(rng.standard_normal((*batch, size, size)) + 2 * np.eye(size))


# Golden data of the authors' implementation.


@pytest.mark.parametrize("case", ["0", "1"])
def test_golden_core(case):
    query, key, value, s = (
        GOLDEN[f"{case}/{name}"] for name in ("query", "key", "value", "landmarks_guarantee")
    )
    assert rel_max_error(fna(query, key, value, s), GOLDEN[f"{case}/output"]) < 5e-6
    landmark_key, landmark_value = key_value(query, key, value, s)
    np.testing.assert_array_equal(landmark_key, GOLDEN[f"{case}/landmark_key"])
    assert rel_max_error(landmark_value, GOLDEN[f"{case}/landmark_value"]) < 5e-6


@pytest.mark.parametrize("case", ["0", "1"])
def test_golden_inverse(case):
    query, key, s = (GOLDEN[f"{case}/{name}"] for name in ("query", "key", "landmarks_guarantee"))
    query, key = (np.take_along_axis(x, s[..., None, None], axis=1) for x in (query, key))
    kernel = softmax(np.einsum("bihd,bjhd->bhij", query, key) * query.shape[-1] ** -0.5)
    assert rel_max_error(newton_schulz_inverse(kernel), GOLDEN[f"{case}/inverse"]) < 5e-6


# The inverse.


@pytest.mark.parametrize("steps", [0, 1, 6, 12])
def test_inverse_is_the_spectral_filter(steps):
    kernel = row_stochastic(0, 12)
    left, sigma, right = np.linalg.svd(kernel)
    weight = sigma**2 / kernel.sum(0).max()
    for _ in range(steps):
        weight = weight * (13 - weight * (15 - weight * (7 - weight))) / 4
    with jax.enable_x64(True):
        inverse = newton_schulz_inverse(kernel, steps)
    assert inverse.dtype == np.float64
    assert rel_max_error(inverse, right.T @ np.diag(weight / sigma) @ left.T) < 1e-14


@pytest.mark.parametrize(
    "initial, kept", [(1e-5, 0.012), (1e-4, 0.111), (1e-3, 0.687), (3e-3, 0.967), (1e-2, 1.000)]
)
def test_six_steps_keep_the_weights_of_the_paper(initial, kept):
    sigma = (
        initial**0.5
    )  # [[a, b], [b, a]] has the singular values 1 and a − b, and columns sum to 1
    kernel = np.array([[1 + sigma, 1 - sigma], [1 - sigma, 1 + sigma]]) / 2
    direction = np.array([1.0, -1.0])
    with jax.enable_x64(True):
        weight = direction @ kernel @ newton_schulz_inverse(kernel) @ direction / 2
    np.testing.assert_allclose(weight, kept, atol=6e-4)  # the table has three decimals


def test_converged_inverse():
    kernel = row_stochastic(1, 16)
    with jax.enable_x64(True):
        inverse = newton_schulz_inverse(kernel, 25)
    assert rel_max_error(inverse, np.linalg.inv(kernel)) < 5e-15


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_inverse_of_half_precision_kernels_is_float32(dtype):
    kernel = jnp.asarray(row_stochastic(2, 8), dtype)
    inverse = newton_schulz_inverse(kernel)
    assert inverse.dtype == jnp.float32
    expected = iterate_inverse(np.asarray(kernel, np.float64), 6)
    assert rel_max_error(inverse, expected) < 5e-6


def test_inverse_of_one_landmark():
    np.testing.assert_array_equal(newton_schulz_inverse(jnp.ones((3, 1, 1))), np.ones((3, 1, 1)))


def test_inverse_of_a_batch_is_that_of_each():
    kernels = row_stochastic(3, 6, batch=(2, 3)).astype(np.float32)
    inverses = newton_schulz_inverse(kernels)
    for index in np.ndindex(2, 3):
        alone = newton_schulz_inverse(kernels[index])
        assert rel_max_error(inverses[index], alone) < 5e-6


@pytest.mark.parametrize("kernel", [np.full((7, 7), 1 / 7), np.repeat([[0.9, 0.1, 0]], 3, axis=0)])
def test_inverse_of_singular_kernels_is_finite(kernel):
    inverse = newton_schulz_inverse(kernel.astype(np.float32), 20)
    assert np.isfinite(inverse).all()
    assert rel_max_error(kernel @ inverse @ kernel, kernel) < 3e-6  # a generalised inverse


@pytest.mark.parametrize(
    "shape, steps, message",
    [((3, 4), 6, r"\[..., S, S\].*\(3, 4\)"), ((3,), 6, r"\(3,\)"), ((3, 3), -1, "got -1")],
)
def test_inverse_errors(shape, steps, message):
    with pytest.raises(ValueError, match=message):
        newton_schulz_inverse(jnp.ones(shape), steps)


def test_an_inverse_of_another_name_raises():
    with pytest.raises(ValueError, match="or None, got 'cudnn'"):
        newton_schulz_inverse(jnp.ones((3, 3)), implementation="cudnn")


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


# FNA: tokens and slots that must carry no weight.


@pytest.mark.parametrize("filler", [0.0, np.nan, 1e30, np.inf])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_padding_changes_nothing_on_real_tokens(filler, kv_heads):
    qkv = random_qkv(kv_heads=kv_heads)
    num_real = [30, 40]
    mask = np.arange(40) < np.array(num_real)[:, None]
    padded = tuple(np.where(mask[..., None, None], x, np.float32(filler)) for x in qkv)
    for landmarks in (LANDMARKS, Landmarks.from_indices(LANDMARKS)):  # 38 points at padding
        output = np.asarray(fna(*padded, landmarks, key_mask=mask))
        assert np.isfinite(output).all()
        for b in range(2):
            real = tuple(x[b : b + 1, : num_real[b]] for x in qkv)
            chosen = LANDMARKS[b][LANDMARKS[b] < num_real[b]][None]
            expected = brute_force_fna(*real, chosen)[0]
            assert rel_max_error(output[b, : num_real[b]], expected) < 5e-6


@pytest.mark.parametrize("filler", [0.0, np.nan])
def test_gradient_with_padding_is_that_without(filler):
    qkv = random_qkv()
    mask = np.broadcast_to(np.arange(40) < 30, (2, 40))
    padded = tuple(np.where(mask[..., None, None], x, np.float32(filler)) for x in qkv)

    def loss(*qkv, key_mask=None, landmarks=LANDMARKS):
        output = fast_nystrom_attention(*qkv, landmarks, key_mask=key_mask)
        return jnp.sum(jnp.sin(output[:, :30]))

    gradients = jax.jit(jax.grad(functools.partial(loss, key_mask=mask), (0, 1, 2)))(*padded)
    kept = np.where(LANDMARKS < 30, LANDMARKS, -1)
    expected = jax.jit(jax.grad(functools.partial(loss, landmarks=kept), (0, 1, 2)))(
        *(x[:, :30] for x in qkv)
    )
    for gradient, alone in zip(gradients, expected):
        assert rel_max_error(gradient[:, :30], alone) < 4e-6
        np.testing.assert_array_equal(gradient[:, 30:], 0)


def test_invalid_slots_are_fewer_landmarks():
    qkv = random_qkv()
    valid = np.array([[1, 1, 0, 1, 0, 1], [0, 1, 1, 0, 0, 0]], bool)
    output = fna(*qkv, Landmarks(jnp.where(valid, LANDMARKS, 0), jnp.asarray(valid)))
    negative = fna(*qkv, np.where(valid, LANDMARKS, -1))
    np.testing.assert_array_equal(output, negative)
    for b in range(2):
        alone = brute_force_fna(*(x[b : b + 1] for x in qkv), LANDMARKS[b : b + 1, valid[b]])
        assert rel_max_error(output[b], alone[0]) < 5e-6


def test_empty_slots_have_zero_values():
    qkv = random_qkv()
    holes = np.where(np.arange(6) % 2, LANDMARKS, -1)
    _, landmark_value = key_value(*qkv, holes)
    np.testing.assert_array_equal(landmark_value[:, ::2], 0)


def test_a_row_without_landmarks_is_zero():
    qkv = random_qkv()
    landmarks = np.where([[False], [True]], LANDMARKS, -1)
    output = fna(*qkv, landmarks)
    np.testing.assert_array_equal(output[0], 0)
    assert rel_max_error(output[1], fna(*qkv, LANDMARKS)[1]) < 1e-6
    masked = fna(*qkv, LANDMARKS, key_mask=np.broadcast_to([[False], [True]], (2, 40)))
    np.testing.assert_array_equal(masked[0], 0)


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


# Exact attention.


@pytest.mark.parametrize("scale", [None, 0.9])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_exact_attention_is_its_formula(scale, kv_heads):
    query, key, value = random_qkv(heads=4, kv_heads=kv_heads)
    output = exact(query[:, :7], key, value, scale=scale)  # cross-attention: 7 queries, 40 keys
    assert rel_max_error(output, brute_force_exact(query[:, :7], key, value, scale)) < 5e-6


def test_masked_keys_take_no_part():
    qkv = random_qkv()
    mask = np.random.default_rng(2).random((2, 40)) < 0.5
    output = exact(*qkv, key_mask=mask)
    for b in range(2):
        alone = brute_force_exact(qkv[0][b : b + 1], *(x[b : b + 1, mask[b]] for x in qkv[1:]))
        assert rel_max_error(output[b], alone[0]) < 5e-6


def test_without_any_key_the_output_and_gradient_are_zero():
    qkv = random_qkv()
    mask = np.broadcast_to([[False], [True]], (2, 40))
    loss = lambda *x: jnp.sum(jnp.sin(1 + exact_attention(*x, key_mask=mask)))
    np.testing.assert_array_equal(exact(*qkv, key_mask=mask)[0], 0)
    for gradient in jax.jit(jax.grad(loss, (0, 1, 2)))(*qkv):
        np.testing.assert_array_equal(gradient[0], 0)
        assert np.isfinite(gradient).all() and np.abs(gradient[1]).max() > 0


SPLITS = {
    "blocks of queries": {"_BLOCK_LOGITS": 40 * 7, "_MIN_ROWS": 1},  # 6 of 7 rows: padded to 42
    "heads": {"_HEAD_LOGITS": 1},
    "images": {"_BATCH_LOGITS": 1},
}


@pytest.mark.parametrize("split", SPLITS)
def test_blocks_of_queries_and_heads_change_nothing(split, monkeypatch):
    qkv = random_qkv(heads=4, kv_heads=2)
    mask = np.random.default_rng(3).random((2, 40)) < 0.8

    def both(*x):
        return (
            exact_attention(*x, key_mask=mask),
            fast_nystrom_attention(*x, LANDMARKS, key_mask=mask),
        )

    def value_and_gradient():  # a fresh function, so that it is traced again
        loss = lambda *x: sum(jnp.sum(jnp.sin(y)) for y in both(*x))
        return jax.jit(lambda *x: (both(*x), jax.grad(loss, (0, 1, 2))(*x))).lower(*qkv)

    loops = lambda lowered: lowered.as_text().count("stablehlo.while")
    direct = value_and_gradient()
    for name, number in SPLITS[split].items():
        monkeypatch.setattr(softmax_module, name, number)
    blocked = value_and_gradient()
    assert loops(blocked) > loops(direct)  # which has those of the inverse
    outputs = (jax.tree.leaves(lowered.compile()(*qkv)) for lowered in (blocked, direct))
    for a, b in zip(*outputs, strict=True):
        assert rel_max_error(a, b) < 5e-6


@pytest.mark.parametrize("function", ["fna", "exact"])
def test_memory_is_linear_in_the_tokens(function):
    def temporary_bytes(tokens):
        x = jax.ShapeDtypeStruct((1, tokens, 2, 8), jnp.float32)
        landmarks = jax.ShapeDtypeStruct((1, 16), jnp.int32)
        arguments = (x, x, x, landmarks) if function == "fna" else (x, x, x)
        apply = {"fna": fna, "exact": exact}[function]
        return apply.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(8192) < 2.2 * temporary_bytes(4096)


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


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="cuDNN runs on a GPU")
def test_cudnn_on_another_device_raises():
    qkv = random_qkv()
    with pytest.raises(ValueError, match=r"'cudnn' cannot run: it needs an NVIDIA GPU.*'xla'"):
        exact_attention(*qkv, implementation="cudnn")


def test_exact_attention_errors():
    qkv = random_qkv()
    with pytest.raises(ValueError, match="None, 'xla', 'cudnn' or 'pallas', got 'flash'"):
        exact_attention(*qkv, implementation="flash")
    with pytest.raises(ValueError, match=r"key_mask must be bool\[2, 40\].*bool\[40\]"):
        exact_attention(*qkv, key_mask=np.ones(40, bool))


def test_forced_implementation_is_the_default_here():
    qkv = random_qkv()
    assert rel_max_error(exact(*qkv, implementation="xla"), exact(*qkv)) < 1e-6
    chosen = fna(*qkv, LANDMARKS, implementation="xla")
    np.testing.assert_array_equal(chosen, fna(*qkv, LANDMARKS))
