"""Attention and suppression between groups of tokens: class token, registers, massive, … (`[G]`).

Shape letters: B batch, N tokens, P patches, H heads, D head dimension, C width, G groups.
"""

import functools

import jax
import jax.numpy as jnp

from fna_jax.softmax import map_row_blocks
from fna_jax.tokens import along_itself, attention_weights

_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def group_names(num_prefix) -> list[str]:
    """The groups of tokens, in order, for that many tokens in front of the patches."""
    prefix = ["class token", "registers"][: min(num_prefix, 2)]
    return [*prefix, "massive", "artifact", "normal"]


def membership(massive, artifact, num_prefix):
    """One-hot groups of the tokens, float32 `[B, N, G]`, from two sets, bool `[B, N]`."""
    index = jnp.arange(massive.shape[-1])
    prefix = [index == 0, (index > 0) & (index < num_prefix)][: min(num_prefix, 2)]
    normal = (index >= num_prefix) & ~massive & ~artifact
    groups = jnp.broadcast_arrays(*prefix, massive, artifact, normal)
    return jnp.stack(groups, axis=-1).astype(jnp.float32)


def grouped_attention(query, key, member):
    """What a query of one group gives to each group in all, mean over heads, `[B, G, G]`.

    Rows sum to one; those of a group without tokens are NaN. Head after head, by blocks of
    queries: no attention matrix is kept.

    Args:
      query, key: `[B, N, H, D]`.
      member: `[B, N, G]`, of `membership`.
    """

    heads = lambda states: jnp.moveaxis(states, 2, 0)[..., None, :]  # [H, B, N, 1, D]

    def given_by_head(states):
        query, key = states
        given = lambda rows: _einsum("bhtn,bng->btg", attention_weights(rows, key), member)
        return map_row_blocks(given, query, query.shape[1])

    given = jnp.mean(jax.lax.map(given_by_head, (heads(query), heads(key))), axis=0)  # [B, N, G]
    return _einsum("bng,bnf->bgf", member, given) / jnp.sum(member, axis=1)[..., None]


def grouped_suppression(x, value, out_kernel, member):
    """Means of the suppression matrix, summed over heads, over pairs of tokens, `[B, G, G + 1]`.

    Row: the group of the token that reads; column: that of the token read, another one; the last
    column: itself. NaN where there is no such pair. The mean over pairs of inner products is the
    inner product of means, so that the matrix is never formed.

    Args:
      x: `[B, N, C]`, the block's input before its layer norm.
      value: `[B, N, H, D]`.
      out_kernel: `[H, D, C]`.
      member: `[B, N, G]`, of `membership`.
    """
    pull, value = along_itself(x, out_kernel), value.astype(jnp.float32)
    size = jnp.sum(member, axis=1)  # [B, G]
    itself = _einsum("bnhd,bnhd,bng->bg", pull, value, member)
    total = lambda states: _einsum("bnhd,bng->bghd", states, member)
    eye = jnp.eye(member.shape[-1])
    sums = _einsum("bghd,bfhd->bgf", total(pull), total(value)) - eye * itself[..., None]
    pairs = size[:, :, None] * size[:, None, :] - eye * size[..., None]
    sums = jnp.concatenate([sums, itself[..., None]], axis=-1)
    pairs = jnp.concatenate([pairs, size[..., None]], axis=-1)
    return jnp.where(pairs > 0, sums / pairs, jnp.nan)


def largest_step(norms):
    """The largest factor between norms `[B, P]` next to each other in order, above the median."""
    ordered = jnp.sort(norms, axis=-1)[:, norms.shape[-1] // 2 :]
    return jnp.max(ordered[:, 1:] / ordered[:, :-1], axis=-1, initial=1.0)
