"""Attention in NumPy float64, one batch element and head at a time, and compiled once."""

import jax
import numpy as np

from fna_jax import (
    exact_attention,
    fast_nystrom_attention,
    landmark_key_value,
    newton_schulz_inverse,
)
from tests.conftest import REFERENCES

GOLDEN = np.load(REFERENCES / "fna_core.npz")
LANDMARKS = np.array([[0, 5, 11, 17, 23, 38], [3, 1, 39, 20, 8, 30]], np.int32)  # for 40 tokens

fna = jax.jit(fast_nystrom_attention, static_argnames=("scale", "inverse_steps", "implementation"))
key_value = jax.jit(landmark_key_value)
exact = jax.jit(exact_attention, static_argnames=("scale", "implementation"))
inverse_of = jax.jit(newton_schulz_inverse, static_argnames="steps")


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
