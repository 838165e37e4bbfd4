"""Which attention a block runs: exact, causal, masked, or approximate.

Each is a callable `(x, query, key, value, landmarks) -> Attended`, where x `[B, N, C]` is the
block's input and the states are `[B, N, H, D]`.

Shape letters: B batch, N tokens, S landmarks, H heads, D head dimension, C width.
"""

import dataclasses
import functools
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fna_jax import (
    FNAConfig,
    Masking,
    class_token_proxy,
    exact_attention,
    fast_nystrom_attention,
    masked_attention,
    masked_nystrom_attention,
    massive_by_attention,
    massive_by_norm,
    suppression_correction,
)
from fna_jax.config import config_by_block
from fna_jax.landmarks import Landmarks, select_in_layer
from fna_jax.layers import attend_in_layer, partition_in_layer
from fna_jax.masking import masked_weights
from fna_jax.tokens import attention_weights

from .captures import Seen
from .detectors import token_norms
from .interventions import CancelSuppression
from .reductions import TokenDropping, TokenMerging


class Record(typing.NamedTuple):
    """What a block leaves for the caller.

    Attributes:
      error: FNA's, float32 `[B]`.
      kept: for a look, or in a decoder for the tokens that follow.
      received: what each token receives of the last one's attention, mean over heads, float32
        `[B, N]`.
    """

    error: jax.Array | None = None
    kept: typing.Any = None
    received: jax.Array | None = None


class Attended(typing.NamedTuple):
    """Attention's result.

    Attributes:
      out: `[B, N, H, D]`, before the output projection.
      landmarks: landmarks or clusters for the blocks that follow, one entry for each config of the
        view, None before any block has chosen some; or the tokens that are left, where the view
        takes some away.
      correction: `[B, N, C]`, to be added after the output projection; None for nothing.
      reduce: what becomes of the block's tokens `[B, N, C]` before its MLP; None for nothing.
      record: for the encoder's caller.
    """

    out: jax.Array
    landmarks: tuple
    correction: jax.Array | None = None
    reduce: Callable | None = None
    record: Record = Record()


def attend_exactly(x, query, key, value, landmarks):
    """Exact attention among all tokens."""
    del x
    return Attended(exact_attention(query, key, value), landmarks)


def attend_among(key_mask):
    """Exact attention to the tokens that are real in the mask bool `[B, N]`."""

    def attend(x, query, key, value, landmarks):
        del x
        return Attended(exact_attention(query, key, value, key_mask=key_mask), landmarks)

    return attend


def attend_causally(x, query, key, value, landmarks):
    """Exact attention to the tokens up to one's own, for text."""
    del x
    return Attended(jax.nn.dot_product_attention(query, key, value, is_causal=True), landmarks)


@dataclasses.dataclass(frozen=True)
class MaskedAttention:
    """Exact attention with entries removed; T is bool `[B, N]`, None for patterns without it."""

    masking: Masking
    tokens: jax.Array | None

    def __call__(self, x, query, key, value, landmarks):
        del x
        out = masked_attention(query, key, value, self.masking, tokens=self.tokens)
        return Attended(out, landmarks)


def cancelling(out_kernel):
    """Exact attention with suppression cancelled, for an output projection `[H, D, C]`."""

    def attend(x, query, key, value, landmarks):
        correction = suppression_correction(query, key, value, x, out_kernel)
        return Attended(exact_attention(query, key, value), landmarks, correction)

    return attend


def observing(attend, see, keep):
    """`attend` with `keep(see(x, query, key, value))` in its record."""

    def attend_and_keep(x, query, key, value, landmarks):
        attended = attend(x, query, key, value, landmarks)
        kept = keep(see(x, query, key, value))
        return attended._replace(record=attended.record._replace(kept=kept))

    return attend_and_keep


@dataclasses.dataclass(frozen=True)
class ApproximateAttention:
    """FNA or centroid attention of one block, with landmarks or clusters handed in or chosen here.

    Those of every config of a view are handed on, in a tuple.

    Attributes:
      config: the settings.
      place: of this config in that tuple.
      grid: patches down and across; None where images have grids of their own.
      num_prefix: leading tokens (class token, registers) that are always landmarks.
      rng: random key of this block's landmarks, for method "random".
      compare: let the block run exactly, and record the relative error, float32 `[B]`.
      masked: which entries are removed.
      unread: bool `[B, N]`, tokens that are no landmarks, because no query may read them here or in
        a later block with these landmarks.
      key_mask: bool `[B, N]`, True on real tokens; None where there is no padding.
    """

    config: FNAConfig
    place: int
    grid: tuple[int, int] | None
    num_prefix: int
    rng: jax.Array | None
    compare: bool
    masked: MaskedAttention | None = None
    unread: jax.Array | None = None
    key_mask: jax.Array | None = None

    def __call__(self, x, query, key, value, landmarks):
        run = self._nystrom if self.config.approximation == "nystrom" else self._centroid
        out, mine = run(x, query, key, value, landmarks[self.place])
        landmarks = (*landmarks[: self.place], mine, *landmarks[self.place + 1 :])
        if not self.compare:
            return Attended(out, landmarks)
        exact = (self.masked or attend_exactly)(x, query, key, value, landmarks).out
        return Attended(exact, landmarks, record=Record(error=relative_error(out, exact)))

    def _centroid(self, x, query, key, value, clusters):
        """Centroid attention, and the clusters."""
        of_layer = dict(config=self.config, grid=self.grid, num_prefix=self.num_prefix)
        of_layer |= dict(key_mask=self.key_mask)
        clusters = partition_in_layer(
            {"input": x, "q": query, "k": key, "v": value},
            clusters=clusters,
            exclude=self.excluded(x, query, key),
            rng=self.rng,
            **of_layer,
        )
        return attend_in_layer(query, key, value, clusters, **of_layer), clusters

    def _nystrom(self, x, query, key, value, landmarks):
        """FNA, and the landmarks."""
        if landmarks is None or self.config.resample:
            landmarks = self.select(x, query, key, value)
        options = dict(
            inverse_steps=self.config.inverse_steps, implementation=self.config.implementation
        )
        if self.masked is None:
            options |= dict(key_mask=self.key_mask)
            return fast_nystrom_attention(query, key, value, landmarks, **options), landmarks
        masking, tokens = self.masked.masking, self.masked.tokens
        out = masked_nystrom_attention(
            query, key, value, landmarks, masking, tokens=tokens, **options
        )
        return out, landmarks

    def select(self, x, query, key, value) -> Landmarks:
        """Landmarks of a block with input x `[B, N, C]` and states `[B, N, H, D]`."""
        return select_in_layer(
            {"input": x, "q": query, "k": key, "v": value},
            self.config.features,
            self.config.num_landmarks,
            method=self.config.method,
            guarantee=tuple(range(self.num_prefix)) if self.config.guarantee_prefix else (),
            key_mask=self.key_mask,
            exclude=self.excluded(x, query, key),
            rng=self.rng,
        )

    def excluded(self, x, query, key):
        """Tokens that are no landmarks, bool `[B, N]`; None for none.

        Massive ones, where the config says so, and those in `unread`.
        """
        sets = [self._massive(x, query, key), self.unread]
        sets = [tokens for tokens in sets if tokens is not None]
        return functools.reduce(jnp.logical_or, sets) if sets else None

    def _massive(self, x, query, key):
        if self.config.exclude == "massive_by_norm":
            return massive_by_norm(token_norms(x), num_prefix=self.num_prefix)
        if self.config.exclude == "massive_by_attention":
            proxy = class_token_proxy(query, key)
            return massive_by_attention(proxy, num_prefix=self.num_prefix)
        return None


@dataclasses.dataclass(frozen=True)
class ReducedAttention:
    """Exact attention among the tokens that are left, and what becomes of them in this block.

    Attributes:
      reduction: the settings.
      acts: whether tokens become fewer here.
      rng: random key of this block's choice, for method "random".
    """

    reduction: TokenMerging | TokenDropping
    acts: bool
    rng: jax.Array | None

    def __call__(self, x, query, key, value, landmarks):
        (remaining,) = landmarks
        out = self.reduction.attention(query, key, value, remaining)
        if not self.acts:
            return Attended(out, landmarks)
        states = {"input": x, "q": query, "k": key, "v": value}
        reduce, remaining = self.reduction.step(states, remaining, rng=self.rng)
        return Attended(out, (remaining,), reduce=reduce)


def reduced_attends(reduction, depth, *, rng) -> list[ReducedAttention]:
    """The attention of each block of a tower that takes tokens away.

    Raises:
      ValueError: `rng` missing for a random choice, or not wanted.
    """
    _check_rng(rng, [getattr(reduction, "method", None)])
    return [ReducedAttention(reduction, block in reduction.layers, rng) for block in range(depth)]


def vision_attends(tower, *, grid, rng, compare, tokens, capture, key_mask=None):
    """The attention of each block of a vision tower: exact, or what its view says.

    Args:
      tower: a `VisionTower`, with its `fna` and `interventions`.
      grid: patches down and across; None where images have grids of their own.
      rng, compare, capture: as in the tower's call.
      tokens: T, bool `[B, N]`, of the interventions; None where they need none.
      key_mask: bool `[B, N]`, True on real tokens, of a tower without interventions and fewer
        tokens; None where there is no padding.

    Raises:
      ValueError: `rng` missing for random landmarks, or anything given that nothing would use.
    """
    by_block, approximated = dict(tower.interventions.by_block), config_by_block(tower.fna)
    if compare and not approximated:
        raise ValueError("compare=True needs FNA to compare: use models.with_attention first")
    if tower.reduction is not None:
        return reduced_attends(tower.reduction, len(tower.encoder.blocks), rng=rng)
    _check_rng(rng, [config.method for config in tower.fna])

    unread_in = {
        index
        for index, intervention in by_block.items()
        if isinstance(intervention, Masking) and intervention.pattern == "X->T"
    }
    attends = []
    for index, block in enumerate(tower.encoder.blocks):
        attend = attend_exactly if key_mask is None else attend_among(key_mask)
        masked, weights = None, attention_weights
        intervention = by_block.get(index)
        if isinstance(intervention, CancelSuppression):
            attend = cancelling(block.out_kernel())
        elif intervention is not None:
            options = dict(
                masking=intervention, tokens=tokens if intervention.needs_tokens else None
            )
            attend = masked = MaskedAttention(**options)
            weights = functools.partial(masked_weights, **options)
        if (config := approximated.get(index)) is not None:
            # Landmarks that are shared may be read nowhere, wherever they are chosen.
            shared_in = {index} if config.resample else set(config.layers)
            attend = ApproximateAttention(
                config,
                tower.fna.index(config),
                grid,
                tower.num_prefix,
                rng=jax.random.fold_in(rng, index) if config.method == "random" else None,
                compare=compare,
                masked=masked,
                unread=tokens if shared_in & unread_in else None,
                key_mask=key_mask,
            )
            weights = _no_weights
        if capture is not None:
            see = functools.partial(Seen, index, out_kernel=block.out_kernel(), weights_of=weights)
            attend = observing(attend, see, capture.keep)
        attends.append(attend)
    return attends


def _check_rng(rng, methods):
    """Raises ValueError for a key that is missing, or that none of these methods would use."""
    if rng is None and "random" in methods:
        raise ValueError("random landmarks need a key: call the model with rng=jax.random.key(0)")
    if rng is not None and "random" not in methods:
        raise ValueError("rng was given, but no block draws random landmarks: drop it")


def _no_weights(query, key):
    raise ValueError("a block with FNA forms no attention matrix; look at the exact model")


def relative_error(approximation, exact):
    """`‖a − e‖ / ‖e‖` over all axes but the first, float32 `[B]`; zero where both are zero."""
    axes = tuple(range(1, exact.ndim))
    norm = lambda x: jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=axes))
    difference = norm(approximation.astype(jnp.float32) - exact.astype(jnp.float32))
    size = norm(exact)
    return jnp.where(difference == 0, 0, difference / jnp.where(size == 0, 1, size))
