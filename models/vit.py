"""What the vision transformers share: embeddings, attention, blocks, and the loop over them.

Shape letters: B batch, N tokens, S landmarks, H heads, D head dimension, C width.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from fna_jax import FNAConfig, exact_attention, fast_nystrom_attention, select_landmarks
from fna_jax.landmarks import Landmarks

ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's CLIP
}


def check_positive(config, *names):
    """Raises ValueError for the first of these fields of a config that is below one."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes of a stack of pre-norm transformer blocks. Activation and epsilon have no default."""

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    activation: str
    layer_norm_epsilon: float

    def __post_init__(self):
        check_positive(self, "width", "depth", "num_heads", "mlp_dim")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}"
            )
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} does not divide by {self.num_heads} heads")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VisionOutput:
    """What a vision backbone returns.

    Attributes:
      tokens: `[B, N, C]`, as the last block leaves them (Hugging Face's `last_hidden_state`).
      pooled: `[B, C]`.
      landmarks: those of the last FNA block; None without FNA.
      attention_error: float32 `[L, B]`, one row per FNA block; None unless asked for.
    """

    tokens: jax.Array
    pooled: jax.Array
    landmarks: Landmarks | None = None
    attention_error: jax.Array | None = None


class LayerNorm(nnx.LayerNorm):
    """Layer norm `[..., C]` computed in float32 whatever the dtype, by the two-pass variance."""

    def __init__(self, config: EncoderConfig, *, param_dtype, rngs):
        super().__init__(
            config.width,
            epsilon=config.layer_norm_epsilon,
            dtype=jnp.float32,
            param_dtype=param_dtype,
            use_fast_variance=False,  # E[x²] − E[x]² fails on massive tokens
            rngs=rngs,
        )

    def __call__(self, x):
        return super().__call__(x).astype(x.dtype)


class Attention(nnx.Module):
    """Projections of multi-head attention, leaf for leaf those of `nnx.MultiHeadAttention`."""

    def __init__(self, config: EncoderConfig, *, dtype, param_dtype, rngs):
        heads = (config.num_heads, config.width // config.num_heads)
        linear = functools.partial(
            nnx.LinearGeneral, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.query = linear(config.width, heads)
        self.key = linear(config.width, heads)
        self.value = linear(config.width, heads)
        self.out = linear(heads, config.width, axis=(-2, -1))

    def project(self, x):
        """Query, key and value of x `[B, N, C]`, each `[B, N, H, D]`."""
        return self.query(x), self.key(x), self.value(x)


class Mlp(nnx.Module):
    """Two linear layers with an activation between, `[..., C]` to `[..., C]`."""

    def __init__(self, config: EncoderConfig, *, dtype, param_dtype, rngs):
        linear = functools.partial(nnx.Linear, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.fc1 = linear(config.width, config.mlp_dim)
        self.fc2 = linear(config.mlp_dim, config.width)
        self.activation = ACTIVATIONS[config.activation]

    def __call__(self, x):
        return self.fc2(self.activation(self.fc1(x)))


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: EncoderConfig, *, dtype, param_dtype, rngs):
        self.norm1 = LayerNorm(config, param_dtype=param_dtype, rngs=rngs)
        self.attention = Attention(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.norm2 = LayerNorm(config, param_dtype=param_dtype, rngs=rngs)
        self.mlp = Mlp(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x, landmarks, attend):
        """x `[B, N, C]` and the landmarks after this block, and what `attend` recorded."""
        query, key, value = self.attention.project(self.norm1(x))
        out, landmarks, record = attend(x, query, key, value, landmarks)
        x = x + self.attention.out(out)
        return x + self.mlp(self.norm2(x)), landmarks, record


class Encoder(nnx.Module):
    """Blocks in sequence; which attention each runs is decided by the caller."""

    def __init__(self, config: EncoderConfig, *, dtype, param_dtype, rngs):
        self.blocks = nnx.List(
            [
                Block(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
                for _ in range(config.depth)
            ]
        )

    def __call__(self, x, attends):
        """x `[B, N, C]` after all blocks, the last landmarks, and each block's record.

        Args:
          attends: one callable per block, `(x, query, key, value, landmarks) -> (out, landmarks,
            record)`, with x the block's input.
        """
        landmarks, records = None, []
        for block, attend in zip(self.blocks, attends, strict=True):
            x, landmarks, record = block(x, landmarks, attend)
            records.append(record)
        return x, landmarks, records


def attend_exactly(x, query, key, value, landmarks):
    """Exact attention among all tokens."""
    del x
    return exact_attention(query, key, value), landmarks, None


def attend_causally(x, query, key, value, landmarks):
    """Exact attention to the tokens up to one's own, for text."""
    del x
    return jax.nn.dot_product_attention(query, key, value, is_causal=True), landmarks, None


@dataclasses.dataclass(frozen=True)
class LandmarkAttention:
    """FNA of one block, with the landmarks handed in or chosen here.

    Attributes:
      config: the FNA settings.
      num_prefix: leading tokens (class token, registers) that are always landmarks.
      rng: random key of this block's landmarks, for method "random".
      compare: let the block run exactly, and record the relative error of FNA, float32 `[B]`.
    """

    config: FNAConfig
    num_prefix: int
    rng: jax.Array | None
    compare: bool

    def __call__(self, x, query, key, value, landmarks):
        if landmarks is None or self.config.resample:
            landmarks = self.select(x, query, key, value)
        out = fast_nystrom_attention(
            query,
            key,
            value,
            landmarks,
            inverse_steps=self.config.inverse_steps,
            implementation=self.config.implementation,
        )
        if not self.compare:
            return out, landmarks, None
        exact = exact_attention(query, key, value)
        return exact, landmarks, relative_error(out, exact)

    def select(self, x, query, key, value) -> Landmarks:
        """Landmarks of a block with input x `[B, N, C]` and states `[B, N, H, D]`."""
        if self.config.features == "input":
            features = x
        else:
            states = {"q": query, "k": key, "v": value}[self.config.features]
            features = jnp.mean(states.astype(jnp.float32), axis=-2)  # [B, N, D]
        guarantee = None
        if self.config.guarantee_prefix and self.num_prefix:
            prefix = jnp.arange(features.shape[-2]) < self.num_prefix
            guarantee = jnp.broadcast_to(prefix, features.shape[:-1])
        return select_landmarks(
            features,
            self.config.num_landmarks,
            method=self.config.method,
            guarantee=guarantee,
            rng=self.rng,
        )


def vision_attends(fna: FNAConfig | None, depth: int, *, num_prefix, rng, compare):
    """The attention of each block of a vision encoder: exact, or FNA in `fna.layers`.

    Raises:
      ValueError: `rng` missing for random landmarks, or anything given that nothing would use.
    """
    uses_rng = fna is not None and fna.method == "random"
    if uses_rng and rng is None:
        raise ValueError("random landmarks need a key: call the model with rng=jax.random.key(0)")
    if rng is not None and not uses_rng:
        raise ValueError("rng was given, but no block draws random landmarks: drop it")
    if compare and fna is None:
        raise ValueError("compare=True needs FNA to compare: use models.with_attention first")

    attends = [attend_exactly] * depth
    for index in fna.layers if fna else ():
        block_rng = jax.random.fold_in(rng, index) if uses_rng else None
        attends[index] = LandmarkAttention(fna, num_prefix, block_rng, compare)
    return attends


def relative_error(approximation, exact):
    """`‖a − e‖ / ‖e‖` over all axes but the first, float32 `[B]`."""
    axes = tuple(range(1, exact.ndim))
    norm = lambda x: jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=axes))
    return norm(approximation.astype(jnp.float32) - exact.astype(jnp.float32)) / norm(exact)


class PatchEmbedding(nnx.Module):
    """Images `[B, height, width, 3]` to patch tokens `[B, h·w, C]`, row by row."""

    def __init__(self, width, patch_size, *, use_bias, dtype, param_dtype, rngs):
        self.patch_size = patch_size
        self.conv = nnx.Conv(
            3,
            width,
            (patch_size, patch_size),
            strides=patch_size,
            padding="VALID",
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def grid(self, images):
        """Patches down and across; raises where an image does not divide by the patch."""
        if (
            images.ndim != 4
            or images.shape[-1] != 3
            or not jnp.issubdtype(images.dtype, jnp.floating)
        ):
            raise ValueError(
                "images must be preprocessed floats [B, height, width, 3], "
                f"got {images.dtype}{list(images.shape)}"
            )
        for name, size in zip(("height", "width"), images.shape[1:3]):
            below = size // self.patch_size * self.patch_size
            if size != below or not size:
                nearest = f"{below} or {below + self.patch_size}" if below else self.patch_size
                raise ValueError(
                    f"image {name} {size} does not divide by the patch size {self.patch_size}; "
                    f"the nearest that do: {nearest}"
                )
        return images.shape[1] // self.patch_size, images.shape[2] // self.patch_size

    def __call__(self, images):
        patches = self.conv(images)  # [B, h, w, C]
        return patches.reshape(patches.shape[0], -1, patches.shape[-1])


def resize_positions(positions, grid):
    """Position embeddings `[n·n, C]` of a square grid on another grid `(h, w)`: `[h·w, C]`.

    PyTorch's bicubic interpolation without antialias, as Hugging Face's CLIP does it.
    """
    side = round(positions.shape[0] ** 0.5)
    if grid == (side, side):
        return positions
    square = positions.astype(jnp.float32).reshape(side, side, -1)
    shape = (*grid, positions.shape[-1])
    resized = jax.image.resize(square, shape, method="bicubic-pytorch", antialias=False)
    return resized.reshape(-1, positions.shape[-1]).astype(positions.dtype)
