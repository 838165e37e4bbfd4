"""What a language model computes and reads, counted: where approximations can gain anything.

Shape letters: N tokens of a prompt, S landmarks, L tokens of a run.
"""

import dataclasses
import json

from evals.jobs.cost import WORTH
from evals.running.workdir import claim_workdir, environment, write_atomically
from models.decoder import DecoderConfig
from models.prefill import NystromPrefill

_BYTES = 2  # of a weight, a key or a value, in bfloat16
_SHARE = 0.5  # of the blocks, that advice is about


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
    def prefill(self) -> int:
        """Multiply-adds of reading it."""
        return self.linear + self.attention

    @property
    def attention_share(self) -> float:
        """Attention's part of the arithmetic of reading the prompt."""
        return self.attention / self.prefill

    @property
    def read_bytes(self) -> int:
        """What each token that is written reads, right behind the prompt: weights and cache."""
        return self.weight_bytes + self.cache_bytes

    @property
    def cache_share(self) -> float:
        """The cache's part of that."""
        return self.cache_bytes / self.read_bytes

    def most_speedup(self, share) -> float:
        """How many times faster the prompt is read at most, if attention cost nothing in that share
        of the blocks."""
        return 1 / (1 - share * self.attention_share)


def language_cost(config: DecoderConfig, num_tokens) -> LanguageCost:
    """Counts for a prompt of N tokens."""
    return _of_blocks(config, [num_tokens] * config.depth)


def _of_blocks(config, tokens) -> LanguageCost:
    """Counts for a prompt of which each block reads so many tokens."""
    heads, groups = (n * config.head_dim for n in (config.num_heads, config.num_kv_heads))
    of_block = config.width * (2 * heads + 2 * groups + 3 * config.mlp_dim)
    head = config.width * config.vocab_size
    return LanguageCost(
        linear=sum(tokens) * of_block + head,
        attention=2 * heads * sum(_seen(config, number) for number in tokens),
        weight_bytes=_BYTES * (config.depth * of_block + head),
        cache_bytes=_BYTES * 2 * sum(tokens) * groups,
    )


def _seen(config, num_tokens):
    """How many tokens are seen in a block, by all together."""
    window = num_tokens if config.sliding_window is None else config.sliding_window
    window = min(window, num_tokens)
    return window * (window + 1) // 2 + (num_tokens - window) * window


def with_prefill(config: DecoderConfig, num_tokens, prefill) -> LanguageCost:
    """The same with a prompt that some layers read by settings of `models.prefill`.

    Counted as it is computed: of centroid attention the part that is masked, too.
    """
    cost, blocks = language_cost(config, num_tokens), len(prefill.layers)
    heads = config.num_heads * config.head_dim
    if isinstance(prefill, NystromPrefill):
        landmarks, channels = prefill.num_landmarks, config.head_dim
        channels = config.width if prefill.features == "input" else channels
        own = 4 * num_tokens * landmarks * heads + 2 * landmarks**2 * heads
        own += 24 * landmarks**3 * config.num_heads  # six steps of the inverse
        chosen = (blocks if prefill.resample else 1) * num_tokens * landmarks * channels
    else:
        length, chosen = prefill.run_length, 0
        own = 2 * num_tokens * (2 * length - (-num_tokens // length)) * heads
    replaced = blocks * 2 * heads * _seen(config, num_tokens)
    return dataclasses.replace(cost, attention=cost.attention - replaced + blocks * own + chosen)


def with_dropping(config: DecoderConfig, num_tokens, dropping) -> LanguageCost:
    """The same with a prompt of image tokens of which some go, as an `ImageDropping` says."""
    left = -(-num_tokens * dropping.kept // 100)
    before = 0 if dropping.block is None else dropping.block + 1
    return _of_blocks(config, [num_tokens] * before + [left] * (config.depth - before))


def with_landmarks(cost: LanguageCost, num_tokens, num_landmarks, share) -> LanguageCost:
    """The same with S landmarks in the cache in place of N tokens, in a share of the blocks."""
    kept = 1 - share * (1 - num_landmarks / num_tokens)
    return dataclasses.replace(cost, cache_bytes=round(kept * cost.cache_bytes))


def language_advice(config: DecoderConfig, num_tokens, num_landmarks) -> str:
    """What approximations can gain in this model, in a few sentences; honest when it is nothing.

    Args:
      config: of the model.
      num_tokens: N.
      num_landmarks: S, that could stay in the cache.
    """
    cost = language_cost(config, num_tokens)
    fewer = with_landmarks(cost, num_tokens, min(num_landmarks, num_tokens), _SHARE)
    gain, less = cost.most_speedup(_SHARE), cost.read_bytes / fewer.read_bytes
    text = (
        f"Language model: attention is {100 * cost.attention_share:.0f} % of the arithmetic of "
        f"reading {num_tokens:,} tokens. Without it in half of the {config.depth} blocks that "
        f"would be at most {gain:.2f} times faster. A token that is written reads "
        f"{1e-9 * cost.weight_bytes:.1f} GB of weights and {1e-9 * cost.cache_bytes:.2f} GB of "
        f"cache (bfloat16); {num_landmarks} landmarks in half of the blocks leave "
        f"{1e-9 * fewer.cache_bytes:.2f} GB, {less:.2f} times less to read."
    )
    if max(gain, less) < WORTH:
        text += (
            " That does not pay for one prompt of this length: use exact attention, or fewer "
            "tokens. Of many prompts at once each has its cache."
        )
    return text


def language_report(decoder: DecoderConfig, config, workdir, num_landmarks) -> str:
    """Writes `speed.json` with the advice on a model that has no vision tower to be timed.

    Arguments are the model's config, those of `evals.jobs.speed.speed_report`, and S.
    """
    folder = claim_workdir(config, workdir)
    record = {
        "model": config.model,
        "num_tokens": config.num_tokens,
        "advice": language_advice(decoder, config.num_tokens, num_landmarks),
        "environment": environment(),
    }
    write_atomically(folder / "speed.json", json.dumps(record, indent=2))
    return f"model: {config.model}\n\n{record['advice']}\n\nWritten to {folder}: speed.json"
