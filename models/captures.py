"""What a pass through a vision tower keeps for a look: norms, outputs, values, attention."""

import dataclasses
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fna_jax import FNAConfig
from fna_jax.config import config_by_block, parse_blocks

from .detectors import token_norms
from .interventions import check_block


class Seen(typing.NamedTuple):
    """A block in passing: its number, its input x `[B, N, C]`, and its states `[B, N, H, D]`.

    Query and key are as attention sees them, after any rotation; `out_kernel` is `[H, D, C]`, as in
    `fna_jax.suppression_matrix`.
    """

    block: int
    x: jax.Array
    query: jax.Array
    key: jax.Array
    value: jax.Array
    out_kernel: jax.Array
    weights_of: Callable

    def weights(self):
        """The attention matrix that the block applies, after interventions.

        Raises:
          ValueError: the block runs FNA and has none.
        """
        return self.weights_of(self.query, self.key)

    def mean_weights(self):
        """Its average over heads, float32 `[B, N, N]`, added up head after head."""
        heads = lambda states: jnp.moveaxis(states, 2, 0)[..., None, :]  # [H, B, N, 1, D]

        def add(total, states):
            return total + self.weights_of(*states)[:, 0], None

        batch, num_tokens, num_heads, _ = self.query.shape
        total = jnp.zeros((batch, num_tokens, num_tokens), jnp.float32)
        return jax.lax.scan(add, total, (heads(self.query), heads(self.key)))[0] / num_heads


@dataclasses.dataclass(frozen=True)
class Capture:
    """What to keep of a pass. Blocks are tuples of numbers from 0, or text like "13:24".

    Attributes:
      norms: those of all tokens, in front of the first block and after each.
      outputs, values: blocks whose output, or values, to keep.
      features: blocks whose output to keep as a map of the image, of the patches alone.
      finished: do to the features what the tower does to the tokens of its last block, a layer norm
        in most families, as heads on DINOv2 want it.
      attention: blocks whose attention matrix to keep: memory quadratic in the tokens. A block that
        runs FNA has none.
      per_head: keep these matrices per head, not averaged.
      observe: any further function of what is `Seen` in a block, called in each.
    """

    norms: bool = False
    outputs: tuple[int, ...] | str = ()
    values: tuple[int, ...] | str = ()
    features: tuple[int, ...] | str = ()
    finished: bool = False
    attention: tuple[int, ...] | str = ()
    per_head: bool = False
    observe: Callable[[Seen], typing.Any] | None = None

    def __post_init__(self):
        for name in ("outputs", "values", "features", "attention"):
            if (blocks := getattr(self, name)) != ():
                object.__setattr__(self, name, parse_blocks(blocks, name))
        if self.finished and not self.features:
            raise ValueError("finished=True is about features, and those of no block are captured")
        if self.per_head and not self.attention:
            raise ValueError("per_head=True is about attention, and no block of it is captured")

    def check(self, depth, fna: tuple[FNAConfig, ...]):
        """Raises ValueError for blocks that do not exist or have no attention matrix."""
        for block in (*self.outputs, *self.values, *self.features, *self.attention):
            check_block(block, depth)
        if without := sorted(set(self.attention) & config_by_block(fna).keys()):
            raise ValueError(
                f"blocks {without} run FNA, which forms no attention matrix: capture it from the "
                "exact model (models.with_attention(model, None))"
            )

    def keep(self, seen: Seen) -> dict:
        """What to keep of a block."""
        kept = {"norms": token_norms(seen.x)} if self.norms else {}
        if seen.block - 1 in (*self.outputs, *self.features):
            kept["input"] = seen.x
        if seen.block in self.values:
            kept["values"] = seen.value
        if seen.block in self.attention:
            kept["attention"] = seen.weights() if self.per_head else seen.mean_weights()
        if self.observe is not None:
            kept["observed"] = self.observe(seen)
        return kept


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Captured:
    """What was kept; the dictionaries are by block.

    Attributes:
      norms: float32 `[1 + depth, B, N]`, or None.
      outputs: `[B, N, C]` each.
      values: `[B, N, H, D]` each.
      features: `[B, h, w, C]` each, h and w the patches down and across.
      attention: float32 `[B, N, N]` each, or `[B, H, N, N]` per head.
      observed: what `Capture.observe` gave.
    """

    norms: jax.Array | None
    outputs: dict[int, jax.Array]
    values: dict[int, jax.Array]
    features: dict[int, jax.Array]
    attention: dict[int, jax.Array]
    observed: dict[int, typing.Any]

    @classmethod
    def of(cls, capture: Capture, kept: list[dict], tokens, as_features):
        """What was kept of a pass.

        Args:
          capture: what was asked for.
          kept: in each block.
          tokens: `[B, N, C]` after the last.
          as_features: a function of a block's output `[B, N, C]` and `Capture.finished`.
        """
        by_block = lambda name: {i: block[name] for i, block in enumerate(kept) if name in block}
        inputs = {**by_block("input"), len(kept): tokens}
        norms = [block["norms"] for block in kept if capture.norms]
        return cls(
            norms=jnp.stack([*norms, token_norms(tokens)]) if capture.norms else None,
            outputs={block: inputs[block + 1] for block in capture.outputs},
            values=by_block("values"),
            features={
                block: as_features(inputs[block + 1], capture.finished)
                for block in capture.features
            },
            attention=by_block("attention"),
            observed=by_block("observed"),
        )
