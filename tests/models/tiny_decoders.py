"""Tiny random decoders, one of each kind that is published."""

import functools

import jax
import numpy as np
from flax import nnx

import models

SIZES = {
    "vocab_size": 48,
    "width": 32,
    "depth": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "mlp_dim": 40,
    "max_positions": 64,
}
KINDS = {
    "llama": ("llama-2-7b", {"num_kv_heads": 4, "rope_theta": 100.0}),
    "mistral": ("mistral-7b-v0.1", {"sliding_window": 5}),
    "qwen2": ("qwen2-0.5b", {}),
    "qwen3": ("qwen3-0.6b", {"head_dim": 16}),
}


@functools.cache
def tiny(kind, **overrides):
    """A random decoder whose scales and biases differ from 1 and 0. Tests must not change it."""
    name, settings = KINDS[kind]
    model = models.create(name, rngs=nnx.Rngs(0), **SIZES | settings | overrides)
    rng = np.random.default_rng(0)
    noisy = lambda x: x + 0.3 * rng.standard_normal(x.shape).astype(x.dtype)
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(noisy, state))


def prompts(batch=2, length=9, padding=(0, 4), seed=0):
    """Random token ids `[B, N]`, and the key mask with so much padding on the left of each row."""
    tokens = np.random.default_rng(seed).integers(0, SIZES["vocab_size"], (batch, length))
    return tokens, np.arange(length) >= np.asarray(padding)[:, None]


@jax.jit
def run(model, tokens, key_mask, cache=None):
    """States, logits and cache."""
    hidden, cache = model(model.embed(tokens), key_mask=key_mask, cache=cache)
    return hidden, model.logits_of(hidden), cache
