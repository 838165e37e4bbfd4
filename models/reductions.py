"""Fewer tokens from block to block: similar ones merged (ToMe, arXiv 2210.09461), or most dropped.

Both act between a block's attention and its MLP, and all that follows runs on what is left.

Shape letters: B batch, N tokens of the image, P of them in front of the patches, n tokens that are
left, r those that go in one block, H heads, D head dimension, C width.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np

from fna_jax import exact_attention
from fna_jax.carries import per_token
from fna_jax.clusters import Clusters
from fna_jax.config import FEATURES, parse_blocks
from fna_jax.landmarks import METHODS, layer_points, select_in_layer
from fna_jax.softmax import softmax_attention

from .rotary import patch_coordinates

_HIGHEST = jax.lax.Precision.HIGHEST


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Remaining:
    """The tokens that are left of each image, handed on from block to block.

    Attributes:
      clusters: which of them each token of the image is in, `[B, N]`; -1 for one that was dropped.
      size: float32 `[B, n]`, how many tokens each stands for; 0 for padding.
      places: float32 `[B, n, 2]`, mean row and column of those, as `rotary.patch_coordinates` has
        them (`[B, n, 3]` in a video); 0 for tokens in front of the patches.
    """

    clusters: Clusters
    size: jax.Array
    places: jax.Array

    @classmethod
    def all_of(cls, x, grid, num_prefix) -> "Remaining":
        """Every token of x `[B, N, C]`, patches down and across behind P others."""
        places = np.pad(patch_coordinates(grid), [(num_prefix, 0), (0, 0)])
        numbers = np.arange(x.shape[1], dtype=np.int32)
        return cls(
            Clusters(per_token(x, 0, jnp.int32) + numbers[None], x.shape[1], num_prefix),
            per_token(x, 1, jnp.float32),
            per_token(x, 0, jnp.float32)[..., None] + places[None],
        )

    @property
    def is_all(self) -> bool:
        """Whether no block has taken any away."""
        return self.clusters.num_clusters == self.clusters.assignment.shape[-1]

    def spread(self, x):
        """What each token of the image is in, of x `[B, n, C]`: `[B, N, C]`; NaN if dropped."""
        assignment = self.clusters.assignment[..., None]
        own = _take(x, jnp.maximum(assignment, 0))
        return jnp.where(assignment >= 0, own, jnp.nan)


def remaining_of(landmarks) -> Remaining | None:
    """What is left, of what blocks hand on; None where no view takes tokens away."""
    return landmarks[0] if landmarks and isinstance(landmarks[0], Remaining) else None


@dataclasses.dataclass(frozen=True)
class TokenMerging:
    """Token merging, ToMe: in each of some blocks the most similar patches become one.

    Patches are split by turns into two sets. Each of the first proposes the one of the second with
    the most similar key (cosine, of the mean over heads); the r best pairs are merged into means
    weighted by how many tokens each stands for. At the end every token of the image gets the result
    of the one that it is in. Tokens in front of the patches are never merged.

    Attributes:
      r: how many go in each block, at most half of the patches there; a float below 1 is a share of
        the image's tokens.
      layers: block indices from 0, a tuple or text like "13:24".
      proportional: a token counts in the softmax as often as it stands for one: + log size.

    Raises:
      ValueError: a field outside its range; the message names it.
    """

    r: int | float
    layers: tuple[int, ...]
    proportional: bool = True

    drops = False

    def __post_init__(self):
        object.__setattr__(self, "layers", parse_blocks(self.layers, "layers"))
        _check_number("r", self.r, least=0)
        if not isinstance(self.proportional, bool):
            raise ValueError(f"proportional must be True or False, got {self.proportional!r}")

    def left(self, remaining, num_tokens, num_prefix) -> int:
        """n after a block of `layers`, of those that there are in front of it and of N."""
        return remaining - min(_number(self.r, num_tokens), (remaining - num_prefix) // 2)

    def attention(self, query, key, value, remaining):
        """Exact attention among the tokens that are left, `[B, n, H, D]`."""
        if remaining.is_all or not self.proportional:
            return exact_attention(query, key, value)
        options = dict(scale=query.shape[-1] ** -0.5, log_mass=jnp.log(remaining.size))
        return softmax_attention(query, key, value, **options)

    def step(self, states, remaining, rng=None):
        """What a block does to its tokens, a function of x `[B, n, C]`, and those that are left.

        Args:
          states: "k" `[B, n, H, D]`, and others.
          remaining: in front of the block.
          rng: not used.
        """
        del rng
        num_tokens, num_prefix = (
            remaining.clusters.assignment.shape[1],
            remaining.clusters.num_prefix,
        )
        here = remaining.clusters.num_clusters
        r = here - self.left(here, num_tokens, num_prefix)
        if not r:
            return lambda x: x, remaining
        pairs = match(layer_points(states, "k"), remaining.size, r, num_prefix)
        return lambda x: merge(x, remaining.size, pairs), merged(remaining, pairs)

    def finish(self, finish, x, remaining):
        """Tokens `[B, N, C]` and pooled state, by the tower's `finish`, of x `[B, n, C]`."""
        return finish(remaining.spread(x))


@dataclasses.dataclass(frozen=True)
class TokenDropping:
    """All but some tokens are dropped in one block, as visual-token pruning does.

    For pooled outputs: what was dropped has no output, which is NaN there.

    Attributes:
      num_tokens: how many stay, those in front of the patches included; a float below 1 is a share
        of the image's tokens.
      block: after whose attention the others go, from 0.
      features, method: which stay: landmarks, chosen as `fna_jax.FNAConfig` says.

    Raises:
      ValueError: a field outside its range; the message names it.
    """

    num_tokens: int | float
    block: int
    features: str = "q"
    method: str = "fps"

    drops = True

    def __post_init__(self):
        parse_blocks((self.block,), "block")
        _check_number("num_tokens", self.num_tokens, least=1)
        for name, choices in (("features", FEATURES), ("method", METHODS)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )

    @property
    def layers(self) -> tuple[int]:
        """The block, as one of several."""
        return (self.block,)

    def left(self, remaining, num_tokens, num_prefix) -> int:
        """n after the block, of N; raises ValueError where that are too many, or no patch."""
        del remaining
        left = _number(self.num_tokens, num_tokens)
        if not num_prefix < left <= num_tokens:
            raise ValueError(
                f"num_tokens={self.num_tokens} of {num_tokens} are {left}, which must lie in "
                f"{num_prefix + 1}..{num_tokens}, for {num_prefix} are in front of the patches"
            )
        return left

    def attention(self, query, key, value, remaining):
        """Exact attention among the tokens that are left, `[B, n, H, D]`."""
        del remaining
        return exact_attention(query, key, value)

    def step(self, states, remaining, rng=None):
        """As in `TokenMerging`, with states also for `features`, and a key for random landmarks."""
        num_tokens, num_prefix = states["input"].shape[1], remaining.clusters.num_prefix
        landmarks = select_in_layer(
            states,
            self.features,
            self.left(num_tokens, num_tokens, num_prefix),
            method=self.method,
            guarantee=tuple(range(num_prefix)),
            rng=rng,
        )
        kept = jnp.sort(landmarks.indices, axis=-1)
        is_kept = kept[:, :, None] == np.arange(num_tokens)[None, None]  # [B, n, N]
        slots = jnp.argmax(is_kept, axis=1).astype(jnp.int32)
        assignment = jnp.where(jnp.any(is_kept, axis=1), slots, -1)
        take = lambda x: _take(x, kept[..., None])
        return take, Remaining(
            Clusters(assignment, kept.shape[1], num_prefix),
            _take(remaining.size, kept),
            take(remaining.places),
        )

    def finish(self, finish, x, remaining):
        """As in `TokenMerging`: the pooled state is that of the tokens that are left."""
        tokens, pooled = finish(x)
        return remaining.spread(tokens), pooled


class Pairs(typing.NamedTuple):
    """Which tokens are merged: places in the first and the second set of patches.

    Attributes:
      gone: int32 `[B, r]`, those of the first set that are merged.
      into: int32 `[B, r]`, the ones of the second set that take them.
      kept: int32 `[B, A − r]`, those of the first set that stay, ascending.
      num_prefix: P, tokens in front of both.
    """

    gone: jax.Array
    into: jax.Array
    kept: jax.Array
    num_prefix: int


def match(points, size, r, num_prefix) -> Pairs:
    """Bipartite soft matching: the r pairs of patches from two sets that are most similar.

    Args:
      points: float32 `[B, n, D]`, whose cosines are similarities. Ties go to the lowest place.
      size: float32 `[B, n]`; 0 for padding, which is paired last.
      r: static, at most half of the patches.
      num_prefix: P, tokens that are in no set.
    """
    norm = jnp.linalg.norm(points, axis=-1, keepdims=True)
    _, first, second = _sets(points / jnp.where(norm == 0, 1, norm), num_prefix)
    _, first_size, second_size = _sets(size, num_prefix)
    similarity = jnp.einsum("bad,bcd->bac", first, second, precision=_HIGHEST)
    real = (first_size[:, :, None] > 0) & (second_size[:, None, :] > 0)
    similarity = jnp.where(real, similarity, -jnp.inf)
    most = jnp.max(similarity, axis=-1, keepdims=True)  # [B, A, 1]
    # What argmax gives, which is many times slower on a CPU.
    numbers = np.arange(similarity.shape[-1], dtype=np.int32)[None, None]
    nearest = jnp.min(jnp.where(similarity == most, numbers, numbers.size - 1), axis=-1)
    # Sorted, for top_k would gather a batch that is split over devices.
    order = jnp.argsort(-most[..., 0], axis=-1)
    gone, kept = order[:, :r], jnp.sort(order[:, r:], axis=-1)
    return Pairs(gone, _take(nearest, gone), kept, num_prefix)


def merge(x, size, pairs):
    """Means of x `[B, n, C]` weighted by size `[B, n]`, `[B, n − r, C]`: the prefix, those of the
    first set that stay, and the second set."""
    total = _sums(x.astype(jnp.float32) * size[..., None], pairs)
    return (total / jnp.maximum(_sums(size[..., None], pairs), 1)).astype(x.dtype)


def merged(remaining, pairs) -> Remaining:
    """What is left after `merge`."""
    before, num_prefix = remaining.clusters, pairs.num_prefix
    num_gone, num_kept = pairs.gone.shape[1], pairs.kept.shape[1]
    numbers = np.arange(num_gone + num_kept, dtype=np.int32)[None, None]
    gone = pairs.gone[:, :, None]  # [B, r, 1]
    into = jnp.max(jnp.where(gone == numbers, pairs.into[:, :, None], -1), axis=1)  # [B, A]
    moved_up = numbers[:, 0] - jnp.sum(gone < numbers, axis=1)
    first = num_prefix + jnp.where(into >= 0, num_kept + into, moved_up)
    # A token stood in the prefix, or at some place of one of the sets.
    stood = before.assignment
    place = (stood - num_prefix) // 2
    of_first = _take(first, jnp.clip(place, 0, numbers.size - 1))
    place = jnp.where(stood % 2 == 0, of_first, num_prefix + num_kept + place)
    place = jnp.where(stood < num_prefix, stood, place)
    num_left = before.num_clusters - num_gone
    return Remaining(
        Clusters(place.astype(jnp.int32), num_left, num_prefix),
        _sums(remaining.size[..., None], pairs)[..., 0],
        merge(remaining.places, remaining.size, pairs),
    )


def _sets(x, num_prefix):
    """Of x `[B, n, …]` the prefix, the patches at even places and those at odd ones."""
    odd = num_prefix % 2
    return x[:, :num_prefix], x[:, num_prefix + odd :: 2], x[:, num_prefix + 1 - odd :: 2]


def _sums(x, pairs):
    """x `[B, n, C]` with what goes added to what takes it, `[B, n − r, C]`."""
    prefix, first, second = _sets(x, pairs.num_prefix)
    into = jax.nn.one_hot(pairs.into, second.shape[1], dtype=x.dtype)  # [B, r, …]
    gone, kept = (_take(first, indices[..., None]) for indices in (pairs.gone, pairs.kept))
    second += jnp.einsum("brs,brc->bsc", into, gone, precision=_HIGHEST)
    return jnp.concatenate([prefix, kept, second], axis=1)


def _take(x, indices):
    """Of x `[B, n, …]` what is at the indices, all of which are there: quick to compile."""
    return jnp.take_along_axis(x, indices, axis=1, mode="promise_in_bounds")


def _number(count, num_tokens) -> int:
    """The number that an integer, or a share of the tokens, stands for."""
    return round(count * num_tokens) if isinstance(count, float) else count


def _check_number(name, count, *, least):
    """Raises ValueError for what is neither an integer of at least so much nor a share."""
    is_share = isinstance(count, float) and 0 < count < 1
    is_number = isinstance(count, int) and not isinstance(count, bool) and count >= least
    if not is_share and not is_number:
        raise ValueError(
            f"{name} must be an integer of at least {least}, or a share of the tokens in (0, 1), "
            f"got {count!r}"
        )
