"""How a decoder reads a prompt where it does not do so exactly.

Shape letters: B batch, N tokens of a prompt, S landmarks, L tokens of a run, H heads, K key and
value heads (a divisor of H), D head dimension, W width.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fna_jax import FNAConfig, causal_centroid_attention, fast_nystrom_attention
from fna_jax.config import parse_blocks
from fna_jax.landmarks import select_in_layer
from fna_jax.runs import check_run_length
from fna_jax.tokens import attention_weights

from .attends import Attended, Record
from .cache import LayerCache


@dataclasses.dataclass(frozen=True)
class NystromPrefill:
    """Some layers read a prompt by FNA, as in the paper; the others exactly.

    FNA is not causal: behind its first layer every token knows the whole prompt. So of the states
    the last position's alone means what exact attention's does, and a decoder gives no other. Each
    layer leaves the keys and values that it projects of all tokens, and none of landmarks; new
    tokens attend to them exactly, or through a `LandmarkCache`.

    Attributes:
      layers: block indices, as in `FNAConfig`.
      num_landmarks: S, farthest points among the real tokens.
      features: what they are chosen on, as in `FNAConfig`; queries and keys as attention sees them.
      resample: choose landmarks in each of the layers; otherwise those of the first serve all.

    Raises:
      ValueError: a field outside its range.
    """

    layers: tuple[int, ...]
    num_landmarks: int
    features: str = "q"
    resample: bool = False

    causal = False

    def __post_init__(self):
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        object.__setattr__(self, "layers", FNAConfig(**settings).layers)

    def attention(self, states, landmarks, key_mask):
        """`[B, N, H, D]` and the landmarks for the next of the layers.

        Args:
          states: "input" `[B, N, W]` and, after the rotation, "q", "k" and "v".
          landmarks: of the layer before; () in the first.
          key_mask: bool `[B, N]`, False on padding.
        """
        if landmarks == () or self.resample:
            options = dict(method="fps", guarantee=(), key_mask=key_mask)
            landmarks = select_in_layer(states, self.features, self.num_landmarks, **options)
        qkv = (states[name] for name in "qkv")
        return fast_nystrom_attention(*qkv, landmarks, key_mask=key_mask), landmarks


@dataclasses.dataclass(frozen=True)
class CentroidPrefill:
    """Some layers read a prompt by causal centroid attention; the others exactly.

    Nothing comes from later tokens, so that all states mean what exact attention's do.

    Attributes:
      layers: block indices, as in `FNAConfig`.
      run_length: L, of `fna_jax.causal_centroid_attention`.

    Raises:
      ValueError: a field outside its range.
    """

    layers: tuple[int, ...]
    run_length: int

    causal = True

    def __post_init__(self):
        object.__setattr__(self, "layers", parse_blocks(self.layers, "layers"))
        check_run_length(self.run_length)

    def attention(self, states, landmarks, key_mask):
        """As in `NystromPrefill`, without landmarks."""
        qkv = (states[name] for name in "qkv")
        options = dict(run_length=self.run_length, key_mask=key_mask)
        return causal_centroid_attention(*qkv, **options), landmarks


@dataclasses.dataclass(frozen=True)
class PrefillAttention:
    """A layer's attention by such settings; its keys and values, a `LayerCache`, in the record."""

    prefill: NystromPrefill | CentroidPrefill
    key_mask: jax.Array

    def __call__(self, x, query, key, value, landmarks):
        states = {"input": x, "q": query, "k": key, "v": value}
        out, landmarks = self.prefill.attention(states, landmarks, self.key_mask)
        kept = LayerCache.of(key, value, self.key_mask)
        return Attended(out, landmarks, record=Record(kept=kept))


def watched(attend, key_mask):
    """`attend` with what each token receives of the last one's attention in the record."""

    def attend_and_watch(x, query, key, value, landmarks):
        attended = attend(x, query, key, value, landmarks)
        weights = attention_weights(query[:, -1:], key, key_mask=key_mask)  # [B, H, 1, N]
        received = jnp.mean(weights[:, :, 0], axis=1)
        return attended._replace(record=attended.record._replace(received=received))

    return attend_and_watch


def check_reading(config, *, cache, prefill, dropping, last_only):
    """Raises ValueError where a decoder of this config cannot read its tokens in such a way.

    Args:
      config: a `DecoderConfig`.
      cache, prefill, dropping, last_only: as in a decoder's call.
    """
    if prefill is None and dropping is None:
        return
    if not isinstance(prefill, NystromPrefill | CentroidPrefill | None):
        raise ValueError(
            f"prefill must be a NystromPrefill or a CentroidPrefill, got {type(prefill).__name__}"
        )
    if cache is not None:
        raise ValueError(
            "prefill and dropping are for a prompt that is read at once: drop the cache, or read "
            "these tokens exactly"
        )
    if config.sliding_window is not None:
        raise ValueError(
            f"prefill and dropping cannot honour a sliding window of {config.sliding_window} "
            "tokens: use a model without one"
        )
    if prefill is not None and prefill.layers[-1] >= config.depth:
        raise ValueError(
            f"the decoder has blocks 0 to {config.depth - 1}, got layers {prefill.layers}"
        )
    if dropping is not None and dropping.block >= config.depth - 1:
        raise ValueError(
            f"the decoder has blocks 0 to {config.depth - 1}, none of them behind block "
            f"{dropping.block}: drop tokens behind an earlier one"
        )
    if last_only:
        return
    why = "FNA is not causal" if dropping is None else "dropped tokens have no state"
    if dropping is not None or not prefill.causal:
        raise ValueError(
            f"{why}, so that of all positions the last alone can be asked for: set last_only=True"
        )
