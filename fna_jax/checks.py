"""Checks of attention inputs, with errors that name what was given; padding and shared heads."""

import jax.numpy as jnp


def check_qkv(query, key, value):
    """Raises ValueError unless the three are `[*B, N, H, D]` and fit together."""
    if min(query.ndim, key.ndim, value.ndim) < 3:
        raise ValueError(
            "query, key and value must be [*B, N, H, D], got shapes "
            f"{query.shape}, {key.shape}, {value.shape}"
        )
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(
            "query, key and value must share a dtype, "
            f"got {query.dtype}, {key.dtype}, {value.dtype}"
        )
    if not jnp.issubdtype(query.dtype, jnp.floating):
        raise ValueError(f"query, key and value must be floats, got {query.dtype}")
    same_batch = query.shape[:-3] == key.shape[:-3]
    same_keys = key.shape[:-1] == value.shape[:-1]
    if not (same_batch and same_keys and query.shape[-1] == key.shape[-1]):
        raise ValueError(
            "key and value must share a shape but for the values' head dimension, and the key its "
            "batch and head dimension with the query, "
            f"got {query.shape}, {key.shape}, {value.shape}"
        )
    if query.shape[-2] % key.shape[-2]:
        raise ValueError(
            f"the heads of key and value ({key.shape[-2]}) must divide those of the query "
            f"({query.shape[-2]})"
        )


def check_qk(query, key):
    """Raises ValueError unless the two are `[*B, N, H, D]` and fit together, values aside."""
    check_qkv(query, key, key)


def check_suppression(x, value, out_kernel):
    """Raises ValueError unless they are `[*B, N, C]`, `[*B, N, K, D]` and `[H, D, C]`."""
    if (
        (value.ndim < 3 or out_kernel.ndim != 3)
        or x.shape != (*value.shape[:-2], out_kernel.shape[-1])
        or value.shape[-1] != out_kernel.shape[1]
        or out_kernel.shape[0] % value.shape[-2]
    ):
        raise ValueError(
            "x, value and out_kernel must be [*B, N, C], [*B, N, K, D] and [H, D, C], "
            f"got shapes {x.shape}, {value.shape}, {out_kernel.shape}"
        )


def checked_key_mask(key_mask, key):
    """The mask as a boolean array `[*B, N]`, or None; raises ValueError for any other."""
    if key_mask is None:
        return None
    key_mask = jnp.asarray(key_mask)
    if key_mask.shape != key.shape[:-2] or key_mask.dtype != jnp.bool_:
        raise ValueError(
            f"key_mask must be bool{list(key.shape[:-2])}, True on real tokens, "
            f"got {key_mask.dtype}{list(key_mask.shape)}"
        )
    return key_mask


def spread_heads(x, num_heads):
    """x `[..., K, D]` with each head repeated for the query heads that share it, `[..., H, D]`."""
    times = num_heads // x.shape[-2]
    if times == 1:
        return x
    x = jnp.broadcast_to(x[..., None, :], (*x.shape[:-1], times, x.shape[-1]))
    return x.reshape(*x.shape[:-3], num_heads, x.shape[-1])


def zero_padding(x, key_mask):
    """x `[*B, N, H, D]` without what padding holds: a NaN there must not reach a product."""
    return x if key_mask is None else jnp.where(key_mask[..., None, None], x, 0)
