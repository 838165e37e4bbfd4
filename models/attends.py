"""Which attention a block runs: exact, causal, or FNA with landmarks chosen here or before.

Each is a callable `(x, query, key, value, landmarks) -> (out, landmarks, record)`, where x
`[B, N, C]` is the block's input and the states are `[B, N, H, D]`.

Shape letters: B batch, N tokens, S landmarks, H heads, D head dimension, C width.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fna_jax import FNAConfig, exact_attention, fast_nystrom_attention, select_landmarks
from fna_jax.landmarks import Landmarks


def attend_exactly(x, query, key, value, landmarks):
    """Exact attention among all tokens."""
    del x
    return exact_attention(query, key, value), landmarks, None


def attend_causally(x, query, key, value, landmarks):
    """Exact attention to the tokens up to one's own, for text."""
    del x
    return jax.nn.dot_product_attention(query, key, value, is_causal=True), landmarks, None


@dataclasses.dataclass(frozen=True)
class LandmarkAttention:
    """FNA of one block, with the landmarks handed in or chosen here.

    Attributes:
      config: the FNA settings.
      num_prefix: leading tokens (class token, registers) that are always landmarks.
      rng: random key of this block's landmarks, for method "random".
      compare: let the block run exactly, and record the relative error of FNA, float32 `[B]`.
    """

    config: FNAConfig
    num_prefix: int
    rng: jax.Array | None
    compare: bool

    def __call__(self, x, query, key, value, landmarks):
        if landmarks is None or self.config.resample:
            landmarks = self.select(x, query, key, value)
        out = fast_nystrom_attention(
            query,
            key,
            value,
            landmarks,
            inverse_steps=self.config.inverse_steps,
            implementation=self.config.implementation,
        )
        if not self.compare:
            return out, landmarks, None
        exact = exact_attention(query, key, value)
        return exact, landmarks, relative_error(out, exact)

    def select(self, x, query, key, value) -> Landmarks:
        """Landmarks of a block with input x `[B, N, C]` and states `[B, N, H, D]`."""
        if self.config.features == "input":
            features = x
        else:
            states = {"q": query, "k": key, "v": value}[self.config.features]
            features = jnp.mean(states.astype(jnp.float32), axis=-2)  # [B, N, D]
        guarantee = None
        if self.config.guarantee_prefix and self.num_prefix:
            prefix = jnp.arange(features.shape[-2]) < self.num_prefix
            guarantee = jnp.broadcast_to(prefix, features.shape[:-1])
        return select_landmarks(
            features,
            self.config.num_landmarks,
            method=self.config.method,
            guarantee=guarantee,
            rng=self.rng,
        )


def vision_attends(fna: FNAConfig | None, depth: int, *, num_prefix, rng, compare):
    """The attention of each block of a vision encoder: exact, or FNA in `fna.layers`.

    Raises:
      ValueError: `rng` missing for random landmarks, or anything given that nothing would use.
    """
    uses_rng = fna is not None and fna.method == "random"
    if uses_rng and rng is None:
        raise ValueError("random landmarks need a key: call the model with rng=jax.random.key(0)")
    if rng is not None and not uses_rng:
        raise ValueError("rng was given, but no block draws random landmarks: drop it")
    if compare and fna is None:
        raise ValueError("compare=True needs FNA to compare: use models.with_attention first")

    attends = [attend_exactly] * depth
    for index in fna.layers if fna else ():
        block_rng = jax.random.fold_in(rng, index) if uses_rng else None
        attends[index] = LandmarkAttention(fna, num_prefix, block_rng, compare)
    return attends


def relative_error(approximation, exact):
    """`‖a − e‖ / ‖e‖` over all axes but the first, float32 `[B]`."""
    axes = tuple(range(1, exact.ndim))
    norm = lambda x: jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=axes))
    return norm(approximation.astype(jnp.float32) - exact.astype(jnp.float32)) / norm(exact)
