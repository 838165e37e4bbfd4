"""The near field of centroid attention: tokens near to a query's window are attended exactly.

Shape letters: B batch, N tokens, S clusters, P prefix tokens, h · w patches (of a video t · h · w),
W windows of the grid, L patches of a window, n windows near to one, T queries of a window, F far
keys, H heads, K key and value heads (a divisor of H), D head dimension.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from fna_jax.clusters import Clusters, token_means
from fna_jax.fused import flash_obstacle, special_obstacle
from fna_jax.kernels import differentiated_as, tpu_obstacle
from fna_jax.softmax import (
    image_by_image,
    joint_softmax_weights,
    map_row_blocks,
    over_heads,
    softmax_attention,
)
from fna_jax.windows import take_near, take_windows

_HIGHEST = jax.lax.Precision.HIGHEST
# More bytes of queries and keys than these go image by image on a TPU: what is copied on the way to
# windows and back then stays in its vector memory.
_VMEM_STATES = 2**27


def near_and_far(query, key, value, clusters, scale, real, *, windows, residual):
    """Centroid attention of `centroids.checked_inputs` with a near field, `[*B, N, H, D]`."""
    batch = query.shape[:-3]
    flat = lambda x: x.reshape(math.prod(batch), *x.shape[len(batch) :])
    states, of_images = map(flat, (query, key, value)), (flat(clusters.assignment), flat(real))
    beside = 0 if _among_clusters(windows, clusters) else windows.num_prefix
    num_far = clusters.num_clusters + beside
    form = _form(query, key, value, num_far, scale, windows)

    def attend(query, key, value, of_images):
        assignment, real = of_images
        mine = Clusters(assignment, clusters.num_clusters, clusters.num_prefix)
        options = dict(windows=windows, residual=residual, form=form)
        return _attend(query, key, value, mine, scale, real, **options)

    copied = form is _windows_in_kernel and query.nbytes + key.nbytes > _VMEM_STATES
    if copied and math.prod(batch) > 1:
        out = image_by_image(attend, *states, of_images)
    else:
        out = attend(*states, of_images)
    return out.reshape(*batch, *out.shape[1:])


def _form(query, key, value, num_far, scale, windows):
    """What attends to near and far keys here: a kernel for TPUs, or XLA."""
    if _kernel_obstacle(query, key, value, num_far, scale, windows):
        return whole_grid
    from fna_jax.kernels.grid import fits  # Pallas takes long to import

    return _grid_in_kernel if fits(query, key, num_far, windows) else _windows_in_kernel


def _attend(query, key, value, clusters, scale, real, *, windows, residual, form):
    """Centroid attention with a near field, `[B, N, H, D]`."""
    prefix = windows.num_prefix
    far = _far_keys(key, value, clusters, real, windows)
    queries, at_means = query[:, :prefix], None
    if residual:
        means = _window_means(query, real, windows, by_product=form is _grid_in_kernel)
        queries = jnp.concatenate([queries, means], axis=1)
    exact = softmax_attention(queries, key, value, scale=scale, key_mask=real)
    if residual:
        at_means = means, exact[:, prefix:]
    states = query, key, value, real[:, prefix:], *far, exact[:, :prefix], at_means
    return form(*states, scale=scale, windows=windows)


def whole_grid(
    query, key, value, present, far_key, far_value, far_mass, exact, at_means, *, attend=None, **how
):
    """One softmax over near and far keys for the patches, and what the prefix gets, `[B, N, H, D]`.

    Args:
      query, key, value: of all tokens, `[B, N, H, D]` and `[B, N, K, D]`.
      exact: what the prefix gets, `[B, P, H, D]`.
      attend: a form of `window_attention`, whose other arguments these are; by default that one.
    """
    prefix, shape = exact.shape[1], exact.shape[2:]
    # Heads are one axis before tokens change places: a register of a TPU holds 128 numbers of it.
    near = (_joined(x)[:, prefix:] for x in (query, key, value))
    far = far_key, far_value, far_mass
    out = (attend or window_attention)(*near, present, *far, at_means, **how)
    out = jnp.concatenate([_joined(exact), out], axis=1)
    out = jax.lax.optimization_barrier(out)  # or XLA joins in a layout of twice the size
    return out.reshape(*out.shape[:2], *shape)


def _grid_in_kernel(*states, **how):
    """`whole_grid` in one kernel for TPUs."""
    from fna_jax.kernels import grid

    forms = (functools.partial(form, **how) for form in (whole_grid, grid.grid_attention))
    return differentiated_as(*forms)(*states)


def _windows_in_kernel(*states, **how):
    """`whole_grid` whose windows are in a kernel for TPUs."""
    return whole_grid(*states, attend=_in_kernel, **how)


def _joined(x):
    """Heads as one axis: `[…, H, D]` to `[…, H · D]`."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])  # also of no tokens


def _far_keys(key, value, clusters, real, windows):
    """Keys and values `[B, F, K, D]` that stand for all tokens, and log masses `[B, W, F]`.

    Prefix tokens are near to all, and so among them: as means of their own clusters, or beside all.
    """
    prefix = windows.num_prefix
    (mean_key, mean_value), masses = token_means(clusters, key, value)
    one_hot = clusters.one_hot(jnp.float32)
    own = jnp.sum(windows.split(one_hot[:, prefix:]), axis=2)  # [B, W, S]
    near = jnp.sum(take_windows(own, windows.neighbours()), axis=2)
    left = masses[:, None] - near
    if _among_clusters(windows, clusters):
        return mean_key, mean_value, jnp.log(left)
    left -= jnp.sum(one_hot[:, None, :prefix], axis=2)
    ones = jnp.broadcast_to(real[:, None, :prefix], (*left.shape[:2], prefix))
    beside = lambda x, mean: jnp.concatenate([x[:, :prefix], mean], axis=1)
    mass = jnp.log(jnp.concatenate([ones, left], axis=-1))
    return beside(key, mean_key), beside(value, mean_value), mass


def _among_clusters(windows, clusters):
    """Whether the tokens in front of the windows are each the mean of their own cluster."""
    return clusters.num_prefix >= windows.num_prefix


def _window_means(query, real, windows, *, by_product):
    """Means of the queries over the patches of each window that are real, `[B, W, H, D]`.

    Args:
      by_product: whether with ones and zeros, which copies nothing on a TPU; or where they lie.
    """
    prefix = windows.num_prefix
    if by_product:
        (means,), _ = token_means(windows.clusters(query.shape[:1]).among(real), query)
        return means[:, prefix:]
    x, weights = (windows.cut_up(x[:, prefix:]) for x in (_joined(query), real))
    weights = weights / jnp.maximum(jnp.sum(weights, axis=windows.within, keepdims=True), 1)
    places = [*range(weights.ndim)]
    kept = [place for place in places if place not in windows.within]
    operands = weights, places, x, [*places, x.ndim], [*kept, x.ndim]  # "brlcm,brlcmd->brcd"
    means = jnp.einsum(*operands, precision=_HIGHEST).astype(query.dtype)
    means = means.reshape(means.shape[0], -1, means.shape[-1])  # explicit meshes want one by one
    return means.reshape(*means.shape[:2], *query.shape[2:])


def _in_kernel(*states, **options):
    """`window_attention` in a kernel for TPUs."""
    from fna_jax.kernels import near  # Pallas takes long to import

    plain, fused = window_attention, near.window_attention
    plain, fused = (functools.partial(form, **options) for form in (plain, fused))
    return differentiated_as(plain, fused)(*states)


def window_attention(
    query, key, value, present, far_key, far_value, far_mass, at_means, *, scale, windows
):
    """One softmax over the near keys of each window and the far ones, `[B, h·w, H · D]`.

    Args:
      query: of the patches, `[B, h·w, H · D]`.
      key, value: `[B, h·w, K · D]`.
      present: bool `[B, h·w]`, False on padding.
      far_key, far_value: `[B, F, K, D]`.
      far_mass: `[B, W, F]`, logarithms.
      at_means: of each window another query, and what it is to get, `[B, W, H, D]`; all queries of
        the window get besides what that lacks. None for nothing.
      scale, windows: as in `centroid_attention`.
    """
    near_mass = jnp.where(take_windows(windows.split(present), windows.neighbours()), 0, -jnp.inf)
    of_heads = lambda x, dim: x.reshape(*x.shape[:-1], -1, dim)
    query, key, value = (windows.split(x) for x in (query, key, value))
    query, key = of_heads(query, far_key.shape[-1]), of_heads(key, far_key.shape[-1])
    value = of_heads(value, far_value.shape[-1])  # [B, W, L, K, D]
    if at_means is not None:
        query = jnp.concatenate([query, at_means[0][:, :, None]], axis=2)
    states = query, key, value, near_mass, far_key, far_value, far_mass
    options = dict(scale=scale, neighbours=windows.neighbours())
    if flash_obstacle(query, key, value, scale, None) is None:
        out = _together(*states, **options)
    else:
        out = attend_by_blocks(*states, **options)
    if at_means is not None:
        out = out[:, :, :-1] + (at_means[1][:, :, None] - out[:, :, -1:])
    return _joined(windows.join(out))


def _kernel_obstacle(query, key, value, num_far, scale, windows):
    """Why the kernel for TPUs cannot run here, or None."""
    if obstacle := tpu_obstacle(query, key, value) or special_obstacle(scale):
        return obstacle
    if len(windows.grid) != 2:
        return "it reads windows of images, and these are boxes of a video"
    if key.shape != value.shape:
        return "values must have the head dimension of keys"
    from fna_jax.kernels.near import program_width  # Pallas takes long to import

    if program_width(*query.shape[-2:], num_far, query.dtype, windows) is None:
        return "heads do not fill registers, or a window's logits the vector memory"
    return None


def _together(query, key, value, near_mass, far_key, far_value, far_mass, *, scale, neighbours):
    """For a kernel of softmax attention: it takes keys that lie together, and holds no logits."""
    near = lambda x: take_near(x, neighbours)
    spread = lambda x: jnp.broadcast_to(x[:, None], (*far_mass.shape[:2], *x.shape[1:]))
    together = lambda near, far: jnp.concatenate([near, far], axis=2)
    masses = together(near_mass.reshape(*near_mass.shape[:2], -1), far_mass)
    states = together(near(key), spread(far_key)), together(near(value), spread(far_value))
    return softmax_attention(query, *states, scale=scale, log_mass=masses)


def attend_by_blocks(
    query, key, value, near_mass, far_key, far_value, far_mass, *, scale, neighbours, unseen=None
):
    """One softmax over the near keys of each window and the far ones, `[B, W, T, H, D]`.

    In blocks of windows, of one head or image at a time where logits are many.

    Args:
      query: by windows, `[B, W, T, H, D]`.
      key, value: `[B, W, L, K, D]`.
      near_mass: `[B, W, n, L]`, logarithms: 0 for a token, −∞ for none.
      far_key, far_value: `[B, F, K, D]`.
      far_mass: `[B, W, F]`, logarithms.
      scale: multiplies the logits.
      neighbours: int `[W, n]`, the windows near to each; -1 for none.
      unseen: bool `[T, n · L]`, near keys that a query of a window does not see; None for none.
    """
    num_rows, num_groups, num_far = query.shape[2], key.shape[-2], far_key.shape[1]
    # Query heads that share a key head are further queries of one head: [B, W, T · H/K, K, D].
    query = query.reshape(*query.shape[:3], num_groups, -1, query.shape[-1])
    if unseen is not None:
        unseen = np.repeat(unseen, query.shape[4], axis=0)[None, None, None]
    query = jnp.swapaxes(query, 3, 4).reshape(*query.shape[:2], -1, num_groups, query.shape[-1])
    num_logits = query.shape[2] * (neighbours.shape[1] * key.shape[2] + num_far)  # of a window
    accumulate = jnp.promote_types(query.dtype, jnp.float32)
    product = functools.partial(jnp.einsum, preferred_element_type=accumulate)

    def attend(query, key, value, far_key, far_value, of_images):
        near_mass, far_mass = of_images

        def rows(block):
            query, near_mass, far_mass, neighbours = block  # of some windows
            near = scale * product("bwtkd,bwmkd->bkwtm", query, take_near(key, neighbours[0]))
            near += near_mass.reshape(*near_mass.shape[:2], -1)[:, None, :, None]
            near = near if unseen is None else jnp.where(unseen, -jnp.inf, near)
            far = scale * product("bwtkd,bfkd->bkwtf", query, far_key)
            far += far_mass[:, None, :, None]
            (near, far), total = joint_softmax_weights(near, far)
            near, far = near.astype(value.dtype), far.astype(value.dtype)
            out = product("bkwtm,bwmkd->bkwtd", near, take_near(value, neighbours[0]))
            out += product("bkwtf,bfkd->bkwtd", far, far_value)
            return jnp.moveaxis(out / total, 1, 3).astype(value.dtype)

        of_windows = query, near_mass, far_mass, jnp.asarray(neighbours)[None]
        return map_row_blocks(rows, of_windows, num_logits, least=1)

    states = query, key, value, far_key, far_value
    of_images = near_mass, far_mass
    num_logits *= query.shape[1]
    out = over_heads(attend, states, of_images, num_logits=num_logits, in_blocks=True)
    out = out.reshape(*out.shape[:2], num_rows, -1, *out.shape[3:])
    return jnp.swapaxes(out, 3, 4).reshape(*out.shape[:3], -1, out.shape[-1])
