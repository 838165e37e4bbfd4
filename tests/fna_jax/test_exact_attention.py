"""Exact attention against its formula, and what it shares with FNA: blocks, heads, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fna_jax.softmax as softmax_module
from fna_jax import exact_attention, fast_nystrom_attention
from tests.conftest import few, random_qkv, rel_max_error
from tests.fna_jax.formulas import LANDMARKS, brute_force_exact, exact, fna


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


def both_with_gradients():
    """The number of loops, the outputs and the gradients of both attentions, traced anew."""
    qkv = random_qkv(heads=4, kv_heads=2)
    mask = np.random.default_rng(3).random((2, 40)) < 0.8

    def both(*x):
        return (
            exact_attention(*x, key_mask=mask),
            fast_nystrom_attention(*x, LANDMARKS, key_mask=mask),
        )

    loss = lambda *x: sum(jnp.sum(jnp.sin(y)) for y in both(*x))
    lowered = jax.jit(lambda *x: (both(*x), jax.grad(loss, (0, 1, 2))(*x))).lower(*qkv)
    return lowered.as_text().count("stablehlo.while"), lowered.compile()(*qkv)


@pytest.fixture(scope="module")
def direct():
    return both_with_gradients()


@pytest.mark.parametrize("split", few(SPLITS, ["images"]))
def test_blocks_of_queries_heads_and_images_change_nothing(split, direct, monkeypatch):
    for name, number in SPLITS[split].items():
        monkeypatch.setattr(softmax_module, name, number)
    blocked = both_with_gradients()
    assert blocked[0] > direct[0]  # which has those of the inverse
    for a, b in zip(*map(jax.tree.leaves, (blocked[1], direct[1])), strict=True):
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
