"""Which tokens of an image are massive, sinks or artifacts, found by a pass through some blocks.

A detector is a frozen dataclass; called with a vision tower, the residual stream x `[B, N, C]` in
front of block `start`, and the images, it gives a token set, bool `[B, N]`. It runs the blocks that
it needs with exact attention, and keeps nothing: the same images give the same tokens. Where the
model has no class token, the average query stands in for it (`fna_jax.class_token_proxy`).

Blocks are counted from 0; `block` is the one whose input and attention decide.
"""

import dataclasses

import jax.numpy as jnp

from fna_jax import artifact_tokens, attention_sinks, massive_by_attention, massive_by_norm


@dataclasses.dataclass(frozen=True)
class MassiveByAttention:
    """Massive tokens by the attention that they draw: `fna_jax.massive_by_attention`."""

    block: int
    threshold: float = 0.3

    @property
    def first_block(self) -> int:
        """Where the detection starts."""
        return self.block

    def __call__(self, tower, x, images, start):
        """bool `[B, N]`."""
        proxy = tower.probe(x, images, start, self.block)
        return massive_by_attention(proxy, num_prefix=tower.num_prefix, threshold=self.threshold)


@dataclasses.dataclass(frozen=True)
class MassiveByNorm:
    """Massive tokens by the gap in the norms of the block's input: `fna_jax.massive_by_norm`."""

    block: int
    min_ratio: float = 2.0

    @property
    def first_block(self) -> int:
        """Where the detection starts."""
        return self.block

    def __call__(self, tower, x, images, start):
        """bool `[B, N]`."""
        norms = token_norms(tower.advance(x, images, start, self.block))
        return massive_by_norm(norms, num_prefix=tower.num_prefix, min_ratio=self.min_ratio)


@dataclasses.dataclass(frozen=True)
class AttentionSinks:
    """Attention sinks: one after the other is masked from `first_block` to `block`.

    See `fna_jax.attention_sinks`. Each round runs these blocks once.
    """

    first_block: int
    block: int
    max_sinks: int = 64

    def __post_init__(self):
        if not 0 <= self.first_block <= self.block:
            raise ValueError(
                f"first_block must lie in 0..{self.block}, the block which decides, "
                f"got {self.first_block}"
            )
        if self.max_sinks < 1:
            raise ValueError(f"max_sinks must be at least 1, got {self.max_sinks}")

    def ranks(self, tower, x, images, start):
        """The round that found each sink, int32 `[B, N]`; 0 for other tokens."""
        x = tower.advance(x, images, start, self.first_block)
        return attention_sinks(
            lambda unread: tower.probe(x, images, self.first_block, self.block, unread),
            x.shape[:2],
            num_prefix=tower.num_prefix,
            max_sinks=self.max_sinks,
        )

    def __call__(self, tower, x, images, start):
        """bool `[B, N]`."""
        return self.ranks(tower, x, images, start) > 0


@dataclasses.dataclass(frozen=True)
class ArtifactTokens:
    """Attention sinks that are not massive."""

    sinks: AttentionSinks
    massive: MassiveByAttention | MassiveByNorm

    @property
    def first_block(self) -> int:
        """Where the detection starts."""
        return min(self.sinks.first_block, self.massive.first_block)

    @property
    def block(self) -> int:
        """The last block that is looked at."""
        return max(self.sinks.block, self.massive.block)

    def __call__(self, tower, x, images, start):
        """bool `[B, N]`."""
        ranks = self.sinks.ranks(tower, x, images, start)
        return artifact_tokens(ranks, self.massive(tower, x, images, start))


Detector = MassiveByAttention | MassiveByNorm | AttentionSinks | ArtifactTokens


def token_norms(x):
    """Norms of tokens `[B, N, C]`, float32 `[B, N]`."""
    return jnp.linalg.norm(x.astype(jnp.float32), axis=-1)
