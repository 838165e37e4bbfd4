"""The method exports from a CPU for other devices and for any batch and token count."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from fna_jax import (
    Masking,
    exact_attention,
    fast_nystrom_attention,
    masked_attention,
    select_landmarks,
    softmax,
)
from tests.conftest import few, random_qkv, rel_max_error


def select_and_attend(query, key, value, key_mask):
    """Both halves of the method, as a model runs them; the class token is guaranteed."""
    first = jnp.broadcast_to(jnp.arange(query.shape[1]) == 0, key_mask.shape)
    landmarks = select_landmarks(
        jnp.mean(query, axis=2), 12, guarantee=first & key_mask, exclude=~key_mask
    )
    return fast_nystrom_attention(query, key, value, landmarks, key_mask=key_mask)


def exported(function, batch, tokens, **kw):
    x = jax.ShapeDtypeStruct((batch, tokens, 2, 8), jnp.float32)
    mask = jax.ShapeDtypeStruct((batch, tokens), jnp.bool_)
    return export.export(jax.jit(function), **kw)(x, x, x, mask)


def assert_portable(text):
    """No float64, and no call out of the program, to Python or to a library."""
    assert not re.search(r"\bf64\b|xf64", text)
    targets = set(re.findall(r"custom_call @(\w+)", text))
    assert not targets, targets


@functools.cache
def symbolic():
    batch, tokens = export.symbolic_shape("b, n", constraints=["n >= 64"])
    return exported(select_and_attend, batch, tokens)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_exported_program_is_portable(platform):
    program = exported(select_and_attend, 2, 64, platforms=[platform])
    text = program.mlir_module()
    assert program.platforms == (platform,)
    assert_portable(text)
    assert text.count("stablehlo.while") == 2  # over the samples, and over the inverse's steps


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_exact_attention_exports(platform, monkeypatch):
    monkeypatch.setattr(softmax, "_HEAD_LOGITS", 1)  # on a CPU, head by head
    function = lambda q, k, v, mask: exact_attention(q, k, v, key_mask=mask)
    text = exported(function, 2, 64, platforms=[platform]).mlir_module()
    assert_portable(text)
    assert "stablehlo.while" not in text  # few enough logits for one block, and all heads at once


@pytest.mark.parametrize("batch, tokens", few([(1, 64), (3, 100)], [(3, 100)]))
def test_symbolic_sizes_give_the_direct_result(batch, tokens):
    qkv = random_qkv(batch=(batch,), tokens=tokens)
    key_mask = np.arange(tokens) < np.arange(tokens, tokens - batch, -1)[:, None]
    output = symbolic().call(*qkv, key_mask)
    assert rel_max_error(output, jax.jit(select_and_attend)(*qkv, key_mask)) < 1e-5


def test_symbolic_export_for_another_device():
    batch, tokens = export.symbolic_shape("b, n", constraints=["n >= 64"])
    program = exported(select_and_attend, batch, tokens, platforms=["tpu", "cuda"])
    assert program.out_avals[0].shape == (batch, tokens, 2, 8)


def test_what_is_removed_is_removed_in_any_batch():
    masking = Masking("X->T", "mask")
    attend = lambda q, k, v, tokens: masked_attention(q, k, v, masking, tokens=tokens)
    (batch,) = export.symbolic_shape("b")
    qkv, tokens = random_qkv(batch=(3,)), np.random.default_rng(0).random((3, 40)) < 0.2
    output = exported(attend, batch, 40).call(*qkv, tokens)
    assert rel_max_error(output, jax.jit(attend)(*qkv, tokens)) < 1e-5
