"""Softmax attention between queries and keys of any two lengths, in memory linear in both.

Shape letters: B batch, T queries, M keys, H heads, K key and value heads (a divisor of H), D head
dimension.
"""

import functools
import math

import jax
import jax.numpy as jnp

from fna_jax.carries import full_of
from fna_jax.fused import fused_attention
from fna_jax.kernels import differentiated_as

# The logits of a block of queries are held at a time: this many per head, and at least _MIN_ROWS
# queries, which keeps memory linear in the number of keys.
_BLOCK_LOGITS = 2**20
_MIN_ROWS = 128
# On a CPU heads go one by one from this many logits each, which then stay in its caches, and images
# from more than this many of all: the system maps large temporaries anew at every call.
_HEAD_LOGITS = 2**18
_BATCH_LOGITS = 2**20
# What a TPU holds at a time: 96 of the 128 MiB of its vector memory. Others go to HBM and back.
_VMEM_LOGITS = 3 * 2**23


def softmax_attention(
    query,
    key,
    value,
    *,
    scale,
    key_mask=None,
    log_mass=None,
    removed=None,
    renormalise=True,
    added=None,
    implementation=None,
):
    """`softmax(scale Q Kᵀ + log m) V`; zero for a query that has no keys.

    Args:
      query, key, value, scale, key_mask: as in `attention.exact_attention`.
      log_mass: `[*B, M]`, logarithms of how many keys each stands for; −∞ for none. Default: one.
      removed: which entries of the matrix to leave out: a function of query positions `[1, T']`
        that returns bool `[B, 1, T', M]`, the batch flat.
      renormalise: as in `softmax_weights`.
      added: what each query gets besides: x `[*B, S, H, D]`, and whose of x int `[*B, T]`.
      implementation: "xla", by blocks of queries; "pallas", in one kernel of an NVIDIA GPU or a
        TPU; None, that where it can run and pays.

    Raises:
      ValueError: an implementation that cannot run.
    """
    if key_mask is not None:
        log_mass = jnp.where(key_mask, 0 if log_mass is None else log_mass, -jnp.inf)
    plain = functools.partial(_by_blocks, scale=scale, removed=removed, renormalise=renormalise)
    if implementation != "xla":
        insisted = implementation == "pallas"
        fused, obstacle = fused_attention(query, key, value, scale, removed, insisted=insisted)
        if obstacle is None:
            out = differentiated_as(plain, fused)(query, key, value, log_mass)
            return out if added is None else out + take_tokens(*added).astype(out.dtype)
        if insisted:
            raise ValueError(f"implementation='pallas' cannot run: {obstacle}; use None or 'xla'")
    return plain(query, key, value, log_mass, added)


def _by_blocks(query, key, value, log_mass, added=None, *, scale, removed, renormalise):
    *batch, num_queries, num_heads, _ = query.shape
    num_keys, num_groups = key.shape[-3:-1]
    shared = num_heads // num_groups  # query heads per key head
    flat = lambda x: x.reshape(math.prod(batch), *x.shape[len(batch) :])
    key, value = flat(key), flat(value)
    log_mass = None if log_mass is None else flat(log_mass)[:, None, None, :]
    merge = functools.partial(_merge_shared, num_groups=num_groups)
    query = merge(flat(query))
    positions = None if removed is None else jnp.arange(num_queries * shared)[None] // shared
    others, whose = (), None
    if added is not None:
        others, whose = (merge(flat(added[0])),), flat(added[1])[..., None] * shared
        whose = (whose + jnp.arange(shared)[None, None]).reshape(-1, num_queries * shared)
    accumulate = jnp.promote_types(query.dtype, jnp.float32)
    product = functools.partial(jnp.einsum, preferred_element_type=accumulate)

    def attend(query, key, value, *others_and_of_images, keys_first=False):
        *others, (log_mass, whose) = others_and_of_images
        # Logits are [B, K, T, M], or, for what CPUs run part by part, [B, K, M, T].
        order, axis = ("mt", -2) if keys_first else ("tm", -1)
        in_order = lambda x: jnp.swapaxes(x, -1, -2) if keys_first else x

        def rows(block):
            query, positions, whose = block
            if keys_first:
                logits = scale * product("bmhd,bthd->bhmt", key, query)
            else:
                logits = scale * product("bthd,bmhd->bhtm", query, key)
            if log_mass is not None:
                logits += in_order(log_mass)
            gone = None if removed is None else removed(positions)
            options = dict(removed=gone, renormalise=renormalise, axis=axis)
            weights, total = softmax_weights(logits, **options)
            output = product(f"bh{order},bmhd->bhtd", weights.astype(value.dtype), value)
            output = output / in_order(total)  # once per row, not once per weight
            output = jnp.swapaxes(output, 1, 2)  # [B, T, K, D]
            for x in others:
                output += take_tokens(x, whose)
            return output.astype(value.dtype)

        return map_row_blocks(rows, (query, positions, whose), num_keys)

    states, of_images = (query, key, value, *others), (log_mass, whose)
    if removed is None:
        num_rows = num_queries * shared
        known = isinstance(num_rows, int) and isinstance(num_keys, int)  # not under jax.export
        num_logits = num_rows * num_keys if known else 0
        of_parts = functools.partial(attend, keys_first=known and num_rows < num_keys)
        options = dict(num_logits=num_logits, of_parts=of_parts)
        output = over_heads(attend, states, of_images, **options)
    else:  # which is told of all images at once
        output = attend(*states, of_images)
    parts = num_queries, shared, num_groups, value.shape[-1]
    output = output.reshape(math.prod(batch), *parts)  # also of no queries
    return jnp.swapaxes(output, 2, 3).reshape(*batch, num_queries, num_heads, value.shape[-1])


def _merge_shared(x, num_groups):
    """`[B, T, H, D]` to `[B, T · H/K, K, D]`: heads that share a key head as tokens of one."""
    batch, num_tokens, num_heads, dim = x.shape
    shared = num_heads // num_groups
    x = jnp.swapaxes(x.reshape(batch, num_tokens, num_groups, shared, dim), 2, 3)
    return x.reshape(batch, num_tokens * shared, num_groups, dim)


def take_tokens(x, indices):
    """`x[s]` on the token axis: `[*B, N, H, D]` and `[*B, S]` to `[*B, S, H, D]`.

    On a TPU by a product with ones and zeros, as exact: a gather copies x into another layout.
    """
    gather = lambda x, indices: jnp.take_along_axis(x, indices[..., None, None], axis=-3)

    def product(x, indices):
        one_hot = jax.nn.one_hot(indices, x.shape[-3], dtype=x.dtype)
        highest = jax.lax.Precision.HIGHEST
        return jnp.einsum("...sn,...nhd->...shd", one_hot, x, precision=highest)

    return jax.lax.platform_dependent(x, indices, tpu=product, default=gather)


def over_heads(attend, states, of_images, *, num_logits, in_blocks=False, of_parts=None):
    """`attend(*states, of_images)`, part by part where its logits are many, `[B, …, K, D]`.

    A CPU goes head by head if each has many logits, and image by image if all together are many. A
    TPU goes image by image if all logits do not fit into its vector memory, and head by head if
    those of one image do not either.

    Each part is read and written where it lies: to bring all heads of a long sequence in front
    first would cost as much as a product. On one device the images too go one by one; on several
    the batch may be split over them, and stays whole, for to take one image out would move all.

    Args:
      attend: of one head what it is of all.
      states: arrays `[B, …, K, D]`.
      of_images: a tree of arrays `[B, …]`, the same for all heads.
      num_logits: those of a head.
      in_blocks: whether images one by one, with blocks of rows as in `map_row_blocks`, are better
        on a TPU than heads one by one, even where the logits of a whole image do not fit.
      of_parts: `attend` in the form that a CPU is to run part by part, if another: to cut a head's
        keys out and transpose them at once takes it a third of FNA's time at 4,097 tokens.
    """
    first = states[0]
    batch, num_groups = first.shape[0], first.shape[-2]
    if _is_split(first, axis=-2):
        return attend(*states, of_images)
    images = jax.device_count() == 1 and not _is_split(first, axis=0)
    by_heads = functools.partial(head_by_head, images=images)
    # An unknown number of images, under jax.export, is many.
    fits = lambda parts, most=_VMEM_LOGITS: isinstance(parts, int) and parts * num_logits <= most
    many = batch != 1 and not fits(batch * num_groups, _BATCH_LOGITS)
    of_parts = of_parts or attend
    cpu = functools.partial(image_by_image, of_parts) if images and many else attend
    cpu = functools.partial(by_heads, of_parts) if num_logits >= _HEAD_LOGITS else cpu
    tpu = image_by_image if images and (in_blocks or fits(num_groups)) else by_heads
    tpu = attend if fits(batch * num_groups) else functools.partial(tpu, attend)
    if cpu is tpu is attend:
        return attend(*states, of_images)
    return jax.lax.platform_dependent(*states, of_images, cpu=cpu, tpu=tpu, default=attend)


def image_by_image(attend, *arguments):
    """`attend` of each image alone; the arguments are trees of arrays `[B, …]`."""
    alone = lambda image: attend(*jax.tree.map(lambda x: x[None], image))[0]
    return jax.lax.map(alone, arguments)


def head_by_head(attend, *arguments, images):
    """`over_heads` with heads one by one, or those of each image."""
    *states, of_images = arguments
    batch, num_groups = states[0].shape[0], states[0].shape[-2]

    def one(index, output):
        image, head = (index // num_groups, index % num_groups) if images else (0, index)
        of_image = lambda x: jax.lax.dynamic_slice_in_dim(x, image, 1) if images else x
        of_head = lambda x: jax.lax.dynamic_slice_in_dim(x, head, 1, x.ndim - 2)
        mine = attend(*(of_head(of_image(x)) for x in states), jax.tree.map(of_image, of_images))
        place = (image, *[0] * (mine.ndim - 3), head, 0)
        return jax.lax.dynamic_update_slice(output, mine, place)

    output = full_of(attend, *arguments, fill=0)
    return jax.lax.fori_loop(0, (batch if images else 1) * num_groups, one, output)


def _is_split(x, axis):
    """Whether an axis of x is split over an explicit mesh."""
    return jax.typeof(x).sharding.spec[axis] is not None


def softmax_weights(logits, *, removed=None, renormalise=True, axis=-1):
    """`exp(logits − max)` along the axis of keys and, to divide by, its sum; 1 where that is zero.

    Args:
      logits: −∞ at keys that do not take part.
      removed: bool, entries to leave out; None for none of them.
      renormalise: leave them out before the softmax, so that the other entries share their mass;
        otherwise after it, so that the mass is lost.
    """
    if removed is not None and renormalise:
        logits = jnp.where(removed, -jnp.inf, logits)
    (weights,), total = joint_softmax_weights(logits, axis=axis)
    if removed is not None and not renormalise:
        weights = jnp.where(removed, 0, weights)
    return weights, total


def joint_softmax_weights(*logits, axis=-1):
    """`exp(logits − max)` of arrays that go on along the axis of keys, and their sum; 1 if zero."""
    peaks = [jnp.max(some, axis=axis, keepdims=True) for some in logits]
    peak = jax.lax.stop_gradient(functools.reduce(jnp.maximum, peaks))
    weights = [jnp.exp(some - jnp.where(jnp.isfinite(peak), peak, 0)) for some in logits]
    total = sum(jnp.sum(some, axis=axis, keepdims=True) for some in weights)
    return weights, jnp.where(total == 0, 1, total)


def map_row_blocks(function, rows, num_keys, *, least=None):
    """`function(rows)` for a tree of `[B, N, ...]`, in blocks of N if N × M logits are too many.

    The last block is filled up with zeros. Results are joined along their second axis, and cut to N
    where there are more. A block has at least so many rows.
    """
    num_rows = jax.tree.leaves(rows)[0].shape[1]
    if not (isinstance(num_rows, int) and isinstance(num_keys, int)):  # symbolic, under jax.export
        return function(rows)
    block = max(_BLOCK_LOGITS // max(num_keys, 1), least or _MIN_ROWS)
    if num_rows < 2 * block:  # one block of up to twice the size costs less than to cut and join
        return function(rows)
    num_blocks = -(-num_rows // block)
    block = -(-num_rows // num_blocks)  # even blocks: little padding

    def cut(x):
        x = jnp.pad(x, [(0, 0), (0, num_blocks * block - num_rows)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], num_blocks, block, *x.shape[2:]), 1, 0)

    def join(x):
        x = jnp.moveaxis(x, 0, 1)  # [B, blocks, T, ...]
        return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :num_rows]

    return jax.tree.map(join, jax.lax.map(jax.checkpoint(function), jax.tree.map(cut, rows)))
