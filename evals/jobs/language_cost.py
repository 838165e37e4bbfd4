"""What a language model computes and reads, counted: where approximations can gain anything.

Shape letters: N tokens of a prompt, S landmarks.
"""

import dataclasses

from models.decoder import DecoderConfig

_BYTES = 2  # of a weight, a key or a value, in bfloat16


@dataclasses.dataclass(frozen=True)
class LanguageCost:
    """Of one prompt.

    Attributes:
      linear: multiply-adds of reading it, in projections and MLPs, and in the head for its last
        token.
      attention: multiply-adds of reading it, in causal attention, each token with those before.
      weight_bytes: of all weights that a new token is multiplied by.
      cache_bytes: of keys and values that it leaves.
    """

    linear: int
    attention: int
    weight_bytes: int
    cache_bytes: int

    @property
    def attention_share(self) -> float:
        """Attention's part of the arithmetic of reading the prompt."""
        return self.attention / (self.linear + self.attention)

    @property
    def cache_share(self) -> float:
        """The cache's part of the memory that is read for each token that is written."""
        return self.cache_bytes / (self.weight_bytes + self.cache_bytes)

    def most_speedup(self, share) -> float:
        """How many times faster the prompt is read at most, if attention cost nothing in that share
        of the blocks."""
        return 1 / (1 - share * self.attention_share)


def language_cost(config: DecoderConfig, num_tokens) -> LanguageCost:
    """Counts for a prompt of N tokens."""
    heads, groups = (n * config.head_dim for n in (config.num_heads, config.num_kv_heads))
    of_block = config.width * (2 * heads + 2 * groups + 3 * config.mlp_dim)
    head = config.width * config.vocab_size
    window = num_tokens if config.sliding_window is None else config.sliding_window
    window = min(window, num_tokens)
    seen = window * (window + 1) // 2 + (num_tokens - window) * window  # by all tokens together
    return LanguageCost(
        linear=config.depth * num_tokens * of_block + head,
        attention=config.depth * 2 * seen * heads,
        weight_bytes=_BYTES * (config.depth * of_block + head),
        cache_bytes=_BYTES * config.depth * 2 * num_tokens * groups,
    )


def with_landmarks(cost: LanguageCost, num_tokens, num_landmarks, share) -> LanguageCost:
    """The same with S landmarks in the cache in place of N tokens, in a share of the blocks."""
    kept = 1 - share * (1 - num_landmarks / num_tokens)
    return dataclasses.replace(cost, cache_bytes=round(kept * cost.cache_bytes))
