"""Interventions against truth tables by hand, a brute force, and what the two modes mean."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fna_jax.softmax as softmax_module
from fna_jax import (
    Masking,
    class_token_proxy,
    exact_attention,
    fast_nystrom_attention,
    incoming_attention,
    masked_attention,
    masked_nystrom_attention,
    removed_entries,
    suppression_correction,
    suppression_matrix,
)
from fna_jax.masking import MODES, NYSTROM_PATTERNS, PATTERNS, masked_weights
from tests.conftest import few, random_qkv, rel_max_error
from tests.fna_jax.test_export import assert_portable, exported

TRUTH = {  # of T = {1, 2} among four tokens: a row per query, from the table of the method
    "X->T": "0110 0110 0110 0110",
    "~T->T": "0110 0010 0100 0110",
    "~{T}->T": "0110 0000 0000 0110",
    "T->T": "0000 0110 0110 0000",
    "T=T": "0000 0100 0010 0000",
    "T->X": "0000 1111 1111 0000",
    "T->~T": "0000 1011 1101 0000",
    "X->X": "1111 1111 1111 1111",
    "X=X": "1000 0100 0010 0001",
}
LANDMARKS = np.array([[0, 5, 11, 3], [8, 1, 6, 2]], np.int32)

exact = jax.jit(exact_attention)
removed_by = jax.jit(removed_entries, static_argnames="pattern")
nystrom = jax.jit(masked_nystrom_attention, static_argnames=("masking", "inverse_steps"))
plain_nystrom = jax.jit(fast_nystrom_attention)


class Inputs(NamedTuple):
    """Of the functions here and in tokens.py: 13 tokens; 4 heads share 2 of keys and values."""

    query: Any
    key: Any
    value: Any
    x: Any
    out_kernel: Any
    tokens: Any
    key_mask: Any

    @classmethod
    def random(cls, seed=0, batch=(2,), dtype=np.float32):
        rng = np.random.default_rng(seed)
        x, out_kernel = rng.standard_normal((*batch, 13, 10)), rng.standard_normal((4, 6, 10))
        qkv = random_qkv(seed + 1, batch, tokens=13, heads=4, dim=6, kv_heads=2, dtype=dtype)
        tokens, key_mask = rng.random((2, *batch, 13)) < 0.5
        key_mask[..., 0] = True
        return cls(*qkv, x.astype(dtype), out_kernel.astype(dtype), tokens, key_mask)

    def padded(self, *names):
        """With NaN at padding."""
        where = jnp.where if isinstance(self.key_mask, jax.core.Tracer) else np.where
        spoilt = lambda x: where(self.key_mask[..., None, None], x, np.asarray(np.nan, x.dtype))
        return self._replace(**{name: spoilt(getattr(self, name)) for name in names})

    def masked(self, function, masking, *more, **options):
        """`function(query, key, value, *more, masking)` with these sets."""
        options["tokens"] = self.tokens if masking.needs_tokens else None
        return function(*self[:3], *more, masking, key_mask=self.key_mask, **options)


def brute_force_weights(query, key, *, key_mask=None, removed=None, mode="mask", scale=None):
    """The attention matrix in NumPy float64, `[*B, H, N, N]`."""
    query, key = np.asarray(query, np.float64), np.asarray(key, np.float64)
    key = np.repeat(key, query.shape[-2] // key.shape[-2], axis=-2)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    weights = np.exp(scale * np.einsum("...ihd,...jhd->...hij", query, key))
    if key_mask is not None:
        weights = weights * key_mask[..., None, None, :]
    kept = weights if removed is None else weights * ~removed[..., None, :, :]
    total = (kept if mode == "mask" else weights).sum(-1, keepdims=True)
    return kept / np.where(total == 0, 1, total)


def brute_force(inputs, pattern, mode, scale=None):
    """The output and the attention matrix."""
    removed = np.asarray(removed_by(inputs.tokens, pattern))
    options = dict(key_mask=inputs.key_mask, removed=removed, mode=mode, scale=scale)
    weights = brute_force_weights(*inputs[:2], **options)
    value = np.repeat(inputs.value.astype(np.float64), 2, axis=-2)
    return np.einsum("...hij,...jhd->...ihd", weights, value), weights


@pytest.mark.parametrize("pattern", PATTERNS)
def test_truth_table(pattern):
    table = np.array([list(row) for row in TRUTH[pattern].split()]) == "1"
    tokens = np.array([[0, 1, 1, 0], [0, 0, 1, 1]], bool)  # the second: each token one further on
    further = np.roll(table, 1, axis=(0, 1))
    found, of_one = jax.jit(lambda x: [removed_entries(t, pattern) for t in (x, x[0])])(tokens)
    np.testing.assert_array_equal(found, [table, further])
    np.testing.assert_array_equal(of_one, table)
    assert Masking(pattern).needs_tokens == (pattern not in ("X->X", "X=X"))
    assert TRUTH.keys() == set(PATTERNS)


# Exact attention.


@functools.partial(jax.jit, static_argnames="masking")
def attend(inputs, masking):
    """The output and the attention matrix, with NaN at padding."""
    inputs = inputs.padded("key", "value")
    weigh = lambda query, key, value, masking, **kw: masked_weights(query, key, masking, **kw)
    return tuple(inputs.masked(f, masking, scale=0.7) for f in (masked_attention, weigh))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_masked_attention_is_the_brute_force(pattern):
    inputs, weights = Inputs.random(), {}
    for mode in MODES:
        expected = brute_force(inputs, pattern, mode, scale=0.7)
        output, weights[mode] = map(np.asarray, attend(inputs, Masking(pattern, mode)))
        np.testing.assert_allclose(output, expected[0], atol=3e-6)
        np.testing.assert_allclose(weights[mode], expected[1], atol=1e-6)

    plain = brute_force_weights(*inputs[:2], key_mask=inputs.key_mask, scale=0.7)
    removed = np.asarray(removed_by(inputs.tokens, pattern))[:, None]
    left = 1 - np.sum(plain, axis=-1, where=removed)  # of the mass of each row
    np.testing.assert_allclose(np.sum(weights["sink"], -1), left, atol=1.5e-6)
    np.testing.assert_allclose(np.sum(weights["mask"], -1), left > 1e-9, atol=2e-6)
    np.testing.assert_allclose(weights["mask"] * left[..., None], weights["sink"], atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_rows_without_keys_are_zero_with_a_finite_gradient(mode):
    qkv = Inputs.random()[:3]
    tokens = np.broadcast_to([[True], [False]], (2, 13))  # all of the first image, none of the next

    def loss(*qkv):
        output = masked_attention(*qkv, Masking("X->T", mode), tokens=tokens)
        return jnp.sum(jnp.sin(1 + output)), output

    found = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*qkv)
    gradients, output = jax.tree.map(np.asarray, found)
    np.testing.assert_array_equal(output[0], 0)
    assert rel_max_error(output[1], np.asarray(exact(*qkv))[1]) < 2e-6
    for gradient in gradients:
        np.testing.assert_array_equal(gradient[0], 0)
        assert np.isfinite(gradient).all() and np.abs(gradient[1]).max() > 0


# Masked FNA.


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pattern", NYSTROM_PATTERNS)
def test_fna_with_all_landmarks_is_masked_exact_attention(pattern, mode):
    inputs, landmarks = Inputs.random(dtype=np.float64), np.tile(np.arange(13), (2, 1))
    with jax.enable_x64(True):
        spoilt = inputs.padded("query", "key", "value")
        output = spoilt.masked(nystrom, Masking(pattern, mode), landmarks, inverse_steps=20)
    output, expected = np.asarray(output), brute_force(inputs, pattern, mode)[0]
    assert np.isfinite(output).all()  # at padding, too
    # As sink T pays itself, too, and rows of what is no landmark are not exact.
    exact = (
        inputs.key_mask & ~inputs.tokens if (pattern, mode) == ("X->T", "sink") else inputs.key_mask
    )
    np.testing.assert_allclose(output[exact], expected[exact], atol=4e-13)


@pytest.mark.parametrize("mode", MODES)
def test_fna_drops_landmarks_and_values_that_are_masked(mode):
    qkv, masking = Inputs.random()[:3], Masking("X->T", mode)
    tokens = np.tile(np.isin(np.arange(13), [5, 6, 12]), (2, 1))
    output = nystrom(*qkv, LANDMARKS, masking, tokens=tokens)
    holes = np.where(np.isin(LANDMARKS, [5, 6]), -1, LANDMARKS)
    np.testing.assert_array_equal(nystrom(*qkv, holes, masking, tokens=tokens), output)
    if mode == "sink":
        without_values = (*qkv[:2], np.where(tokens[..., None, None], 0, qkv[2]))
        assert rel_max_error(output, plain_nystrom(*without_values, holes)) < 1e-6
        return
    renumbered = np.where(holes > 6, holes - 2, holes)  # the others: as if T were not there
    alone = plain_nystrom(*(x[:, ~tokens[0]] for x in qkv), renumbered)
    assert rel_max_error(np.asarray(output)[:, ~tokens[0]], alone) < 2e-6


@pytest.mark.parametrize("masking", [Masking("X->T", "mask"), Masking("X->T"), Masking("T->X")])
def test_fna_without_tokens_is_plain(masking):
    qkv, none = Inputs.random()[:3], np.zeros((2, 13), bool)
    output = nystrom(*qkv, LANDMARKS, masking, tokens=none)
    assert rel_max_error(output, plain_nystrom(*qkv, LANDMARKS)) < 1e-6


@pytest.mark.parametrize("pattern", sorted(TRUTH.keys() - {"X->T", "T->X", "X->X"}))
def test_fna_refuses_other_patterns(pattern):
    with pytest.raises(ValueError, match=r"cannot remove.*keep exact attention") as error:
        Inputs.random().masked(nystrom, Masking(pattern), LANDMARKS)
    assert repr(pattern) in str(error.value)


# All functions of attention, those in tokens.py included.

OPERATIONS = {
    "mask": lambda a: a.masked(masked_attention, Masking("~{T}->T", "mask")),
    "sink": lambda a: a.masked(masked_attention, Masking("~{T}->T", "sink")),
    "correction": lambda a: suppression_correction(*a[:5], key_mask=a.key_mask),
    "incoming": lambda a: incoming_attention(*a[:2], key_mask=a.key_mask),
    "proxy": lambda a: class_token_proxy(*a[:2], key_mask=a.key_mask),
    "proxy of all": lambda a: class_token_proxy(*a[:2], has_class_token=False, key_mask=a.key_mask),
    "suppression": lambda a: suppression_matrix(a.x, a.value, a.out_kernel),
    "fna": lambda a: a.masked(
        masked_nystrom_attention,
        Masking("X->T", "mask"),
        jnp.broadcast_to(jnp.arange(0, 12, 2), (*a.query.shape[:-3], 6)),
        inverse_steps=1,
    ),
}
BLOCKED = ["mask", "correction", "incoming", "proxy of all"]


@pytest.mark.parametrize("name", few(OPERATIONS, 3))
def test_batch_dimensions(name):
    inputs = Inputs.random(batch=(2, 3))
    over = functools.partial(jax.vmap, in_axes=(Inputs(*[0] * 7)._replace(out_kernel=None),))
    mapped = jax.jit(over(over(OPERATIONS[name])))(inputs)
    assert rel_max_error(mapped, jax.jit(OPERATIONS[name])(inputs)) < 2e-6


@pytest.mark.parametrize("name", ["mask", "sink", "fna", "correction", "suppression"])
def test_gradient_is_the_slope(name):
    *point, tokens, key_mask = Inputs.random(dtype=np.float64)
    direction = Inputs.random(9, dtype=np.float64)[:5]
    loss = lambda *x: jnp.sum(jnp.square(OPERATIONS[name](Inputs(*x, tokens, key_mask))))
    with jax.enable_x64(True):
        slope = jax.jit(jax.value_and_grad(loss, range(5)))
        behind, at, ahead = (
            slope(*(x + step * d for x, d in zip(point, direction))) for step in (-1e-5, 0, 1e-5)
        )
    slope = sum(np.sum(np.asarray(g) * d) for g, d in zip(at[1], direction))
    np.testing.assert_allclose(slope, float(ahead[0] - behind[0]) / 2e-5, rtol=5e-9)


@pytest.mark.parametrize("name", BLOCKED)
def test_blocks_of_queries_and_jit_change_nothing(name, monkeypatch):
    inputs = Inputs.random()
    direct = jax.jit(lambda: OPERATIONS[name](inputs))()  # of NumPy's arrays, as outside of jit
    monkeypatch.setattr(softmax_module, "_BLOCK_LOGITS", 13 * 4)
    monkeypatch.setattr(softmax_module, "_MIN_ROWS", 1)  # blocks of 4 rows, the last filled up
    blocked = jax.jit(lambda a: OPERATIONS[name](a)).lower(inputs)
    assert "while" in blocked.as_text()
    assert rel_max_error(blocked.compile()(inputs), direct) < 2e-6


@pytest.mark.parametrize("name", ["mask", "correction", "incoming"])
def test_memory_is_linear_in_the_tokens(name):
    def temporary_bytes(n):
        shapes = [(1, n, 2, 8)] * 3 + [(1, n, 16), (2, 8, 16)]
        floats = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        inputs = Inputs(*floats, *[jax.ShapeDtypeStruct((1, n), bool)] * 2)
        compiled = jax.jit(OPERATIONS[name]).lower(inputs).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(8192) < 2.2 * temporary_bytes(4096)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_operations_export(platform):
    def all_of_them(q, k, v, mask):
        x, out_kernel = q.reshape(*q.shape[:2], 16), jnp.ones((2, 8, 16))
        return [f(Inputs(q, k, v, x, out_kernel, ~mask, mask)) for f in OPERATIONS.values()]

    assert_portable(exported(all_of_them, 2, 64, platforms=[platform]).mlir_module())


def test_correction_is_its_formula():
    inputs = Inputs.random()
    inputs.x[0, 3] = 0
    _, _, value, x, out_kernel, _, key_mask = inputs
    unit = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-30)
    along = np.einsum("bic,hdc,bjhd->bhij", unit, out_kernel, np.repeat(value, 2, axis=2))
    weights = brute_force_weights(*inputs[:2], key_mask=key_mask)
    expected = unit * np.sum(weights * np.maximum(-along, 0), axis=(1, 3))[..., None]
    correct = jax.jit(suppression_correction)
    output = np.asarray(correct(*inputs.padded("key", "value")[:5], key_mask=key_mask))
    assert rel_max_error(output, expected) < 2e-6
    np.testing.assert_array_equal(output[0, 3], 0)
    half = correct(*(a.astype(jnp.bfloat16) for a in inputs[:5]), key_mask=key_mask)
    assert half.dtype == jnp.bfloat16
    assert rel_max_error(half, expected) < 2e-2
    of_x = lambda x: jnp.sum(suppression_correction(*inputs[:3], x, out_kernel, key_mask=key_mask))
    assert np.isfinite(jax.jit(jax.grad(of_x))(x)).all()


# Errors.

exactly = lambda a: masked_attention(*a[:3], Masking(), tokens=a.tokens, key_mask=a.key_mask)


@pytest.mark.parametrize(
    "call, change, message",
    [
        (lambda a: Masking("T->Y"), {}, "one of X->T,.*'T->Y'"),
        (lambda a: Masking(mode="drop"), {}, "one of mask, sink, got 'drop'"),
        (lambda a: removed_entries([0, 1, 1], "X->T"), {}, r"tokens must be bool\[3\], got int"),
        (lambda a: removed_entries(a.tokens, "T"), {}, "pattern must be one of X->T,.*'T'"),
        (exactly, dict(tokens=np.ones((2, 12), bool)), r"bool\[2, 13\], got bool\[2, 12\]"),
        (exactly, dict(tokens=np.ones((2, 13), np.int8)), r"bool\[2, 13\], got int8\[2, 13\]"),
        (exactly, dict(tokens=None), "'X->T' needs the token set T"),
        (exactly, dict(query=np.ones((2, 7, 4, 6), np.float32)), "got 7 queries and 13 keys"),
        (exactly, dict(key_mask=np.ones((2, 12), bool)), r"key_mask must be bool\[2, 13\]"),
        (
            lambda a: masked_attention(*a[:3], Masking("X=X"), tokens=a.tokens),
            {},
            "tokens were given, but pattern 'X=X'",
        ),
        (OPERATIONS["fna"], dict(tokens=np.ones(13, bool)), r"tokens must be bool\[2, 13\]"),
        (OPERATIONS["correction"], dict(x=np.ones((2, 13, 9))), r"\[\*B, N, C\].*\(2, 13, 9\)"),
        (OPERATIONS["suppression"], dict(out_kernel=np.ones((3, 6, 10))), r"\(3, 6, 10\)"),
        (OPERATIONS["incoming"], dict(query=np.ones((2, 7, 4, 6), np.float32)), "got 7 queries"),
        (OPERATIONS["incoming"], dict(key_mask=np.ones(13, bool)), r"key_mask must be bool\[2, 13"),
    ],
)  # fmt: skip
def test_errors(call, change, message):
    with pytest.raises(ValueError, match=message):
        call(Inputs.random()._replace(**change))
