"""FastNystromAttention called as Flax calls an attention_fn: what it honours, what it refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fna_jax import FastNystromAttention
from tests.conftest import rel_max_error
from tests.fna_jax.seam import FNA, HEADS, INPUTS, TOKENS


@pytest.mark.parametrize(
    "keyword, value",
    [
        ("bias", np.zeros((2, HEADS, TOKENS, TOKENS))),
        ("is_causal", True),
        ("input_positions", np.arange(TOKENS)),
        ("qk_attn_weights_einsum", jnp.einsum),
        ("attn_weights_value_einsum", jnp.einsum),
        ("a_keyword_of_next_year", False),
        ("dropout_rate", 0.5),
        ("module", object()),
    ],
)
def test_what_cannot_be_honoured_raises_by_name(keyword, value):
    x = INPUTS.reshape(2, TOKENS, HEADS, -1)
    with pytest.raises(ValueError, match=f"cannot honour.*{keyword}.*keep exact attention"):
        FNA(x, x, x, **{keyword: value})


@pytest.mark.parametrize(
    "change",
    [
        dict(query=INPUTS[:, :3]),
        dict(tokens=4, mask=np.arange(4) < np.array([[3], [2]])[:, None, None]),
        dict(bias=np.random.default_rng(1).standard_normal((2, HEADS, TOKENS, TOKENS))),
        dict(mask=np.tril(np.ones((1, 1, TOKENS, TOKENS)))),
        dict(mask=np.tril(np.ones((TOKENS, TOKENS), bool))),
        dict(is_causal=True),
    ],
    ids=["cross-attention", "few tokens", "bias", "causal mask", "causal [N, N]", "is_causal"],
)
def test_otherwise_exact_is_flaxs_attention(change):
    fna = dataclasses.replace(FNA, otherwise="exact")
    change = dict(change)
    x = INPUTS[:, : change.pop("tokens", TOKENS)]
    query = change.pop("query", x)
    heads = lambda x: x.reshape(*x.shape[:2], HEADS, -1)
    arguments = heads(query), heads(x), heads(x[::-1])
    with pytest.raises(ValueError, match="otherwise='exact'"):
        FNA(*arguments, **change)

    @jax.jit
    def both(*arguments):
        return fna(*arguments, **change), nnx.dot_product_attention(*arguments, **change)

    assert rel_max_error(*both(*arguments)) < 5e-6


@pytest.mark.parametrize("otherwise", ["raise", "exact"])
def test_the_scale_and_the_implementation_may_come_with_the_call(otherwise):
    fna = FastNystromAttention(6, inverse_steps=0, otherwise=otherwise)
    with_scale = dataclasses.replace(fna, scale=0.1)

    @jax.jit
    def outputs(x):
        call = fna(x, x, x, scale=0.1, implementation="xla")
        return call, with_scale(x, x, x), fna(x, x, x)

    x = INPUTS.reshape(2, TOKENS, HEADS, -1)[:, : 3 if otherwise == "exact" else TOKENS]
    output, expected, default = outputs(x)
    np.testing.assert_array_equal(output, expected)
    assert rel_max_error(default, expected) > 1e-3


def test_settings_that_contradict_the_call_raise():
    x = INPUTS.reshape(2, TOKENS, HEADS, -1)
    with pytest.raises(ValueError, match=r"scale \(FastNystromAttention.scale is set too"):
        dataclasses.replace(FNA, scale=0.1)(x, x, x, scale=0.2)
    with pytest.raises(ValueError, match="implementation='xla', 'pallas' or None, got 'cudnn'"):
        FNA(x, x, x, implementation="cudnn")


def test_values_may_have_another_head_dimension():
    x = INPUTS.reshape(2, TOKENS, HEADS, -1)
    whole, part = jax.jit(lambda x: (FNA(x, x, x), FNA(x, x, x[..., :3])))(x)
    assert rel_max_error(part, whole[..., :3]) < 5e-6


def test_dropout_that_depends_on_traced_values_is_refused_in_a_sentence():
    x = INPUTS.reshape(2, TOKENS, HEADS, -1)
    apply = lambda traced, **kw: jax.eval_shape(
        lambda d: FNA(x, x, x, deterministic=d, **kw), traced
    )
    with pytest.raises(ValueError, match="traced dropout_rate or deterministic: make determ"):
        apply(True, dropout_rate=0.5)
    assert apply(True).shape == x.shape  # without dropout it means nothing


def test_what_changes_nothing_is_accepted():
    x = INPUTS.reshape(2, TOKENS, HEADS, -1)
    apply = jax.jit(lambda x, **kw: FNA(x, x, x, deterministic=True, dropout_rate=0.5, **kw))
    output = apply(x, a_keyword_of_next_year=None, input_positions=None, bias=None, mask=None)
    np.testing.assert_array_equal(output, apply(x, dropout_rng=jax.random.key(0)))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(features="input"), "'q', 'k', 'v' here, got 'input'"),
        (dict(otherwise="none"), "otherwise must be one of 'raise', 'exact'.*got 'none'"),
        (dict(mask_is_padding=3), "mask_is_padding must be one of False, True.*got 3"),
        (dict(method="kmeans"), "'kmeans'"),
    ],
)
def test_bad_settings_raise(change, message):
    with pytest.raises(ValueError, match=message):
        FastNystromAttention(6, **change)


@pytest.mark.parametrize("position", [TOKENS, -1])
def test_a_guaranteed_position_outside_the_tokens_raises(position):
    x = INPUTS.reshape(2, TOKENS, HEADS, -1)
    with pytest.raises(ValueError, match=rf"guarantee names \[{position}\].*{TOKENS} tokens"):
        FastNystromAttention(6, guarantee=(0, position))(x, x, x)


def test_equal_settings_trace_once():
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def apply(fna, x):
        traces.append(fna)
        return fna(x, x, x)

    x = INPUTS.reshape(2, TOKENS, HEADS, -1)
    apply(FastNystromAttention(6, inverse_steps=0), x)
    apply(FastNystromAttention(6, inverse_steps=0, guarantee=[0]), x)
    assert len(traces) == 1
    apply(FastNystromAttention(5, inverse_steps=0), x)
    assert len(traces) == 2


def test_dtype_of_the_call_is_that_of_the_output():
    x = INPUTS.reshape(2, TOKENS, HEADS, -1)
    dtype = lambda *qkv, **kw: jax.eval_shape(lambda *qkv: FNA(*qkv, **kw), *qkv).dtype
    assert dtype(x, x, x, dtype=np.dtype("bfloat16")) == jnp.bfloat16
    assert dtype(x, x.astype(np.float16), x) == np.float32


@pytest.mark.parametrize("precision", ["high", jax.lax.Precision.HIGH])
def test_precision_is_that_of_every_product_that_the_method_leaves_open(precision):
    x = INPUTS.reshape(2, TOKENS, HEADS, -1)

    def precisions(precision):
        """Precisions of the products with all tokens; those among landmarks are always highest."""
        text = jax.jit(lambda x: FNA(x, x, x, precision=precision)).lower(x).as_text()
        products = [line for line in text.splitlines() if "dot_general" in line]
        return {
            name for name in ("HIGHEST", "HIGH,", "DEFAULT")
            for line in products if f"x{TOKENS}x" in line and name in line
        }  # fmt: skip

    assert precisions(precision) == {"HIGH,"}
    with jax.default_matmul_precision("default"):
        assert precisions(None) <= {"DEFAULT"}  # the caller's default is kept


def test_unknown_precision_raises():
    x = INPUTS.reshape(2, TOKENS, HEADS, -1)
    with pytest.raises(ValueError, match="precision must be a name"):
        FNA(x, x, x, precision=3)
