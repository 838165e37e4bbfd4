"""FastNystromAttention as the attention_fn of layers of both Flax APIs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from fna_jax import FastNystromAttention
from tests.conftest import few, rel_max_error
from tests.fna_jax.seam import (
    FNA,
    HEADS,
    INPUTS,
    KEY_MASK,
    TOKENS,
    WIDTH,
    by_hand,
    call,
    call_with_traced_mask,
    nnx_layer,
    weights,
)


@pytest.mark.parametrize("api", ["nnx", "linen"])
@pytest.mark.parametrize(
    "fna",
    few(
        [
            FNA,
            FastNystromAttention(5, features="k", guarantee=(), inverse_steps=1),
            FastNystromAttention(6, features="v", guarantee=[0, 7]),
            FastNystromAttention(6, method="random", seed=3, inverse_steps=1),
        ],
        2,
    ),
)
def test_layer_is_fna_by_hand(api, fna):
    expected = by_hand(weights(), INPUTS, fna=fna)
    assert rel_max_error(call(api, attention_fn=fna), expected) < 5e-6


@pytest.mark.parametrize("api", ["nnx", "linen"])
@pytest.mark.parametrize("form", few(["make_attention_mask", "keys", "all queries", "traced"], 2))
def test_key_padding_mask_is_honoured(api, form):
    padded = np.where(KEY_MASK[..., None], INPUTS, 7)
    if form == "traced":
        fna = dataclasses.replace(FNA, mask_is_padding=True)
        output = call_with_traced_mask(api, padded, fna)
    else:
        mask = KEY_MASK[:, None, None, :]
        if form == "all queries":
            mask = jnp.broadcast_to(mask, (2, 1, TOKENS, TOKENS))
        elif form == "make_attention_mask":  # floats; padding reads nothing
            mask = linen.make_attention_mask(KEY_MASK, KEY_MASK)
        output = call(api, padded, mask=mask)
    output = np.asarray(output)
    for b, tokens in enumerate(KEY_MASK.sum(1)):
        alone = by_hand(weights(), INPUTS[b : b + 1, :tokens])[0]
        assert rel_max_error(output[b, :tokens], alone) < 5e-6


@pytest.mark.parametrize("api", ["nnx", "linen"])
@pytest.mark.parametrize(
    "mask, message",
    [
        (np.tril(np.ones((2, 1, TOKENS, TOKENS), bool)), "mask is causal.*keep exact attention"),
        (np.tril(np.ones((TOKENS, TOKENS))), "mask is causal"),
        (np.eye(TOKENS, dtype=bool)[None, None, ::-1], "key-padding masks, the same for all"),
        (np.arange(HEADS)[:, None, None] * np.ones((2, 1, 1, TOKENS)) > 0, "key-padding masks"),
        (np.full((2, 1, 1, TOKENS), -1e9, np.float32), r"got -1000000000.0 to .*is a bias"),
        (np.ones((2, 1, 1, 3), bool), r"must be \[\*B, 1, 1, 20\].*, got shape \(2, 1, 1, 3\)"),
        (np.ones((2, TOKENS), bool), r"must be \[\*B, 1, 1, 20\].*, got shape \(2, 20\)"),
    ],
)
def test_other_masks_raise(api, mask, message):
    with pytest.raises(ValueError, match=message):
        call(api, mask=mask)


@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_a_traced_mask_for_pairs_raises(api):
    with pytest.raises(ValueError, match=r"padding or causal.*mask_is_padding=True.*only="):
        call_with_traced_mask(api, INPUTS, FNA)


@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_active_dropout_raises_and_inactive_dropout_changes_nothing(api):
    settings = dict(dropout_rate=0.5)
    output = call(api, settings=settings, deterministic=True)
    assert rel_max_error(output, call(api)) < 5e-6
    with pytest.raises(ValueError, match=r"cannot honour dropout_rate \(set deterministic=True\)"):
        if api == "nnx":
            nnx_layer(**settings)(INPUTS, deterministic=False, rngs=nnx.Rngs(1))
        else:
            call(api, settings=settings, deterministic=False, dropout_rng=jax.random.key(1))


@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_sowing_weights_raises(api):
    with pytest.raises(ValueError, match="sow_weights: FNA forms no attention matrix"):
        call(api, sow_weights=True)


@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_cross_attention_raises(api):
    with pytest.raises(ValueError, match=r"20 queries and 5 keys.*pooling head"):
        call(api, inputs_k=INPUTS[:, :5])


def test_causal_nnx_layer_raises():
    with pytest.raises(ValueError, match="cannot honour is_causal"):
        call("nnx", is_causal=True)


@pytest.mark.parametrize("api", ["nnx", "linen"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.dtype("float16")])
def test_dtype_is_honoured(api, dtype):
    output = call(api, settings=dict(dtype=dtype))
    assert output.dtype == dtype
    assert rel_max_error(output, call(api)) < 0.02  # measured: 5e-3 in bfloat16, 1e-3 in float16


# Swapping it into a model that somebody else wrote.


class SomebodysNnxModel(nnx.Module):
    def __init__(self, *, rngs):
        self.first = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.second = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)

    def __call__(self, x):
        return self.second(x + self.first(x))


def test_nnx_model_with_fna_shares_the_weights_and_leaves_the_original_exact():
    model = SomebodysNnxModel(rngs=nnx.Rngs(0))
    apply = nnx.jit(lambda model, x: model(x))
    before = apply(model, INPUTS)
    fast = nnx.with_attributes(model, only=nnx.MultiHeadAttention, attention_fn=FNA)
    assert fast.first.attention_fn is FNA and fast.second.attention_fn is FNA
    leaves, shared = (jax.tree.leaves(nnx.state(m)) for m in (model, fast))
    assert len(leaves) == 16 and all(a is b for a, b in zip(leaves, shared))
    assert rel_max_error(apply(fast, INPUTS), before) > 1e-3
    np.testing.assert_array_equal(apply(model, INPUTS), before)
