"""Kernels that softmax attention runs in, and why one cannot.

Shape letters: B batch, T queries, M keys, H heads, K key and value heads (a divisor of H), D head
dimension.
"""

import functools

import jax
import jax.numpy as jnp

from fna_jax.kernels import chosen_device, gpu_obstacle, nvidia_obstacle, tpu_obstacle

_DTYPES = ("float32", "bfloat16", "float16")
# Of fewer keys, or logits of a head, a TPU takes XLA's form as fast (estimated on v5e).
_LEAST_KEYS = 128
_LEAST_LOGITS = 2**18


def fused_attention(query, key, value, scale, removed, *, insisted=False):
    """Softmax attention in a kernel of this device, and why it cannot run or does not pay, or None.

    Args:
      query: `[*B, T, H, D]`.
      key, value: `[*B, M, K, D]`.
      scale, removed: as in `softmax.softmax_attention`.
      insisted: that it need not pay.
    """
    if chosen_device().platform == "tpu":
        form, obstacle = _rows, _rows_obstacle(query, key, value, scale, removed)
        if obstacle is None and not insisted and _is_small(query, key):
            obstacle = "it does not pay for so few logits"
    else:
        form, obstacle = _flash, flash_obstacle(query, key, value, scale, removed)
    return functools.partial(_flat, form, scale=scale), obstacle


def _flat(form, query, key, value, log_mass, *, scale):
    """A kernel's result for any batch shape."""
    flat = lambda x, rank: x.reshape(-1, *x.shape[x.ndim - rank :])
    log_mass = None if log_mass is None else flat(log_mass, 1).astype(jnp.float32)
    out = form(*(flat(x, 3) for x in (query, key, value)), log_mass, scale=scale)
    return out.reshape(*query.shape[:-1], value.shape[-1])


def _rows(*states, scale):
    from fna_jax.kernels.rows import row_attention  # Pallas takes long to import

    return row_attention(*states, scale=scale)


def _flash(query, key, value, log_mass, *, scale):
    from fna_jax.kernels.flash import flash_attention  # Pallas takes long to import

    log_mass = jnp.zeros(key.shape[:-2]) if log_mass is None else log_mass
    return flash_attention(query, key, value, log_mass, scale=scale)


def _is_small(query, key):
    num_queries, num_keys = query.shape[-3], key.shape[-3]
    return num_keys < _LEAST_KEYS or num_queries * num_keys < _LEAST_LOGITS


def _rows_obstacle(query, key, value, scale, removed):
    """Why the kernel for TPUs cannot run here, or None."""
    if obstacle := tpu_obstacle(query, key, value) or special_obstacle(scale, removed):
        return obstacle
    from fna_jax.kernels.rows import program_rows  # Pallas takes long to import

    num_dims = key.shape[-1] + value.shape[-1]
    if program_rows(key.shape[-3], num_dims, key.dtype) is None:
        return f"the {key.shape[-3]} keys of a head do not fit the vector memory"
    return None


def flash_obstacle(query, key, value, scale, removed):
    """Why the kernel for NVIDIA GPUs cannot run here, or None."""
    if obstacle := gpu_obstacle(query, key, value) or special_obstacle(scale, removed):
        return obstacle
    if not {x.dtype for x in (query, key, value)} <= {*map(jnp.dtype, _DTYPES)}:
        return f"it needs {', '.join(_DTYPES)}, got {query.dtype}"
    if (width := max(query.shape[-1], value.shape[-1])) > 128:
        return f"the head dimension must be at most 128, got {width}"
    return None


def special_obstacle(scale, removed=None):
    """Why no kernel has this scale or leaves entries out, or None."""
    if removed is not None:
        return "no entries of the matrix can be left out"
    if isinstance(scale, jax.Array):
        return "the scale must be a number, and is an array"
    return None


def cudnn_obstacle(query, value, key_mask):
    """Why cuDNN's flash attention cannot run here, or None."""
    if obstacle := nvidia_obstacle():
        return obstacle
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it needs bfloat16 or float16, got {query.dtype}"
    if query.shape[-1] % 8 or query.shape[-1] > 128:
        return f"the head dimension must be a multiple of 8 up to 128, got {query.shape[-1]}"
    if value.shape[-1] != query.shape[-1]:
        return f"values must have the head dimension {query.shape[-1]}, got {value.shape[-1]}"
    if key_mask is not None:
        return "a key mask would have to be spread over all queries"
    return None
