"""Landmark tokens: the few that stand for all (arXiv 2507.16018).

Shape letters: B batch, N tokens, S landmarks, C features of a token.
"""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np

from fna_jax.carries import per_token
from fna_jax.kernels import gpu_obstacle

METHODS = ("fps", "random")

_LANES = 128  # numbers along the last axis of a TPU's vectors
_VMEM_POINTS = 2**23  # numbers of an image's features: 32 MiB, a quarter of a TPU's vector memory


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Landmarks:
    """One landmark set per image, shared by all heads.

    Attributes:
      indices: int32 `[*B, S]`, the landmark tokens; 0 where not valid.
      valid: bool `[*B, S]`, False on the surplus slots of a row that has fewer available tokens
        than slots. Those slots carry no weight anywhere.
    """

    indices: jax.Array
    valid: jax.Array

    @classmethod
    def from_indices(cls, indices) -> "Landmarks":
        """Landmarks from plain integers `[*B, S]`; a negative index marks an empty slot."""
        indices = jnp.asarray(indices)
        if not jnp.issubdtype(indices.dtype, jnp.integer):
            raise ValueError(
                f"landmarks must be Landmarks or integers [*B, S], got {indices.dtype}"
            )
        return cls(jnp.maximum(indices, 0).astype(jnp.int32), indices >= 0)

    def among(self, key_mask) -> "Landmarks":
        """These landmarks less the padding: what is False in the mask bool `[*B, N]`, or None."""
        if key_mask is None:
            return self
        real = jnp.take_along_axis(key_mask, self.indices, axis=-1)
        return dataclasses.replace(self, valid=self.valid & real)


def farthest_point_sampling(points, num_samples, *, eligible=None):
    """Greedy k-center: indices of points that lie far apart, int32 `[S]`, in the order found.

    Starts at the first eligible point, then repeatedly takes the eligible point whose smallest
    Euclidean distance to those taken is largest; ties go to the lowest index. Distances are
    float32. Under `vmap` a batch runs in step.

    Args:
      points: `[N, C]`.
      num_samples: S, static.
      eligible: bool `[N]`, the points that may be taken; all by default.

    Returns:
      int32 `[S]`. Slots beyond the number of eligible points hold -1, which the attention
      functions treat as empty.

    Raises:
      ValueError: points not `[N, C]`, S outside 1..N, or a mask of another shape.
    """
    points = jnp.asarray(points)
    if points.ndim != 2:
        raise ValueError(f"points must be [N, C], got shape {points.shape}; vmap over the batch")
    num_samples = checked_count(num_samples, points.shape[0])
    if eligible is None:
        distance = per_token(points, jnp.inf, jnp.float32)
    else:
        eligible = checked_mask(eligible, points.shape[:1], "eligible")
        distance = jnp.where(eligible, jnp.inf, -jnp.inf)
    if gpu_obstacle(points) is None:
        from fna_jax.kernels.farthest import farthest_points  # Pallas takes long to import

        points = jax.lax.stop_gradient(points)  # integers come of them
        half = points.dtype in (jnp.bfloat16, jnp.float16)
        points = points if half else points.astype(jnp.float32)
        return farthest_points(points, distance, num_samples=num_samples)
    sample = functools.partial(_farthest_points, num_samples=num_samples)
    in_float32 = lambda points, distance, **kw: sample(points.astype(jnp.float32), distance, **kw)
    at_most = lambda size, bound: isinstance(size, int) and size <= bound  # unknown under export
    # The same sums. Few features would leave a TPU's vectors half empty where they come last; on a
    # CPU it is tokens last that is up to twenty times slower. What as float32 would not stay in a
    # TPU's vector memory is read in its own precision, in half the time.
    on_tpu = in_float32 if at_most(points.size, _VMEM_POINTS) else sample
    if at_most(points.shape[1], _LANES):
        on_tpu = functools.partial(on_tpu, tokens_last=True)
    return jax.lax.platform_dependent(points, distance, tpu=on_tpu, default=in_float32)


def select_landmarks(
    features, num_landmarks, *, method="fps", guarantee=None, exclude=None, rng=None
) -> Landmarks:
    """Landmarks of every image: guaranteed tokens in ascending order, then samples of the rest.

    A guaranteed token is never excluded, and does not seed the distances of the samples. With more
    guaranteed tokens than S the first S of them are the landmarks; with fewer available tokens
    than S the surplus slots are invalid.

    Args:
      features: `[*B, N, C]`, what distances are measured on ("random" reads only the shape).
      num_landmarks: S, static.
      method: "fps", farthest point sampling, or "random", uniform without replacement.
      guarantee: bool `[*B, N]`, tokens that are always landmarks.
      exclude: bool `[*B, N]`, tokens that never are (padding, massive tokens).
      rng: a JAX random key; required by "random", refused by "fps".

    Raises:
      ValueError: S outside 1..N, a mask of another shape, an unknown method, or `rng` missing or
        not wanted.
    """
    features = jnp.asarray(features)
    if features.ndim < 2:
        raise ValueError(f"features must be [*B, N, C], got shape {features.shape}")
    *batch, num_tokens, _ = features.shape
    num_landmarks = checked_count(num_landmarks, num_tokens)
    if method not in METHODS:
        raise ValueError(f"unknown landmark method {method!r}; choose from {', '.join(METHODS)}")
    if (method == "random") != (rng is not None):
        raise ValueError(
            "method='random' needs a random key: pass rng=jax.random.key(seed)"
            if rng is None
            else f"rng was given but method={method!r} draws nothing: drop it"
        )

    eligible = per_token(features, True, bool)
    if exclude is not None:
        eligible &= ~checked_mask(exclude, features.shape[:-1], "exclude")
    if guarantee is not None:
        guarantee = checked_mask(guarantee, features.shape[:-1], "guarantee")
        guarantee |= per_token(features, False, bool)  # of their type
        eligible &= ~guarantee

    if method == "fps":
        sample = lambda x, e: farthest_point_sampling(x, num_landmarks, eligible=e)
        for _ in batch:
            sample = jax.vmap(sample)
        indices = sample(features, eligible)
    else:
        indices = _random_sampling(rng, eligible, num_landmarks)
    if guarantee is not None:
        indices = _put_first(guarantee, indices)
    return Landmarks.from_indices(indices)


def layer_points(states, features):
    """What an attention layer measures distances on, `[*B, N, C]`; see `select_in_layer`."""
    if features == "input":
        return states[features]
    return jnp.mean(states[features].astype(jnp.float32), axis=-2)


def select_in_layer(
    states, features, num_landmarks, *, method, guarantee, key_mask=None, exclude=None, rng=None
) -> Landmarks:
    """Landmarks of an attention layer, measured on one of its states.

    Args:
      states: of "q", "k", "v" `[*B, N, H, D]`, which are averaged over heads, and "input"
        `[*B, N, C]` those that `features` may name.
      features: which of them.
      num_landmarks, method, exclude, rng: as in `select_landmarks`.
      guarantee: positions that are always landmarks, in every image, unless they are padding.
      key_mask: bool `[*B, N]`, True on real tokens; padding is no landmark.

    Raises:
      ValueError: as in `select_landmarks`, or a guaranteed position that is no token's.
    """
    points = layer_points(states, features)
    num_tokens = points.shape[-2]
    if outside := [p for p in guarantee if not 0 <= p < num_tokens]:
        raise ValueError(f"guarantee names {outside}, but there are {num_tokens} tokens (from 0)")
    guaranteed = None
    if guarantee:
        guaranteed = np.isin(np.arange(num_tokens), guarantee)
        guaranteed = jnp.broadcast_to(guaranteed, points.shape[:-1])
    if key_mask is not None:
        guaranteed = None if guaranteed is None else guaranteed & key_mask
        exclude = ~key_mask if exclude is None else exclude | ~key_mask
    return select_landmarks(
        points, num_landmarks, method=method, guarantee=guaranteed, exclude=exclude, rng=rng
    )


def _farthest_points(points, distance, *, num_samples, tokens_last=False):
    """`farthest_point_sampling` of points `[N, C]`, with the distances `[N]` to start from.

    They are squared, to the nearest point taken: inf before the first, −inf where it is barred.
    """
    axis = 0 if tokens_last else -1
    spread = points.T if tokens_last else points
    positions = jnp.arange(points.shape[0])

    def take_farthest(distance, _):
        index = jnp.argmax(distance)
        found = distance[index] > -jnp.inf
        point = points[index].astype(jnp.float32)
        point = point[:, None] if tokens_last else point[None]
        to_index = jnp.sum(jnp.square(spread.astype(jnp.float32) - point), axis=axis)
        # Not jnp.minimum: a NaN feature must not unbar the points already taken.
        distance = jnp.where(to_index < distance, to_index, distance)
        distance = jnp.where(positions == index, -jnp.inf, distance)
        return distance, jnp.where(found, index, -1).astype(jnp.int32)

    return jax.lax.scan(take_farthest, distance, length=num_samples)[1]


def _random_sampling(rng, eligible, num_samples):
    """Uniform samples without replacement, int32 `[*B, S]`, -1 beyond the eligible tokens."""
    # Sorted, for top_k would gather a batch that is split over devices.
    noise = jnp.where(eligible, jax.random.uniform(rng, eligible.shape), -1.0)
    indices = jnp.argsort(-noise, axis=-1)[..., :num_samples]
    score = jnp.take_along_axis(noise, indices, axis=-1)
    return jnp.where(score >= 0, indices, -1)


def _put_first(guarantee, samples):
    """The tokens marked in `guarantee` [*B, N], ascending, then `samples` [*B, S]; S are kept."""
    num_tokens, num_landmarks = guarantee.shape[-1], samples.shape[-1]
    lead = range(samples.ndim - 1)
    tokens, slots = (jnp.expand_dims(jnp.arange(n), lead) for n in (num_tokens, num_landmarks))
    # Sorted, as in _random_sampling. Slot j holds guaranteed token j, or sample j - (their number).
    first = jnp.sort(jnp.where(guarantee, tokens, num_tokens))[..., :num_landmarks]
    shift = slots - jnp.sum(guarantee, axis=-1, keepdims=True)
    rest = jnp.take_along_axis(samples, jnp.maximum(shift, 0), axis=-1)
    return jnp.where(first < num_tokens, first, rest)


def checked_count(count, num_tokens):
    """`count` as an int, or an error that says what is wrong with it."""
    try:
        count = operator.index(count)
    except TypeError:
        raise ValueError(
            f"the number of landmarks must be a static integer, got {count!r}"
        ) from None
    if count < 1 or count > num_tokens:
        raise ValueError(
            f"the number of landmarks must lie in 1..{num_tokens} (the tokens), got {count}"
        )
    return count


def checked_mask(mask, shape, name):
    """`mask` as a boolean array of this shape, or an error that names both."""
    mask = jnp.asarray(mask)
    if mask.shape != shape or mask.dtype != jnp.bool_:
        raise ValueError(f"{name} must be bool{list(shape)}, got {mask.dtype}{list(mask.shape)}")
    return mask
