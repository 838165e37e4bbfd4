"""Fast Nyström Attention, and the exact attention it stands in for (arXiv 2507.16018).

Shape letters: B batch, N tokens, S landmarks, H heads, K key and value heads (a divisor of H),
D head dimension. Layout is Flax's, `[*B, N, H, D]`.
"""

import functools

import jax
import jax.numpy as jnp

from fna_jax.checks import check_qkv, checked_key_mask, spread_heads, zero_padding
from fna_jax.fused import cudnn_obstacle
from fna_jax.kernels import differentiated_as, gpu_obstacle
from fna_jax.landmarks import Landmarks
from fna_jax.softmax import softmax_attention, take_tokens

IMPLEMENTATIONS = (None, "xla", "pallas")  # of FNA

_OF_EXACT = (*IMPLEMENTATIONS, "cudnn")
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
      implementation: "xla"; "pallas", the kernels of GPUs and TPUs; None, the best that runs.

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
    options = dict(scale=scale, key_mask=landmarks.valid, implementation=implementation)
    return softmax_attention(query, landmark_key, landmark_value, **options)


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
    check_implementation(implementation)
    scale = _default_scale(query, scale)
    query, key, value = (zero_padding(x, key_mask) for x in (query, key, value))

    landmark_query = take_tokens(query, landmarks.indices)  # [*B, S, H, D]
    landmark_key = take_tokens(key, landmarks.indices)  # [*B, S, K, D]
    landmark_key = spread_heads(landmark_key, query.shape[-2])

    kernel = landmark_kernel(landmark_query, landmark_key, landmarks.valid, scale)  # A
    inverse = inverse_of_kernel(kernel, inverse_steps, query.dtype, implementation)  # Z
    options = dict(scale=scale, key_mask=key_mask, implementation=implementation)
    summary = softmax_attention(landmark_query, key, value, **options)  # BV
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
      implementation: "xla", blocks of queries; on NVIDIA GPUs and TPUs "pallas", our kernel; on
        NVIDIA GPUs "cudnn", NVIDIA's for half precision without `key_mask`; None, the best that
        runs.

    Raises:
      ValueError: shapes or dtypes that do not fit, or an implementation that cannot run.
    """
    check_qkv(query, key, value)
    key_mask = checked_key_mask(key_mask, key)
    scale = _default_scale(query, scale)
    if implementation not in _OF_EXACT:
        raise ValueError(
            f"implementation must be None, 'xla', 'cudnn' or 'pallas', got {implementation!r}"
        )
    obstacle = cudnn_obstacle(query, value, key_mask)
    if implementation == "cudnn" or (implementation is None and obstacle is None):
        if obstacle:
            raise ValueError(f"implementation='cudnn' cannot run: {obstacle}; use None or 'xla'")
        flat = (x.reshape(-1, *x.shape[-3:]) for x in (query, key, value))
        output = jax.nn.dot_product_attention(*flat, scale=scale, implementation="cudnn")
        return output.reshape(query.shape)  # cuDNN's values have the keys' dimension
    key, value = zero_padding(key, key_mask), zero_padding(value, key_mask)
    options = dict(scale=scale, key_mask=key_mask, implementation=implementation)
    return softmax_attention(query, key, value, **options)


def newton_schulz_inverse(kernel, steps=6, *, implementation=None):
    """Approximate inverse of a kernel whose rows sum to one, `[..., S, S]`, at least float32.

    `Z₀ = Aᵀ / max_j Σ_i A[i, j]`, then `T = A Z;  Z ← ¼ Z (13 I − T (15 I − T (7 I − T)))`.
    A direction of singular value σ is kept with the weight u that `u₀ = σ² / ‖A‖₁` reaches under
    `u ← ¼ u (13 − u (15 − u (7 − u)))`, so few steps filter out small singular values, and stay
    finite on a singular kernel, where some forty steps in float32 would not.

    Args:
      kernel: A.
      steps: how many, static.
      implementation: "xla"; "pallas" or None, one kernel of an NVIDIA GPU for float32 and S up to
        64, where it can run.

    Raises:
      ValueError: a kernel that is not square, a negative number of steps, or another name.
    """
    kernel = jnp.asarray(kernel)
    if kernel.ndim < 2 or kernel.shape[-1] != kernel.shape[-2]:
        raise ValueError(f"kernel must be [..., S, S], got shape {kernel.shape}")
    if steps < 0:
        raise ValueError(f"the number of Newton–Schulz steps must be at least 0, got {steps}")
    check_implementation(implementation)
    kernel = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    plain = functools.partial(_newton_schulz, steps_of={_HIGHEST: steps})
    # Of more landmarks the matrices do not fit into the shared memory of a multiprocessor.
    fits = kernel.dtype == jnp.float32 and kernel.shape[-1] <= 64
    if implementation == "xla" or not fits or gpu_obstacle(kernel):
        return plain(kernel)
    from fna_jax.kernels.inverse import newton_schulz  # Pallas takes long to import

    return differentiated_as(plain, functools.partial(newton_schulz, steps=steps))(kernel)


def inverse_of_kernel(kernel, steps, dtype, implementation=None):
    """`newton_schulz_inverse` as precise as queries and keys of this dtype make the kernel.

    Float32 products in full precision are half of the layer's time on a TPU at 1,000 tokens. Where
    half precision rounds the layer by 4e-3, four steps in one bfloat16 pass and two in three, which
    mend them, change the output by 5e-6 if the kernel is almost an identity, by 3e-3 at a condition
    number of 3,000.
    """
    exact = functools.partial(newton_schulz_inverse, steps=steps, implementation=implementation)
    if jnp.finfo(dtype).bits > 16:
        return exact(kernel)
    rough_first = functools.partial(_newton_schulz, steps_of=tpu_passes(steps))
    return jax.lax.platform_dependent(kernel, tpu=rough_first, default=exact)


def tpu_passes(steps):
    """How many steps of half precision's inverse go in one pass of bfloat16, and in three."""
    fine = min(steps, 2)
    return {jax.lax.Precision.DEFAULT: steps - fine, jax.lax.Precision.HIGH: fine}


def _newton_schulz(kernel, steps_of):
    """`newton_schulz_inverse` in so many steps of each precision, one after the other."""
    kernel = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    eye = jnp.eye(kernel.shape[-1], dtype=kernel.dtype)
    eye = jnp.expand_dims(eye, range(kernel.ndim - 2))
    norm = jnp.max(jnp.sum(kernel, axis=-2), axis=-1)[..., None, None]
    inverse = jnp.swapaxes(kernel, -1, -2) / norm
    for precision, steps in steps_of.items():
        matmul = functools.partial(jnp.matmul, precision=precision)

        def step(_, inverse, matmul=matmul):
            product = matmul(kernel, inverse)
            inner = 15 * eye - matmul(product, 7 * eye - product)
            return 0.25 * matmul(inverse, 13 * eye - matmul(product, inner))

        # A loop, not its steps: a TPU's compiler takes seconds for each float32 product.
        inverse = jax.lax.fori_loop(0, steps, step, inverse)
    return inverse


def check_implementation(implementation):
    """The argument, if FNA runs through it; otherwise raises ValueError."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"FNA runs through implementation='xla', 'pallas' or None, got {implementation!r}"
        )
    return implementation


def landmark_kernel(landmark_query, landmark_key, valid, scale):
    """`A = softmax(c Qs Ksᵀ)` in at least float32, `[*B, H, S, S]`; an identity on empty slots.

    With the identity there the iteration works on the valid block as if it stood alone: column
    sums of A average one, so the norm in Z₀ is the valid block's.
    """
    dtype = jnp.promote_types(landmark_query.dtype, jnp.float32)
    logits = scale * jnp.einsum(
        "...ihd,...jhd->...hij",
        landmark_query,
        landmark_key,
        precision=_HIGHEST,
        preferred_element_type=dtype,  # products of half precision are exact in it
    )
    logits = jnp.where(valid[..., None, None, :], logits, jnp.finfo(dtype).min)
    return jnp.where(
        valid[..., None, :, None],
        jax.nn.softmax(logits, axis=-1),
        jnp.eye(valid.shape[-1], dtype=dtype),
    )


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
