"""Language models that only decode: Llama 2, Vicuna, Mistral, Qwen2, Qwen3 and Qwen3-VL's.

Shape letters: B batch, N tokens, V words, W width, H heads, K key and value heads (a divisor of H),
D head dimension.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .blocks import GatedMlp, adding, identity, run_blocks, states_around
from .cache import Cache, CausalAttention, LayerCache
from .configs import ACTIVATIONS, ModelConfig, check_choice, check_positive
from .prefill import PrefillAttention, check_reading, watched
from .rope import UNSCALED, RopeScaling, interleaved_axes, token_angles
from .rotary import rotate


@dataclasses.dataclass(frozen=True)
class DecoderConfig(ModelConfig):
    """A decoder.

    Attributes:
      max_positions: the most tokens that it takes, those that it writes among them.
      rope_theta, rope_scaling: of the rotary positions.
      norm_epsilon: of the RMS norms.
      qkv_bias: whether query, key and value add a bias.
      qk_norm: whether the heads of query and key go through an RMS norm of their own.
      tied_head: whether the embeddings of the words are the head's weights, too.
      sliding_window: how many tokens each attends to, itself among them; None for all.
      rope_sections: of the planes of a head how many turn by a token's time, row and column, where
        tokens have places in images; empty where they have none.
    """

    vocab_size: int
    width: int
    depth: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    max_positions: int
    rope_theta: float
    norm_epsilon: float
    rope_scaling: RopeScaling = UNSCALED
    qkv_bias: bool = False
    qk_norm: bool = False
    tied_head: bool = False
    sliding_window: int | None = None
    activation: str = "silu"
    rope_sections: tuple[int, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        sizes = ("vocab_size", "width", "depth", "num_heads", "num_kv_heads", "head_dim")
        check_positive(self, *sizes, "mlp_dim", "max_positions", "rope_theta")
        check_choice(self, "activation", ACTIVATIONS)
        if self.sliding_window is not None:
            check_positive(self, "sliding_window")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} does not divide by num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"rotary positions need heads of even size, got {self.head_dim}")
        if self.rope_sections:
            _check_sections(self)


def _check_sections(config):
    """Raises ValueError for sections that do not share out a head's planes in turns."""
    sections, planes = config.rope_sections, config.head_dim // 2
    shared = len(sections) == 3 and min(sections) > 0 and sum(sections) == planes
    if not shared or tuple(np.bincount(interleaved_axes(sections), minlength=3)) != sections:
        raise ValueError(
            f"rope_sections must share the {planes} planes of a head between time, row and column, "
            f"in turns, the first having what is left; got {sections}"
        )


_LLAMA_2_7B = DecoderConfig(32000, 4096, 32, 32, 32, 128, 11008, 4096, 1e4, 1e-5)
_MISTRAL_7B = DecoderConfig(32000, 4096, 32, 32, 8, 128, 14336, 32768, 1e6, 1e-5)
VARIANTS = {
    "llama-2-7b": _LLAMA_2_7B,
    "vicuna-7b-v1.5": _LLAMA_2_7B,
    "mistral-7b-v0.1": dataclasses.replace(_MISTRAL_7B, rope_theta=1e4, sliding_window=4096),
    "mistral-7b-v0.2": _MISTRAL_7B,
    "qwen2-0.5b": DecoderConfig(
        *(151936, 896, 24, 14, 2, 64, 4864, 131072, 1e6, 1e-6), qkv_bias=True, tied_head=True
    ),
    "qwen3-0.6b": DecoderConfig(
        *(151936, 1024, 28, 16, 8, 128, 3072, 40960, 1e6, 1e-6), qk_norm=True, tied_head=True
    ),
}


class RMSNorm(nnx.Module):
    """x `[..., C]` over its root mean square, times a learned scale; in float32 (1910.07467)."""

    def __init__(self, width, epsilon, *, param_dtype):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(width, param_dtype))

    def __call__(self, x):
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        wide *= jax.lax.rsqrt(mean_square + self.epsilon)
        return (wide * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class GroupedAttention(nnx.Module):
    """Projections of grouped-query attention, with the leaves of `blocks.Attention`."""

    def __init__(self, config: DecoderConfig, *, dtype, param_dtype, rngs):
        linear = functools.partial(
            nnx.LinearGeneral, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        heads, groups = ((n, config.head_dim) for n in (config.num_heads, config.num_kv_heads))
        self.query = linear(config.width, heads, use_bias=config.qkv_bias)
        self.key = linear(config.width, groups, use_bias=config.qkv_bias)
        self.value = linear(config.width, groups, use_bias=config.qkv_bias)
        self.out = linear(heads, config.width, axis=(-2, -1), use_bias=False)
        self.query_norm, self.key_norm = (
            RMSNorm(config.head_dim, config.norm_epsilon, param_dtype=param_dtype)
            if config.qk_norm
            else identity
            for _ in range(2)
        )

    def project(self, x):
        """Query `[B, N, H, D]`, key and value `[B, N, K, D]` of x `[B, N, W]`, not yet rotated."""
        return self.query_norm(self.query(x)), self.key_norm(self.key(x)), self.value(x)


class DecoderBlock(nnx.Module):
    """Pre-norm block with RMS norms and a gated MLP."""

    def __init__(self, config: DecoderConfig, *, dtype, param_dtype, rngs):
        norm = functools.partial(
            RMSNorm, config.width, config.norm_epsilon, param_dtype=param_dtype
        )
        dtypes = dict(dtype=dtype, param_dtype=param_dtype)
        self.norm1 = norm()
        self.attention = GroupedAttention(config, **dtypes, rngs=rngs)
        self.norm2 = norm()
        self.mlp = GatedMlp(config, use_bias=False, **dtypes, rngs=rngs)

    def __call__(self, x, landmarks, attend):
        """x `[B, N, W]` and the landmarks after this block, and what `attend` recorded."""
        query, key, value = self.attention.project(self.norm1(x))
        attended = attend(x, query, key, value, landmarks)
        x = x + self.attention.out(attended.out)
        return x + self.mlp(self.norm2(x)), attended.landmarks, attended.record


class Decoder(nnx.Module):
    """Embeddings of tokens to the states that the next tokens are read from."""

    def __init__(self, config: DecoderConfig, *, rngs):
        self.config, dtypes = config, config.dtypes()
        self.token_embedding = nnx.Embed(
            config.vocab_size,
            config.width,
            embedding_init=nnx.initializers.normal(0.02),
            **dtypes,
            rngs=rngs,
        )
        self.blocks = nnx.List(
            [DecoderBlock(config, **dtypes, rngs=rngs) for _ in range(config.depth)]
        )
        param_dtype = dtypes["param_dtype"]
        self.final_norm = RMSNorm(config.width, config.norm_epsilon, param_dtype=param_dtype)
        if not config.tied_head:
            self.head = nnx.Linear(
                config.width, config.vocab_size, use_bias=False, **dtypes, rngs=rngs
            )

    def embed(self, tokens):
        """Embeddings `[B, N, W]` of token ids int `[B, N]`."""
        return self.token_embedding(jnp.asarray(tokens))

    def init_cache(self, batch, length) -> Cache:
        """An empty cache with room for so many tokens.

        Raises:
          ValueError: more than the model has positions.
        """
        config = self.config
        self.check_length(length)
        states = jnp.zeros((batch, length, config.num_kv_heads, config.head_dim), config.dtype)
        masses = jnp.full((batch, length), -jnp.inf, jnp.float32)
        layer = LayerCache(states, states, masses, jnp.zeros((), jnp.int32))
        return Cache((layer,) * config.depth, jnp.zeros(batch, jnp.int32))

    def __call__(
        self,
        embeddings,
        *,
        key_mask,
        positions=None,
        deepstack=(),
        cache=None,
        prefill=None,
        dropping=None,
        last_only=False,
    ):
        """States after the last norm `[B, N, W]`, for `logits_of`, and the cache with the tokens.

        Without a cache the tokens are the first ones, and the cache that is returned has no slot
        besides theirs: `cache.with_room(T)` has, for T more tokens.

        Args:
          embeddings: `[B, N, W]`.
          key_mask: bool `[B, N]`, False on padding, which changes nothing. Texts of unequal length
            are padded on the left.
          positions: int `[B, N]`, or `[B, N, 3]` with `rope_sections`: time, row and column. By
            default the tokens are counted, and padding is not.
          deepstack: `[B, N, W]` each, added to the states after the first blocks, one for each.
          cache: of the tokens before.
          prefill: one of `models.prefill`, by which some layers read the tokens; None for exactly.
          dropping: an `image_tokens.InnerDropping`, by which later layers read fewer; None for all.
          last_only: whether the states are those of the last position alone, `[B, 1, W]`. With FNA
            or dropping they have to be.

        Raises:
          ValueError: shapes that do not fit, more new tokens than the model has positions, or than
            the cache has free slots, as in `LayerCache.appended`; what `check_reading` refuses.
        """
        embeddings, key_mask = self._checked(embeddings, key_mask)
        how = dict(cache=cache, prefill=prefill)
        check_reading(self.config, dropping=dropping, last_only=last_only, **how)
        if positions is None:
            before = 0 if cache is None else cache.position[:, None]
            counts = before + jnp.cumsum(key_mask, axis=1, dtype=jnp.int32)
            positions, following = jnp.maximum(counts - 1, 0), counts[:, -1]
        else:
            self._check_positions(positions, key_mask)
            following = positions[:, -1].reshape(len(positions), -1).max(axis=1) + 1
        run = functools.partial(self._run, **how)
        if dropping is not None:
            run = functools.partial(dropping.run, run)
        x, records = run(embeddings, key_mask, positions, deepstack)
        layers = tuple(record.kept for record in records)
        return self.final_norm(x[:, -1:] if last_only else x), Cache(layers, following)

    def _run(self, x, key_mask, positions, deepstack=(), *, start=0, stop=None, **how):
        """x `[B, N, W]` after the blocks from `start` to in front of `stop`, and their records."""
        attends = self._attends(key_mask, positions, **how)[start:stop]
        x, _, records = run_blocks(self._blocks_with(deepstack)[start:stop], x, attends)
        return x, records

    def logits_of(self, hidden):
        """Logits float32 `[..., V]` of the next token, of states `[..., W]`."""
        kernel = self.token_embedding.embedding[...].T
        if not self.config.tied_head:
            kernel = self.head.kernel[...]
        kernel = kernel.astype(hidden.dtype)
        return jnp.einsum("...w,wv->...v", hidden, kernel, preferred_element_type=jnp.float32)

    def hidden_states(self, embeddings, *, key_mask, positions=None, deepstack=()):
        """`[B, N, W]` before the first block and after each of them; arguments as in a call."""
        embeddings, key_mask = self._checked(embeddings, key_mask)
        if positions is None:
            positions = jnp.maximum(jnp.cumsum(key_mask, axis=1) - 1, 0)
        blocks = self._blocks_with(deepstack)
        return states_around(blocks, embeddings, self._attends(key_mask, positions))

    def _blocks_with(self, deepstack):
        """The blocks, of which the first add something to the states behind them."""
        if len(deepstack) > self.config.depth:
            raise ValueError(
                f"{len(deepstack)} features to add, but the model has {self.config.depth} blocks"
            )
        first = [adding(*pair) for pair in zip(self.blocks, deepstack)]
        return [*first, *list(self.blocks)[len(first) :]]

    def _attends(self, key_mask, positions, *, cache=None, prefill=None, watch=None):
        """Each block's attention, which first rotates queries and keys; block `watch` `watched`."""
        layers = [None] * self.config.depth if cache is None else cache.layers
        angles = token_angles(
            positions,
            self.config.head_dim,
            theta=self.config.rope_theta,
            scaling=self.config.rope_scaling,
            sections=self.config.rope_sections,
        )
        turn = functools.partial(rotate, angles=angles, num_prefix=0)

        def rotated(attend):
            return lambda x, query, key, *rest: attend(x, turn(query), turn(key), *rest)

        attends = [
            PrefillAttention(prefill, key_mask)
            if prefill is not None and index in prefill.layers
            else CausalAttention(key_mask, layer, self.config.sliding_window)
            for index, layer in enumerate(layers)
        ]
        if watch is not None:
            attends[watch] = watched(attends[watch], key_mask)
        return [rotated(attend) for attend in attends]

    def _checked(self, embeddings, key_mask):
        """Both, with zeros for padding: a NaN there must not reach a product."""
        embeddings, key_mask = jnp.asarray(embeddings), jnp.asarray(key_mask)
        if embeddings.ndim != 3 or embeddings.shape[-1] != self.config.width:
            raise ValueError(
                f"embeddings must be [B, N, {self.config.width}], got {list(embeddings.shape)}"
            )
        if key_mask.shape != embeddings.shape[:2] or key_mask.dtype != jnp.bool_:
            raise ValueError(
                f"key_mask must be bool{list(embeddings.shape[:2])}, True on real tokens, "
                f"got {key_mask.dtype}{list(key_mask.shape)}"
            )
        self.check_length(embeddings.shape[1])
        return jnp.where(key_mask[..., None], embeddings, 0), key_mask

    def _check_positions(self, positions, key_mask):
        """Raises ValueError for other positions than the tokens can have."""
        axes = [(), (3,)] if self.config.rope_sections else [()]
        if positions.shape not in [(*key_mask.shape, *more) for more in axes]:
            shapes = " or ".join(str([*key_mask.shape, *more]) for more in axes)
            raise ValueError(f"positions must be {shapes}, got {list(positions.shape)}")

    def check_length(self, num_tokens):
        """Raises ValueError for more tokens than positions, or none."""
        if not 1 <= num_tokens <= self.config.max_positions:
            raise ValueError(
                f"{num_tokens} tokens, but the model has positions for 1 to "
                f"{self.config.max_positions}: shorten the text, or write fewer new tokens"
            )
