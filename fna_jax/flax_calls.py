"""What Flax's attention modules hand to an `attention_fn`, read for FNA or refused.

Shape letters: B batch, T queries, N tokens, H heads.
"""

import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np


def dropout_is_active(rate, deterministic):
    """Whether attention weights are dropped.

    Raises:
      ValueError: it depends on a traced value.
    """
    is_zero = lambda x: not isinstance(x, jax.core.Tracer) and x == 0
    if is_zero(rate) or deterministic is True:
        return False
    if isinstance(rate, jax.core.Tracer) or isinstance(deterministic, jax.core.Tracer):
        raise ValueError(
            "whether dropout is active depends on a traced dropout_rate or deterministic: make "
            "deterministic=True a Python bool (static_argnames of jax.jit)"
        )
    return not deterministic


def read_mask(mask, query, *, is_padding):
    """Flax's mask `[*B, 1 or H, 1 or N, N]` or `[N, N]` as a key mask, or why FNA cannot.

    True, or anything but zero, marks what a query may read. In a mask of padding all queries of
    real tokens read the real tokens, whatever the queries of padding read.

    Args:
      mask: of self-attention, or None.
      query: `[*B, N, H, D]`.
      is_padding: believe that a mask that is known only at run time is one of padding.

    Returns:
      The mask bool `[*B, N]` or None, and a reason or None.

    Raises:
      ValueError: another shape, values other than 0 and 1, or a mask `[*B, …, N, N]` that is known
        only at run time, unless `is_padding`.
    """
    if mask is None:
        return None, None
    *batch, num_tokens, num_heads, _ = query.shape
    traced = isinstance(mask, jax.core.Tracer)
    mask = mask if traced else np.asarray(mask)
    shape = mask.shape
    if mask.ndim == 2:  # the same in all images and heads
        mask = mask[None]
    fits = mask.ndim >= 3 and mask.shape[-1] == num_tokens
    if not fits or mask.shape[-3] not in (1, num_heads) or mask.shape[-2] not in (1, num_tokens):
        raise ValueError(
            f"mask must be [*B, 1, 1, {num_tokens}] or [*B, 1, {num_tokens}, {num_tokens}], "
            f"got shape {shape}"
        )
    if not traced and not np.isin(mask, (0, 1)).all():
        raise ValueError(
            "a mask holds True or 1 where a query may read and False or 0 elsewhere, "
            f"got {mask.min()} to {mask.max()} (what is added to the logits is a bias)"
        )
    mask = mask != 0
    if traced and mask.shape[-3:-1] != (1, 1) and not is_padding:
        raise ValueError(
            f"a mask {list(shape)} that is known only at run time may be of padding or causal:"
            " FNA honours padding alone. If it is, say FastNystromAttention(mask_is_padding=True) "
            f"or pass [*B, 1, 1, {num_tokens}]; if it is causal (a text tower?), keep exact "
            "attention in this layer, with only="
        )
    keys = mask.any(axis=(-3, -2))  # [*B, N]
    if not traced and (why := _other_than_padding(mask, keys)):
        return None, why
    return jnp.broadcast_to(keys, (*batch, num_tokens)), None


def _other_than_padding(mask, keys):
    """Why a known mask `[*B, 1 or H, 1 or N, N]` is none of padding, or None."""
    unread = ~mask & ~keys[..., None, :, None] if mask.shape[-2] > 1 else False
    if ((mask == keys[..., None, None, :]) | unread).all():
        return None
    if mask.shape[-2] > 1 and not np.triu(mask, 1).any():
        return "the mask is causal, and through landmarks every token sees all"
    return "FNA honours key-padding masks, the same for all heads and queries, and this mask is not"


def exact_call(query, key, value, *, bias, mask, is_causal, scale):
    """Exact attention of a call to an `attention_fn`, `[*B, T, H, D]`."""
    batch = query.shape[:-3]
    flat = lambda x: x.reshape(math.prod(batch), *x.shape[-3:])

    def spread(x):
        """To `[B, 1 or H, T, N]`."""
        x = jnp.expand_dims(x, range(max(0, 3 - x.ndim)))
        return flat(jnp.broadcast_to(x, (*batch, *x.shape[-3:])))

    output = jax.nn.dot_product_attention(
        *map(flat, (query, key, value)),
        bias=None if bias is None else spread(bias),
        mask=None if mask is None else spread(jnp.asarray(mask) != 0),
        scale=scale,
        is_causal=is_causal,
        implementation="xla",
    )
    return output.reshape(*batch, *output.shape[1:])


def matmul_precision(precision):
    """A context in which products run at Flax's `precision`; None keeps the caller's default."""
    if precision is None:
        return contextlib.nullcontext()
    if isinstance(precision, jax.lax.Precision):
        precision = precision.name.lower()
    if not isinstance(precision, str):
        raise ValueError(f"precision must be a name or a jax.lax.Precision, got {precision!r}")
    return jax.default_matmul_precision(precision)
