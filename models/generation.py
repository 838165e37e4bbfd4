"""Text written by a decoder, token by token, in one compiled loop.

Shape letters: B batch, N tokens of the prompt, T new tokens, V words, W width.
"""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
from flax import nnx

NO_TOKEN = -1  # behind the one at which a text stopped


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
      temperature: divides the logits; 0 for the likeliest token, which needs no key.
      top_k: among how many of the likeliest; None for all.
      top_p: among the likeliest whose probabilities, without the last of them, sum to less than
        this; None for all.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self):
        if self.temperature != 0 and not 1e-6 <= self.temperature < float("inf"):
            raise ValueError(  # logits over less overflow
                f"temperature must be 0, or at least 1e-6 and finite, got {self.temperature}"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.temperature == 0 and (self.top_k, self.top_p) != (None, None):
            raise ValueError(
                "top_k and top_p choose among tokens, and temperature=0 takes the likeliest: drop "
                "them, or set a temperature"
            )

    def pick(self, logits, key, step):
        """The next tokens int32 `[B]` of logits float32 `[B, V]`.

        A row's draw depends on the key, the step (which token it is) and the row's number, not on
        the other rows.
        """
        if self.temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        logits = self._among(logits / self.temperature)
        of_row = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, step), row))
        keys = of_row(jnp.arange(logits.shape[0]))
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)

    def _among(self, logits):
        """The logits with −∞ for the tokens that are not drawn."""
        if self.top_k is None and self.top_p is None:
            return logits
        ranked = jnp.sort(logits, axis=-1, descending=True)
        least = ranked[:, -1]
        if self.top_k is not None:
            least = ranked[:, min(self.top_k, ranked.shape[-1]) - 1]
        if self.top_p is not None:
            probabilities = jax.nn.softmax(ranked, axis=-1)
            before = jnp.cumsum(probabilities, axis=-1) - probabilities
            least_p = jnp.min(jnp.where(before < self.top_p, ranked, jnp.inf), axis=-1)
            least = jnp.maximum(least, least_p)
        return jnp.where(logits < least[:, None], -jnp.inf, logits)


def generate(
    decoder,
    embeddings,
    key_mask,
    *,
    max_new_tokens,
    stop_tokens=(),
    temperature=0.0,
    top_k=None,
    top_p=None,
    key=None,
    prefill=None,
    dropping=None,
    landmark_cache=None,
    positions=None,
    deepstack=(),
):
    """What the decoder writes behind prompts, int32 `[B, T]`: `NO_TOKEN` behind a stop token.

    A text ends with its first stop token, which is kept, or after T tokens; the loop ends with the
    last of the texts. Compiled once for each shape and setting.

    Args:
      decoder: a `Decoder`.
      embeddings: `[B, N, W]` of the prompts, padded on the left.
      key_mask: bool `[B, N]`, False on padding.
      max_new_tokens: T.
      stop_tokens: ids that end a text.
      temperature, top_k, top_p: as in `Sampling`.
      key: a `jax.random.key`, if the temperature is not 0. Equal keys draw equal texts.
      positions, deepstack: of the prompts, as in a call of the decoder.
      prefill, dropping, landmark_cache: as in `read_prompt`.

    Raises:
      ValueError: settings out of range, a key that is missing or that nothing would use, prompts
        that end in padding, more tokens, written ones included, than the model has positions, or
        what `read_prompt` refuses.
    """
    sampling = Sampling(float(temperature), top_k, top_p)
    max_new_tokens = operator.index(max_new_tokens)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if (key is None) != (sampling.temperature == 0):
        raise ValueError(
            "temperature=0 draws nothing: drop the key"
            if sampling.temperature == 0
            else f"temperature={temperature} draws tokens: pass key=jax.random.key(0)"
        )
    if not isinstance(key_mask, jax.core.Tracer) and not jnp.all(key_mask[:, -1]):
        raise ValueError(
            "a prompt ends in padding, and the text would go on behind it: pad on the left"
        )
    graphdef, state = nnx.split(decoder)
    stop_tokens = tuple(sorted({operator.index(token) for token in stop_tokens}))
    reading = prefill, landmark_cache
    settings = max_new_tokens, stop_tokens, sampling, reading
    prompts = dict(key_mask=key_mask, positions=positions, deepstack=deepstack, dropping=dropping)
    return _generate(graphdef, settings, state, embeddings, prompts, key)


def read_prompt(
    decoder,
    embeddings,
    key_mask,
    *,
    positions=None,
    deepstack=(),
    prefill=None,
    dropping=None,
    landmark_cache=None,
):
    """The states `[B, 1, W]` of prompts' last positions, and the cache that new tokens see.

    Args:
      decoder, embeddings, key_mask: as in `generate`.
      positions, deepstack: of the prompts, as in a call of the decoder.
      prefill, dropping: how the prompt is read, as in a decoder's call; None for exactly.
      landmark_cache: a `LandmarkCache`, through which new tokens see the prompt; None to see all.

    Raises:
      ValueError: as in a decoder's call, or a landmark cache that does not fit.
    """
    places = dict(positions=positions, deepstack=deepstack)
    how = dict(prefill=prefill, dropping=dropping, last_only=True)
    hidden, cache = decoder(embeddings, key_mask=key_mask, **places, **how)
    return hidden, cache if landmark_cache is None else landmark_cache.of_prompt(decoder, cache)


# nnx.jit would copy the weights.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(graphdef, settings, state, embeddings, prompts, key):
    decoder = nnx.merge(graphdef, state)
    max_new_tokens, stop_tokens, sampling, (prefill, landmark_cache) = settings
    batch = embeddings.shape[0]
    decoder.check_length(embeddings.shape[1] + max_new_tokens - 1)  # the last is not read

    def next_token(hidden, step):
        """The tokens of states `[B, N, W]`, and whether a text ends with them."""
        tokens = sampling.pick(decoder.logits_of(hidden[:, -1]), key, step)
        return tokens, jnp.isin(tokens, jnp.asarray(stop_tokens, jnp.int32))

    def goes_on(carry):
        step, _, ended, _, _ = carry
        return (step < max_new_tokens) & ~jnp.all(ended)

    def write(carry):
        step, last, ended, tokens, cache = carry
        real = jnp.ones((batch, 1), bool)
        hidden, cache = decoder(decoder.embed(last[:, None]), key_mask=real, cache=cache)
        new, ends = next_token(hidden, step)
        kept = jnp.where(ended, NO_TOKEN, new)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, kept[:, None], step, axis=1)
        return step + 1, new, ended | ends, tokens, cache

    how = dict(prefill=prefill, landmark_cache=landmark_cache)
    hidden, cache = read_prompt(decoder, embeddings, **prompts, **how)
    first, ended = next_token(hidden, 0)
    tokens = jnp.full((batch, max_new_tokens), NO_TOKEN, jnp.int32).at[:, 0].set(first)
    carry = jnp.int32(1), first, ended, tokens, cache.with_room(max_new_tokens - 1)
    return jax.lax.while_loop(goes_on, write, carry)[3]
