"""Interventions on attention: entries removed by pattern, suppression cancelled (arXiv 2507.16018).

A token set T is a boolean array `[*B, N]`. A pattern names, for query i and key j, the entries
`[i, j]` that are removed; a mode says how.

Shape letters: B batch, N tokens, S landmarks, H heads, K key and value heads (a divisor of H),
D head dimension, C width.
"""

import dataclasses
import math

import jax.numpy as jnp

from fna_jax.carries import full_of
from fna_jax.checks import (
    check_qkv,
    check_suppression,
    checked_key_mask,
    spread_heads,
    zero_padding,
)
from fna_jax.nystrom import (
    checked_landmarks,
    exact_attention,
    fast_nystrom_attention,
    landmark_key_value,
)
from fna_jax.softmax import map_row_blocks, softmax_attention, softmax_weights
from fna_jax.tokens import along_itself, attention_logits, attention_weights, direction

_REMOVED = {  # from i ∈ T, j ∈ T and i = j
    "X->T": lambda i, j, same: j,
    "~T->T": lambda i, j, same: j & ~same,
    "~{T}->T": lambda i, j, same: j & ~i,
    "T->T": lambda i, j, same: i & j,
    "T=T": lambda i, j, same: i & same,
    "T->X": lambda i, j, same: i,
    "T->~T": lambda i, j, same: i & ~same,
    "X->X": lambda i, j, same: True,
    "X=X": lambda i, j, same: same,
}
PATTERNS = tuple(_REMOVED)
MODES = ("mask", "sink")
NYSTROM_PATTERNS = ("X->T", "T->X", "X->X")  # whole rows or whole columns


@dataclasses.dataclass(frozen=True)
class Masking:
    """Which entries of an attention matrix are removed, and how.

    Attributes:
      pattern: "X->T", all queries → T (the paper's Type I); "~T->T", all but oneself → T (Type II);
        "~{T}->T", others → T; "T->T", within T; "T=T", T to itself; "T->X", T → all; "T->~T", T →
        all but oneself; "X->X", everything; "X=X", everyone to itself.
      mode: "mask", before the softmax, so that the other entries share the mass; "sink", after the
        softmax, so that the mass is lost.

    Raises:
      ValueError: an unknown pattern or mode.
    """

    pattern: str = "X->T"
    mode: str = "sink"

    def __post_init__(self):
        for name, choices in (("pattern", PATTERNS), ("mode", MODES)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )

    @property
    def needs_tokens(self) -> bool:
        """Whether the pattern speaks of a token set."""
        return "T" in self.pattern


def removed_entries(tokens, pattern):
    """The entries that a pattern removes, bool `[*B, N, N]`, query × key, for T bool `[*B, N]`.

    Raises:
      ValueError: an unknown pattern, or tokens that are not boolean.
    """
    tokens = jnp.asarray(tokens)
    tokens = _checked_tokens(tokens, tokens.shape)
    same = jnp.expand_dims(jnp.eye(tokens.shape[-1], dtype=bool), range(tokens.ndim - 1))
    removed = _REMOVED[Masking(pattern).pattern](tokens[..., :, None], tokens[..., None, :], same)
    return jnp.broadcast_to(removed, (*tokens.shape, tokens.shape[-1]))


def masked_attention(query, key, value, masking, *, tokens=None, scale=None, key_mask=None):
    """Exact self-attention with entries removed, `[*B, N, H, D]`, in memory linear in N.

    A query that is left without keys gives zeros.

    Args:
      query, key, value, scale, key_mask: as in `exact_attention`.
      masking: a `Masking`.
      tokens: T, bool `[*B, N]`; None for a pattern without T.

    Raises:
      ValueError: shapes that do not fit, or `tokens` missing or not wanted.
    """
    tokens = _checked_inputs(query, key, value, masking, tokens)
    options = dict(scale=scale, key_mask=key_mask)
    if masking == Masking("X->T", "sink"):  # nothing but the values is gone: any kernel does it
        return exact_attention(query, key, jnp.where(tokens[..., None, None], 0, value), **options)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    key_mask = checked_key_mask(key_mask, key)
    return softmax_attention(
        query,
        zero_padding(key, key_mask),
        zero_padding(value, key_mask),
        scale=scale,
        key_mask=key_mask,
        removed=_removed_rows(masking, tokens, query.shape[-3]),
        renormalise=masking.mode == "mask",
    )


def masked_weights(query, key, masking, *, tokens=None, scale=None, key_mask=None):
    """The attention matrix of `masked_attention`, float32 `[*B, H, N, N]`; for a look.

    Arguments and errors are those of `masked_attention`.
    """
    tokens = _checked_inputs(query, key, key, masking, tokens)
    tokens = jnp.zeros(query.shape[:-2], bool) if tokens is None else tokens
    weights, total = softmax_weights(
        attention_logits(query, key, scale=scale, key_mask=key_mask),
        removed=removed_entries(tokens, masking.pattern)[..., None, :, :],
        renormalise=masking.mode == "mask",
    )
    return weights / total


def masked_nystrom_attention(
    query,
    key,
    value,
    landmarks,
    masking,
    *,
    tokens=None,
    scale=None,
    key_mask=None,
    inverse_steps=6,
    implementation=None,
):
    """FNA with entries removed, where landmarks can honour that, `[*B, N, H, D]`.

    Whole columns and whole rows can go. "X->T": T is dropped from the landmarks and from `BV`, in
    mode "mask" as keys, in mode "sink" as values. "T->X": the rows of T are zero. "X->X": all are.
    Landmarks that were chosen without T (`exclude`) leave no slot empty.

    Args:
      query, key, value, landmarks, scale, key_mask, inverse_steps, implementation: as in
        `fast_nystrom_attention`.
      masking, tokens: as in `masked_attention`.

    Raises:
      ValueError: as in both, or a pattern that FNA cannot honour.
    """
    tokens = _checked_inputs(query, key, value, masking, tokens)
    check_nystrom_pattern(masking)
    landmarks, key_mask = checked_landmarks(query, key, value, landmarks, key_mask)
    if masking.pattern == "X->X":
        return full_of(exact_attention, query, key, value, fill=0)
    options = dict(scale=scale, inverse_steps=inverse_steps, implementation=implementation)
    if masking.pattern == "T->X":
        output = fast_nystrom_attention(query, key, value, landmarks, key_mask=key_mask, **options)
        return jnp.where(tokens[..., None, None], 0, output)

    dropped = jnp.take_along_axis(tokens, landmarks.indices, axis=-1)
    landmarks = dataclasses.replace(landmarks, valid=landmarks.valid & ~dropped)
    if masking.mode == "sink":
        value = jnp.where(tokens[..., None, None], 0, value)
        return fast_nystrom_attention(query, key, value, landmarks, key_mask=key_mask, **options)
    kept = ~tokens if key_mask is None else key_mask & ~tokens
    landmark_key, landmark_value = landmark_key_value(
        query, key, value, landmarks, key_mask=kept, **options
    )
    query = zero_padding(query, key_mask)  # but not those of T, which read the others
    return exact_attention(
        query, landmark_key, landmark_value, scale=scale, key_mask=landmarks.valid
    )


def check_nystrom_pattern(masking):
    """Raises ValueError for a `Masking` that FNA cannot honour."""
    if masking.pattern not in NYSTROM_PATTERNS:
        raise ValueError(
            f"FNA cannot remove the entries {masking.pattern!r}: through landmarks only whole rows "
            f"and columns go ({', '.join(NYSTROM_PATTERNS)}); keep exact attention in this block"
        )


def suppression_correction(query, key, value, x, out_kernel, *, scale=None, key_mask=None):
    """What cancels suppression when added to the attention's output, `[*B, N, C]`.

    `x̂_i Σ_j Σ_h P[h, i, j] · relu(−⟨x̂_i, W_Oʰ v_jʰ⟩)` with `x̂ = x / ‖x‖`: each token is given back
    what the others take from its own direction. In memory linear in N.

    Args:
      query, key, value, scale, key_mask: as in `exact_attention`.
      x: `[*B, N, C]`, the block's input before its layer norm.
      out_kernel: `[H, D, C]`, as in `tokens.suppression_matrix`.

    Raises:
      ValueError: shapes or dtypes that do not fit.
    """
    check_qkv(query, key, value)
    check_suppression(x, value, out_kernel)
    *batch, num_tokens, num_heads, _ = query.shape
    flat = lambda a: a.reshape(math.prod(batch), *a.shape[len(batch) :])
    key_mask = checked_key_mask(key_mask, key)
    key, value = flat(key), flat(zero_padding(value, key_mask))
    key_mask = None if key_mask is None else flat(key_mask)
    pull = along_itself(x, out_kernel)  # [*B, N, H, D]
    value = spread_heads(value.astype(pull.dtype), num_heads)

    def rows(block):
        query, pull = block
        weights = attention_weights(query, key, scale=scale, key_mask=key_mask)
        along = jnp.einsum("bthd,bmhd->bhtm", pull, value)
        return jnp.einsum("bhtm,bhtm->bt", weights, jnp.maximum(-along, 0))

    lost = map_row_blocks(rows, (flat(query), flat(pull)), num_tokens)
    return (direction(x) * lost.reshape(*batch, num_tokens, 1)).astype(x.dtype)


def _removed_rows(masking, tokens, num_tokens):
    """For `softmax_attention`: the removed entries of some queries, the batch flat."""
    tokens = jnp.zeros((1, num_tokens), bool) if tokens is None else tokens
    tokens = tokens.reshape(-1, num_tokens)

    def removed(positions):
        of_query = jnp.take(tokens, positions[0], axis=1)[:, None, :, None]
        same = (positions[0][:, None] == jnp.arange(num_tokens)[None])[None, None]
        return _REMOVED[masking.pattern](of_query, tokens[:, None, None, :], same)

    return removed


def _checked_inputs(query, key, value, masking, tokens):
    """T as a boolean array, or None for a pattern without, of self-attention inputs."""
    check_qkv(query, key, value)
    if query.shape[-3] != key.shape[-3]:
        raise ValueError(
            f"masking is of self-attention, got {query.shape[-3]} queries and {key.shape[-3]} keys"
        )
    if masking.needs_tokens != (tokens is not None):
        raise ValueError(
            f"pattern {masking.pattern!r} needs the token set T: pass tokens=bool[*B, N]"
            if tokens is None
            else f"tokens were given, but pattern {masking.pattern!r} speaks of none: drop them"
        )
    return None if tokens is None else _checked_tokens(tokens, query.shape[:-2])


def _checked_tokens(tokens, shape):
    tokens = jnp.asarray(tokens)
    if tokens.shape != tuple(shape) or tokens.dtype != jnp.bool_:
        raise ValueError(
            f"tokens must be bool{list(shape)}, got {tokens.dtype}{list(tokens.shape)}"
        )
    return tokens
