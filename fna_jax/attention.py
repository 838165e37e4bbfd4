"""Fast Nyström Attention and the exact attention it stands in for (arXiv 2507.16018).

Shape letters: B batch, N tokens, S landmarks, H heads, K key and value heads (a divisor of H),
D head dimension. Layout is Flax's, `[*B, N, H, D]`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fna_jax.checks import check_qkv, checked_key_mask, spread_heads, zero_padding
from fna_jax.flax_calls import dropout_is_active, exact_call, matmul_precision, read_mask
from fna_jax.landmarks import METHODS, Landmarks, select_in_layer
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
      key, value: `[*B, N, K, D]`; fewer heads than `query` is grouped-query attention. The values'
        head dimension, and so the output's, may be another.
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
    landmark_key = spread_heads(landmark_key, query.shape[-2])

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
      key, value: `[*B, M, K, D]`; fewer heads than `query` is grouped-query attention. The values'
        head dimension, and so the output's, may be another.
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
    obstacle = cudnn_obstacle(query, value, key_mask)
    if implementation is None:
        implementation = "xla" if obstacle else "cudnn"
    if implementation == "cudnn":
        if obstacle:
            raise ValueError(f"implementation='cudnn' cannot run: {obstacle}; use None or 'xla'")
        flat = (x.reshape(-1, *x.shape[-3:]) for x in (query, key, value))
        output = jax.nn.dot_product_attention(*flat, scale=scale, implementation="cudnn")
        return output.reshape(query.shape)  # cuDNN's values have the keys' dimension
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
    eye = jnp.expand_dims(eye, range(kernel.ndim - 2))
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

    A frozen dataclass, so that equal settings compile once. A mask of padding is honoured, boolean
    or of zeros and ones, `[*B, 1, 1, N]` or, as `make_attention_mask` gives it, `[*B, 1, N, N]`.
    What FNA cannot honour raises: other masks, a bias, causal attention, cross-attention, fewer
    tokens than landmarks, active dropout, sowing of the weights, keywords it does not know.

    Attributes:
      num_landmarks: S.
      features: what landmarks are chosen on: "q", "k" or "v", averaged over heads. (The block's
        input is not visible here; the models in `models/` also offer "input".)
      method: "fps" or "random".
      guarantee: positions that are always landmarks; by default token 0, the class token. Registers
        belong here too. For a model without a class token (SigLIP, and others that pool) pass (),
        or the first patch is a landmark always.
      seed: seeds the landmarks of method "random".
      inverse_steps, scale, implementation: as in `fast_nystrom_attention`. The last two may come
        with the call instead.
      mask_is_padding: that masks `[*B, 1, N, N]` are of padding. Under `jit` their values are not
        known, so that they raise unless this says so. Where one is causal the result is wrong.
      otherwise: "raise", or "exact" for exact attention where there are other numbers of queries
        and keys, fewer tokens than landmarks, a bias, or a mask that is known not to be of padding.
    """

    num_landmarks: int
    features: str = "q"
    method: str = "fps"
    guarantee: tuple[int, ...] = (0,)
    seed: int = 0
    inverse_steps: int = 6
    scale: float | None = None
    implementation: str | None = None
    mask_is_padding: bool = False
    otherwise: str = "raise"

    def __post_init__(self):
        for name, choices in (
            ("features", ("q", "k", "v")),
            ("method", METHODS),
            ("implementation", IMPLEMENTATIONS),
            ("mask_is_padding", (False, True)),
            ("otherwise", ("raise", "exact")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, choices))} here, "
                    f"got {getattr(self, name)!r}"
                )
        if self.num_landmarks < 1 or self.inverse_steps < 0:
            raise ValueError(
                "num_landmarks must be at least 1 and inverse_steps at least 0, got "
                f"{self.num_landmarks} and {self.inverse_steps}"
            )
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
        scale=None,
        implementation=None,
        is_causal=False,
        causal=False,
        input_positions=None,
        force_fp32_for_softmax=False,
        qk_attn_weights_einsum=None,
        attn_weights_value_einsum=None,
        **unknown,
    ):
        """FNA of `query` `[*B, N, H, D]`, `key`, `value` `[*B, N, K, D]`; keywords are Flax's.

        And `scale` and `implementation`, which `jax.nn.dot_product_attention` has, and `causal`,
        which jimm says for `is_causal`.
        """
        # Honoured by construction: without dropout its key and shape mean nothing, and the softmax
        # is float32 with or without force_fp32_for_softmax.
        del dropout_rng, broadcast_dropout, force_fp32_for_softmax
        dropped = dropout_is_active(dropout_rate, deterministic)
        refused = {
            "dropout_rate (set deterministic=True)": dropped,
            "module (sow_weights: FNA forms no attention matrix)": module is not None,
            "input_positions": input_positions is not None,
            "qk_attn_weights_einsum": qk_attn_weights_einsum is not None,
            "attn_weights_value_einsum": attn_weights_value_einsum is not None,
            "scale (FastNystromAttention.scale is set too: drop one)": (
                scale is not None and self.scale is not None
            ),
            **{name: argument is not None for name, argument in unknown.items()},
        }
        if refused := [name for name, given in refused.items() if given]:
            raise ValueError(
                f"FastNystromAttention cannot honour {', '.join(refused)}; "
                "keep exact attention in this layer"
            )
        scale = self.scale if scale is None else scale
        is_causal = is_causal or causal
        dtype = dtype or jnp.result_type(query, key, value)
        query, key, value = (x.astype(dtype) for x in (query, key, value))
        obstacle, key_mask = self._obstacle(query, key, bias, is_causal), None
        if obstacle is None:
            key_mask, obstacle = read_mask(mask, query, is_padding=self.mask_is_padding)
        if obstacle is not None and self.otherwise == "raise":
            raise ValueError(
                f"{obstacle}; keep exact attention in this layer, with only= or otherwise='exact'"
            )
        with matmul_precision(precision):
            if obstacle is not None:
                options = dict(bias=bias, mask=mask, is_causal=is_causal, scale=scale)
                return exact_call(query, key, value, **options)
            landmarks = select_in_layer(
                {"q": query, "k": key, "v": value},
                self.features,
                self.num_landmarks,
                method=self.method,
                guarantee=self.guarantee,
                key_mask=key_mask,
                rng=jax.random.key(self.seed) if self.method == "random" else None,
            )
            return fast_nystrom_attention(
                query,
                key,
                value,
                landmarks,
                scale=scale,
                key_mask=key_mask,
                inverse_steps=self.inverse_steps,
                implementation=implementation or self.implementation,
            )

    def _obstacle(self, query, key, bias, is_causal):
        """Why FNA cannot run here, whatever the mask, or None."""
        num_queries, num_keys = query.shape[-3], key.shape[-3]
        if num_queries != num_keys:
            return (
                f"FNA is self-attention, but there are {num_queries} queries and {num_keys} keys "
                "(a pooling head?)"
            )
        if num_keys < self.num_landmarks:
            return f"there are {num_keys} tokens, fewer than the {self.num_landmarks} landmarks"
        if bias is not None:
            return "FastNystromAttention cannot honour bias"
        return "FastNystromAttention cannot honour is_causal" if is_causal else None


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
    if key_mask is not None:
        real = jnp.take_along_axis(key_mask, landmarks.indices, axis=-1)
        landmarks = dataclasses.replace(landmarks, valid=landmarks.valid & real)
    return landmarks, key_mask
