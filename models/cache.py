"""What a decoder keeps of the tokens before, and attention to it.

Shape letters: B batch, N new tokens, M slots, H heads, K key and value heads (a divisor of H), D
head dimension.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from fna_jax.softmax import softmax_attention

from .attends import Attended, Record


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer, in slots of which the first are filled.

    Attributes:
      key, value: `[B, M, K, D]`, keys after the rotation.
      log_mass: float32 `[B, M]`, logarithms of how many tokens a slot stands for: 0 for one token,
        −∞ for padding and for a slot that is still empty.
      filled: int32, how many are filled.
    """

    key: jax.Array
    value: jax.Array
    log_mass: jax.Array
    filled: jax.Array

    @classmethod
    def of(cls, key, value, key_mask):
        """That of the tokens alone whose keys and values `[B, N, K, D]` these are, all filled."""
        return cls(key, value, _log_mass(key_mask), jnp.asarray(key.shape[1], jnp.int32))

    def appended(self, key, value, key_mask):
        """With N more tokens.

        Raises:
          ValueError: fewer slots are free. Under `jit` that cannot be known, and the last slots are
            overwritten: `Cache.with_room` makes as many as will be needed.
        """
        num_new, num_slots = key.shape[1], self.key.shape[1]
        if not isinstance(self.filled, jax.core.Tracer) and self.filled + num_new > num_slots:
            raise ValueError(
                f"{num_new} more tokens do not fit into a cache of {num_slots} slots, of which "
                f"{self.filled} are filled: make room with cache.with_room({num_new})"
            )
        start = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1)
        put = lambda slots, new: start(slots, new.astype(slots.dtype), self.filled)
        return LayerCache(
            put(self.key, key),
            put(self.value, value),
            put(self.log_mass, _log_mass(key_mask)),
            self.filled + num_new,
        )

    def with_room(self, num_tokens):
        """With so many more slots, empty."""
        grow = lambda x, fill: jnp.pad(
            x, [(0, 0), (0, num_tokens)] + [(0, 0)] * (x.ndim - 2), constant_values=fill
        )
        return LayerCache(
            grow(self.key, 0), grow(self.value, 0), grow(self.log_mass, -jnp.inf), self.filled
        )

    def attention(self, query, *, window=None):
        """Softmax attention of the N tokens that came last, `[B, N, H, D]`, to those up to each.

        Slots count with their mass: `softmax(q kᵀ / √D + log_mass) v`.

        Args:
          query: `[B, N, H, D]`.
          window: how many slots a token sees, its own among them; None for all.
        """
        slots, first = jnp.arange(self.key.shape[1]), self.filled - query.shape[1]

        def removed(positions):
            """bool `[1, 1, T, M]` of queries `[1, T]`."""
            own = first + positions[:, None, :, None]
            unseen = slots > own
            return unseen if window is None else unseen | (slots <= own - window)

        options = dict(scale=query.shape[-1] ** -0.5)
        if query.shape[1] > 1:
            options |= dict(log_mass=self.log_mass, removed=removed)
        else:  # a mask of keys alone, which all kernels take
            gone = removed(jnp.zeros((1, 1), jnp.int32))[0, 0]
            options |= dict(log_mass=jnp.where(gone, -jnp.inf, self.log_mass))
        return softmax_attention(query, self.key, self.value, **options)


def _log_mass(key_mask):
    return jnp.where(key_mask, 0.0, -jnp.inf).astype(jnp.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What a decoder keeps of the tokens before: an argument and a return value, of static shape.

    Attributes:
      layers: one per block.
      position: int32 `[B]`, that of the next token.
    """

    layers: tuple[LayerCache, ...]
    position: jax.Array

    def with_room(self, num_tokens) -> "Cache":
        """With room for so many more tokens."""
        return Cache(tuple(layer.with_room(num_tokens) for layer in self.layers), self.position)

    @property
    def num_bytes(self) -> int:
        """Of all keys and values, which decoding reads for each token."""
        return sum(layer.key.nbytes + layer.value.nbytes for layer in self.layers)


@dataclasses.dataclass(frozen=True)
class CausalAttention:
    """Exact attention of a block's tokens to those before and to themselves.

    What the block keeps, a `LayerCache`, is in the record.

    Attributes:
      key_mask: bool `[B, N]`, False on padding.
      before: of the tokens before; None for none.
      window: as in `LayerCache.attention`.
    """

    key_mask: jax.Array
    before: LayerCache | None
    window: int | None

    def __call__(self, x, query, key, value, landmarks):
        del x
        if self.before is None:
            cache = LayerCache.of(key, value, self.key_mask)
        else:
            cache = self.before.appended(key, value, self.key_mask)
        out = cache.attention(query, window=self.window)
        return Attended(out, landmarks, record=Record(kept=cache))
