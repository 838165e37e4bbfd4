"""Fast Nyström Attention and the exact attention it stands in for (arXiv 2507.16018).

Shape letters: B batch, N tokens, S landmarks, H heads, K key and value heads (a divisor of H),
D head dimension. Layout is Flax's, `[*B, N, H, D]`.
"""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fna_jax.checks import check_qkv, checked_key_mask, zero_padding
from fna_jax.landmarks import METHODS, Landmarks, select_landmarks
from fna_jax.softmax import cudnn_obstacle, softmax_attention

IMPLEMENTATIONS = (None, "xla")  # of FNA

_HIGHEST = jax.lax.Precision.HIGHEST


def fast_nystrom_attention(
    query,
    key,
    value,
    landmarks,
    *,
    scale=None,
    key_mask=None,
    inverse_steps=6,
    implementation=None,
):
    """Self-attention through landmarks, `softmax(c Q Ksᵀ) Z softmax(c Qs Kᵀ) V`, `[*B, N, H, D]`.

    Linear in N. Equal to exact attention when every token is a landmark and the inverse has
    converged. A landmark that is repeated counts twice.

    Args:
      query: `[*B, N, H, D]`.
      key, value: `[*B, N, K, D]`; fewer heads than `query` is grouped-query attention.
      landmarks: `Landmarks`, or integers `[*B, S]` below N; a negative one marks an empty slot.
      scale: c, multiplies every logit; `1/sqrt(D)` by default.
      key_mask: bool `[*B, N]`, True on real tokens. Padding is never attended to and is dropped
        from the landmarks; the outputs at padding are finite and mean nothing.
      inverse_steps: Newton–Schulz steps. Six are the method: stopping early is a spectral filter.
      implementation: "xla" or None.

    Raises:
      ValueError: shapes or dtypes that do not fit, or an implementation that cannot run.
    """
    landmarks, key_mask = checked_landmarks(query, key, value, landmarks, key_mask)
    landmark_key, landmark_value = landmark_key_value(
        query,
        key,
        value,
        landmarks,
        scale=scale,
        key_mask=key_mask,
        inverse_steps=inverse_steps,
        implementation=implementation,
    )
    scale = _default_scale(query, scale)
    query = zero_padding(query, key_mask)
    return softmax_attention(
        query, landmark_key, landmark_value, scale=scale, key_mask=landmarks.valid
    )


def landmark_key_value(
    query,
    key,
    value,
    landmarks,
    *,
    scale=None,
    key_mask=None,
    inverse_steps=6,
    implementation=None,
):
    """Keys `Ks` and effective values `Vs = Z softmax(c Qs Kᵀ) V` of the landmarks, `[*B, S, H, D]`.

    The pair can stand in for the layer's key-value cache: `softmax(c Q Ksᵀ) Vs` is
    `fast_nystrom_attention`. Empty slots have zero values, and must also be masked as keys.
    Arguments and errors are those of `fast_nystrom_attention`.
    """
    landmarks, key_mask = checked_landmarks(query, key, value, landmarks, key_mask)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"FNA runs through implementation='xla' or None, got {implementation!r}")
    scale = _default_scale(query, scale)
    query, key, value = (zero_padding(x, key_mask) for x in (query, key, value))

    landmark_query = _gather_tokens(query, landmarks.indices)  # [*B, S, H, D]
    landmark_key = _gather_tokens(key, landmarks.indices)  # [*B, S, K, D]
    landmark_key = jnp.repeat(landmark_key, query.shape[-2] // key.shape[-2], axis=-2)

    kernel = landmark_kernel(landmark_query, landmark_key, landmarks.valid, scale)  # A
    inverse = newton_schulz_inverse(kernel, inverse_steps)  # Z
    summary = softmax_attention(landmark_query, key, value, scale=scale, key_mask=key_mask)  # BV
    summary = jnp.where(landmarks.valid[..., None, None], summary, 0).astype(inverse.dtype)
    landmark_value = jnp.einsum("...hij,...jhd->...ihd", inverse, summary, precision=_HIGHEST)
    return landmark_key, landmark_value.astype(value.dtype)


def exact_attention(query, key, value, *, scale=None, key_mask=None, implementation=None):
    """Softmax attention, `softmax(c Q Kᵀ) V`, `[*B, N, H, D]`, in memory linear in the tokens.

    Args:
      query: `[*B, N, H, D]`.
      key, value: `[*B, M, K, D]`; fewer heads than `query` is grouped-query attention.
      scale: c, multiplies the logits; `1/sqrt(D)` by default.
      key_mask: bool `[*B, M]`, True on keys that take part. Without any the output is zero.
      implementation: "xla", blocks of queries; "cudnn", the fused kernel of NVIDIA GPUs for
        half precision without `key_mask`; None, the best that runs.

    Raises:
      ValueError: shapes or dtypes that do not fit, or an implementation that cannot run.
    """
    check_qkv(query, key, value)
    key_mask = checked_key_mask(key_mask, key)
    scale = _default_scale(query, scale)
    obstacle = cudnn_obstacle(query, key_mask)
    if implementation is None:
        implementation = "xla" if obstacle else "cudnn"
    if implementation == "cudnn":
        if obstacle:
            raise ValueError(f"implementation='cudnn' cannot run: {obstacle}; use None or 'xla'")
        flat = (x.reshape(-1, *x.shape[-3:]) for x in (query, key, value))
        output = jax.nn.dot_product_attention(*flat, scale=scale, implementation="cudnn")
        return output.reshape(query.shape)
    if implementation != "xla":
        raise ValueError(f"implementation must be None, 'xla' or 'cudnn', got {implementation!r}")
    key, value = zero_padding(key, key_mask), zero_padding(value, key_mask)
    return softmax_attention(query, key, value, scale=scale, key_mask=key_mask)


def newton_schulz_inverse(kernel, steps=6):
    """Approximate inverse of a kernel whose rows sum to one, `[..., S, S]`, at least float32.

    `Z₀ = Aᵀ / max_j Σ_i A[i, j]`, then `T = A Z;  Z ← ¼ Z (13 I − T (15 I − T (7 I − T)))`.
    A direction of singular value σ is kept with the weight u that `u₀ = σ² / ‖A‖₁` reaches under
    `u ← ¼ u (13 − u (15 − u (7 − u)))`, so few steps filter out small singular values, and stay
    finite on a singular kernel, where some forty steps in float32 would not.

    Raises:
      ValueError: a kernel that is not square, or a negative number of steps.
    """
    kernel = jnp.asarray(kernel)
    if kernel.ndim < 2 or kernel.shape[-1] != kernel.shape[-2]:
        raise ValueError(f"kernel must be [..., S, S], got shape {kernel.shape}")
    if steps < 0:
        raise ValueError(f"the number of Newton–Schulz steps must be at least 0, got {steps}")
    kernel = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    eye = jnp.eye(kernel.shape[-1], dtype=kernel.dtype)
    matmul = lambda a, b: jnp.matmul(a, b, precision=_HIGHEST)
    norm = jnp.max(jnp.sum(kernel, axis=-2), axis=-1)[..., None, None]
    inverse = jnp.swapaxes(kernel, -1, -2) / norm
    for _ in range(steps):
        product = matmul(kernel, inverse)
        inner = 15 * eye - matmul(product, 7 * eye - product)
        inverse = 0.25 * matmul(inverse, 13 * eye - matmul(product, inner))
    return inverse


@dataclasses.dataclass(frozen=True)
class FastNystromAttention:
    """The `attention_fn` of Flax's attention modules: landmarks are chosen and used in the layer.

    A frozen dataclass, so that equal settings compile once. A boolean key-padding mask is
    honoured. What FNA cannot honour raises: other masks, a bias, causal attention, active dropout,
    sowing of the weights, cross-attention, keywords it does not know.

    Attributes:
      num_landmarks: S.
      features: what landmarks are chosen on: "q", "k" or "v", averaged over heads. (The block's
        input is not visible here; the models in `models/` also offer "input".)
      method: "fps" or "random".
      guarantee: positions that are always landmarks; by default token 0, the class token. Registers
        belong here too. Empty for a model without either.
      seed: seeds the landmarks of method "random".
      inverse_steps, scale, implementation: as in `fast_nystrom_attention`.
    """

    num_landmarks: int
    features: str = "q"
    method: str = "fps"
    guarantee: tuple[int, ...] = (0,)
    seed: int = 0
    inverse_steps: int = 6
    scale: float | None = None
    implementation: str | None = None

    def __post_init__(self):
        if self.features not in ("q", "k", "v"):
            raise ValueError(f"features must be 'q', 'k' or 'v' here, got {self.features!r}")
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {METHODS}, got {self.method!r}")
        if self.num_landmarks < 1 or self.inverse_steps < 0:
            raise ValueError(
                "num_landmarks must be at least 1 and inverse_steps at least 0, got "
                f"{self.num_landmarks} and {self.inverse_steps}"
            )
        if self.implementation not in IMPLEMENTATIONS:
            raise ValueError(f"implementation must be None or 'xla', got {self.implementation!r}")
        object.__setattr__(self, "guarantee", tuple(self.guarantee))  # hashable, also from a list

    def __call__(
        self,
        query,
        key,
        value,
        bias=None,
        mask=None,
        *,
        broadcast_dropout=True,
        dropout_rng=None,
        dropout_rate=0.0,
        deterministic=False,
        dtype=None,
        precision=None,
        module=None,
        is_causal=False,
        input_positions=None,
        force_fp32_for_softmax=False,
        qk_attn_weights_einsum=None,
        attn_weights_value_einsum=None,
        **unknown,
    ):
        """FNA of `query` `[*B, N, H, D]`, `key`, `value` `[*B, N, K, D]`; keywords are Flax's."""
        # Honoured by construction: without dropout its key and shape mean nothing, and the softmax
        # is float32 with or without force_fp32_for_softmax.
        del dropout_rng, broadcast_dropout, force_fp32_for_softmax
        refused = {
            "bias": bias is not None,
            "is_causal": is_causal,
            "dropout_rate (set deterministic=True)": dropout_rate > 0.0 and not deterministic,
            "module (sow_weights: FNA forms no attention matrix)": module is not None,
            "input_positions": input_positions is not None,
            "qk_attn_weights_einsum": qk_attn_weights_einsum is not None,
            "attn_weights_value_einsum": attn_weights_value_einsum is not None,
            **{name: argument is not None for name, argument in unknown.items()},
        }
        if refused := [name for name, given in refused.items() if given]:
            raise ValueError(
                f"FastNystromAttention cannot honour {', '.join(refused)}; "
                "keep exact attention in this layer"
            )
        if query.shape[-3] != key.shape[-3]:
            raise ValueError(
                f"FNA is self-attention, but there are {query.shape[-3]} queries and "
                f"{key.shape[-3]} keys; keep exact attention in this layer (a pooling head?)"
            )
        dtype = dtype or jnp.result_type(query, key, value)
        query, key, value = (x.astype(dtype) for x in (query, key, value))
        key_mask = None if mask is None else _key_padding(mask, query)
        with _matmul_precision(precision):
            landmarks = self._select({"q": query, "k": key, "v": value}[self.features], key_mask)
            return fast_nystrom_attention(
                query,
                key,
                value,
                landmarks,
                scale=self.scale,
                key_mask=key_mask,
                inverse_steps=self.inverse_steps,
                implementation=self.implementation,
            )

    def _select(self, features, key_mask):
        features = jnp.mean(features.astype(jnp.float32), axis=-2)  # [*B, N, D]
        num_tokens = features.shape[-2]
        if outside := [p for p in self.guarantee if not 0 <= p < num_tokens]:
            raise ValueError(
                f"guarantee names {outside}, but there are {num_tokens} tokens (from 0)"
            )
        positions = jnp.zeros(num_tokens, bool).at[jnp.array(self.guarantee, int)].set(True)
        guarantee = jnp.broadcast_to(positions, features.shape[:-1])
        return select_landmarks(
            features,
            self.num_landmarks,
            method=self.method,
            guarantee=guarantee if key_mask is None else guarantee & key_mask,
            exclude=None if key_mask is None else ~key_mask,
            rng=jax.random.key(self.seed) if self.method == "random" else None,
        )


def landmark_kernel(landmark_query, landmark_key, valid, scale):
    """`A = softmax(c Qs Ksᵀ)` in at least float32, `[*B, H, S, S]`; an identity on empty slots.

    With the identity there the iteration works on the valid block as if it stood alone: column
    sums of A average one, so the norm in Z₀ is the valid block's.
    """
    dtype = jnp.promote_types(landmark_query.dtype, jnp.float32)
    logits = scale * jnp.einsum(
        "...ihd,...jhd->...hij",
        landmark_query.astype(dtype),
        landmark_key.astype(dtype),
        precision=_HIGHEST,
    )
    logits = jnp.where(valid[..., None, None, :], logits, jnp.finfo(dtype).min)
    return jnp.where(
        valid[..., None, :, None],
        jax.nn.softmax(logits, axis=-1),
        jnp.eye(valid.shape[-1], dtype=dtype),
    )


def _gather_tokens(x, indices):
    """`x[s]` on the token axis: `[*B, N, H, D]` and `[*B, S]` to `[*B, S, H, D]`."""
    return jnp.take_along_axis(x, indices[..., None, None], axis=-3)


def _default_scale(query, scale):
    return query.shape[-1] ** -0.5 if scale is None else scale


def checked_landmarks(query, key, value, landmarks, key_mask):
    """Landmarks without padding, and the key mask, of self-attention inputs that fit together."""
    check_qkv(query, key, value)
    if query.shape[-3] != key.shape[-3]:
        raise ValueError(
            f"FNA is self-attention, got {query.shape[-3]} queries and {key.shape[-3]} keys"
        )
    if not isinstance(landmarks, Landmarks):
        landmarks = Landmarks.from_indices(landmarks)
    same_shape = landmarks.indices.shape == landmarks.valid.shape
    if landmarks.indices.shape[:-1] != query.shape[:-3] or not same_shape:
        raise ValueError(
            f"landmarks must be {[*query.shape[:-3], 'S']} for a query of shape {query.shape}, "
            f"got indices {landmarks.indices.shape} and valid {landmarks.valid.shape}"
        )
    key_mask = checked_key_mask(key_mask, key)
    return landmarks.among(key_mask), key_mask


def _key_padding(mask, query):
    """The mask `[*B, N]` that Flax's boolean `[*B, H, N, N]` mask stands for, or an error."""
    batch, num_tokens = query.shape[:-3], query.shape[-3]
    if mask.dtype != jnp.bool_:
        raise ValueError(f"FNA honours boolean masks only, got {mask.dtype}: use mask.astype(bool)")
    if mask.ndim < 3 or mask.shape[-1] != num_tokens:
        raise ValueError(f"mask must be [*B, 1, 1, {num_tokens}], got shape {mask.shape}")
    if mask.shape[-3:-1] != (1, 1):
        known = None if isinstance(mask, jax.core.Tracer) else np.asarray(mask)  # also under jit
        if known is None or (known != known[..., :1, :1, :]).any():
            raise ValueError(
                "FNA honours key-padding masks, the same for all heads and queries: pass "
                f"[*B, 1, 1, {num_tokens}], got shape {mask.shape}"
            )
    return jnp.broadcast_to(mask[..., 0, 0, :], (*batch, num_tokens))


def _matmul_precision(precision):
    """A context in which products run at Flax's `precision`; None keeps the caller's default."""
    if precision is None:
        return contextlib.nullcontext()
    if isinstance(precision, jax.lax.Precision):
        precision = precision.name.lower()
    if not isinstance(precision, str):
        raise ValueError(f"precision must be a name or a jax.lax.Precision, got {precision!r}")
    return jax.default_matmul_precision(precision)
