"""Causal centroid attention: means of runs of tokens stand for what lies far behind, as in text.

Shape letters: B batch, N tokens, L tokens of a run, W runs, H heads, K key and value heads (a
divisor of H), D head dimension. Layout is Flax's, `[*B, N, H, D]`.
"""

import math

import jax.numpy as jnp
import numpy as np

from fna_jax.carries import per_token
from fna_jax.checks import check_qkv, checked_key_mask, zero_padding
from fna_jax.near_field import attend_by_blocks
from fna_jax.windows import take_windows

__all__ = ["causal_centroid_attention", "check_run_length"]


def causal_centroid_attention(query, key, value, *, run_length, scale=None, key_mask=None):
    """Causal self-attention: exact nearby, through means of runs further back, `[*B, N, H, D]`.

    The real tokens are cut into runs of L. Token i of run w attends to the tokens up to itself in
    run w and the one before, and to the means of all earlier runs, each with the mass of its L
    tokens: `softmax over {c qᵢ Kⱼᵀ : j ≤ i, j in run w − 1 or w} ∪ {c qᵢ K̄ₛᵀ + log L : s < w − 1}`.

    Nothing comes from later tokens, bit for bit. Exact where runs have one token, and for the first
    2 L tokens. Rows of the implied matrix sum to one. Of N (2 L + N / L) logits a part is held at a
    time, so that memory is linear in N. There is no residual as in `centroid_attention`: at a run's
    own mean query it would know later tokens, and at that of the run before it gained nothing.

    Args:
      query: `[*B, N, H, D]`.
      key, value: `[*B, N, K, D]`; fewer heads than `query` is grouped-query attention.
      run_length: L, static. The number of logits is least near `sqrt(N / 2)`.
      scale: c, multiplies every logit; `1/sqrt(D)` by default.
      key_mask: bool `[*B, N]`, True on real tokens. Padding, wherever it is, is in no run and never
        attended to; the outputs there are finite and mean nothing.

    Raises:
      ValueError: shapes or dtypes that do not fit, or a run length below 1.
    """
    check_qkv(query, key, value)
    num_tokens, batch = query.shape[-3], query.shape[:-3]
    if num_tokens != key.shape[-3]:
        raise ValueError(
            f"causal centroid attention is self-attention, got {num_tokens} queries and "
            f"{key.shape[-3]} keys"
        )
    length = min(check_run_length(run_length), num_tokens)
    key_mask = checked_key_mask(key_mask, key)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    flat = lambda x: x.reshape(math.prod(batch), *x.shape[len(batch) :])
    states = [flat(zero_padding(x, key_mask)) for x in (query, key, value)]
    if key_mask is None:
        out = _attend(*states, length, scale)
    else:  # padding goes behind all real tokens, which do not see what is later
        order = jnp.argsort(~flat(key_mask), axis=1, stable=True)
        out = _attend(*(_take(x, order) for x in states), length, scale)
        out = _take(out, jnp.argsort(order, axis=1))
    return out.reshape(*batch, *out.shape[1:])


def check_run_length(run_length) -> int:
    """The number of tokens of a run; raises ValueError for what is none."""
    if isinstance(run_length, bool) or not isinstance(run_length, int) or run_length < 1:
        raise ValueError(f"run_length must be an integer of at least 1, got {run_length!r}")
    return run_length


def _attend(query, key, value, length, scale):
    """`causal_centroid_attention` without padding, `[B, N, H, D]`; L is at most N."""
    num_tokens = query.shape[1]
    num_runs = -(-num_tokens // length)

    def cut(x):
        """x `[B, N, …]` by runs, `[B, W, L, …]`; zeros at the end of the last."""
        spare = num_runs * length - num_tokens
        x = jnp.pad(x, [(0, 0), (0, spare)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(x.shape[0], num_runs, length, *x.shape[2:])

    numbers = np.arange(num_runs)
    neighbours = np.stack([numbers - 1, numbers], axis=-1)  # [W, 2], -1 in front of the first
    present = cut(per_token(query[..., 0], True, bool))
    near_mass = jnp.where(take_windows(present, neighbours), 0, -jnp.inf)
    # Runs that are far from another one are full.
    is_far = (numbers < neighbours[:, :1])[None]  # [1, W, W]
    far_mass = jnp.where(is_far & present[:, None, :, 0], math.log(length), -jnp.inf)
    ahead = np.arange(length) > np.arange(length)[:, None]
    unseen = np.concatenate([np.zeros_like(ahead), ahead], axis=1)  # [L, 2 L]
    query, key, value = map(cut, (query, key, value))
    mean = lambda x: jnp.mean(x, axis=2, dtype=jnp.promote_types(x.dtype, jnp.float32))
    far = [mean(x).astype(x.dtype) for x in (key, value)]  # [B, W, K, D]
    masks = dict(neighbours=neighbours, unseen=unseen)
    out = attend_by_blocks(query, key, value, near_mass, *far, far_mass, scale=scale, **masks)
    return out.reshape(out.shape[0], -1, *out.shape[3:])[:, :num_tokens]


def _take(x, order):
    """Tokens of x `[B, N, …]` in this order, int `[B, N]`."""
    return jnp.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=1)
