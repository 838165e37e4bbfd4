"""What the text towers share.

Shape letters: B batch, T text tokens, C width.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from .attends import attend_causally, attend_exactly
from .blocks import Encoder, LayerNorm
from .configs import EncoderConfig, check_choice, check_positive
from .inputs.cleaning import CLEANINGS


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """A text tower.

    Attributes:
      context_length: the most tokens that it takes.
      cleaning: of its texts before they are cut into tokens, one of `cleaning.CLEANINGS`.
    """

    vocab_size: int
    context_length: int
    encoder: EncoderConfig
    cleaning: str = dataclasses.field(default="none", kw_only=True)

    def __post_init__(self):
        check_positive(self, "vocab_size", "context_length")
        check_choice(self, "cleaning", CLEANINGS)


class TextTower(nnx.Module):
    """Token ids to one state. A family's tower is this with its own `causal` and `pool`."""

    causal: bool

    def __init__(self, config: TextConfig, *, dtype, param_dtype, rngs):
        width = config.encoder.width
        normal = nnx.initializers.normal(0.02)
        self.token_embedding = nnx.Embed(
            config.vocab_size,
            width,
            dtype=dtype,
            param_dtype=param_dtype,
            embedding_init=normal,
            rngs=rngs,
        )
        positions = normal(rngs.params(), (config.context_length, width), param_dtype)
        self.positions = nnx.Param(positions)
        self.encoder = Encoder(config.encoder, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.final_norm = LayerNorm(config.encoder, param_dtype=param_dtype, rngs=rngs)

    def embed(self, token_ids):
        """Tokens `[B, T, C]` before the first block.

        Raises:
          ValueError: token_ids that are not `[B, T]` with T up to the context length.
        """
        context_length = self.positions.shape[0]
        if token_ids.ndim != 2 or not 1 <= token_ids.shape[1] <= context_length:
            raise ValueError(
                f"token_ids must be [B, T] with T in 1..{context_length}, got {token_ids.shape}"
            )
        x = self.token_embedding(token_ids)
        return x + self.positions[: token_ids.shape[1]].astype(x.dtype)

    def pool(self, tokens, token_ids):
        """The state `[B, C]` that stands for a text, of its tokens `[B, T, C]`."""
        raise NotImplementedError

    def __call__(self, token_ids):
        """Pooled text states `[B, C]` of int token_ids `[B, T]`, T up to the context length."""
        token_ids = jnp.asarray(token_ids)
        tokens, _, _ = self.encoder(self.embed(token_ids), self._attends())
        return self.final_norm(self.pool(tokens, token_ids))

    def hidden_states(self, token_ids):
        """Tokens `[B, T, C]` after the embedding and after each block."""
        return self.encoder.hidden_states(self.embed(jnp.asarray(token_ids)), self._attends())

    def _attends(self):
        attend = attend_causally if self.causal else attend_exactly
        return [attend] * len(self.encoder.blocks)
