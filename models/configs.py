"""What the configs of all families are made of, and the checks of their fields."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from .embeddings import POSITION_RESIZES

ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's CLIP
    "silu": jax.nn.silu,
}
DTYPES = ("float32", "bfloat16")
_BIASES = ("", "q", "k", "v", "qk", "qv", "kv", "qkv")


def check_positive(config, *names):
    """Raises ValueError for the first of these fields of a config that is below one."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")


def check_not_negative(config, *names):
    """Raises ValueError for the first of these fields of a config that is below zero."""
    for name in names:
        if getattr(config, name) < 0:
            raise ValueError(f"{name} must be at least 0, got {getattr(config, name)}")


def check_classifier(config):
    """Raises ValueError if `num_classes` is zero."""
    if not config.num_classes:
        raise ValueError("the model has no classifier: its num_classes is 0")


def check_rotary(config):
    """Raises ValueError if a tower's `rope_theta` or heads cannot turn on two axes."""
    if config.rope_theta <= 0:
        raise ValueError(f"rope_theta must be positive, got {config.rope_theta}")
    if (head_dim := config.encoder.head_dim) % 4:
        raise ValueError(f"rotary positions need heads of a multiple of 4, got {head_dim}")


def check_choice(config, name, choices):
    """Raises ValueError if this field of a config is none of the choices."""
    if getattr(config, name) not in choices:
        raise ValueError(
            f"{name} must be one of {', '.join(choices)}, got {getattr(config, name)!r}"
        )


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """A stack of pre-norm transformer blocks. Activation and epsilon have no default.

    Attributes:
      biases: which of query, key and value add a bias, by their first letters in this order.
      gated_mlp: `fc2(activation(gate(x)) · fc1(x))` for the MLP.
      layer_scale: a learned factor per channel after attention and after the MLP.
    """

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    activation: str
    layer_norm_epsilon: float
    biases: str = "qkv"
    gated_mlp: bool = False
    layer_scale: bool = False

    def __post_init__(self):
        check_positive(self, "width", "depth", "num_heads", "mlp_dim")
        check_choice(self, "activation", ACTIVATIONS)
        if self.biases not in _BIASES:
            raise ValueError(f"biases must be letters of qkv in this order, got {self.biases!r}")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} does not divide by {self.num_heads} heads")

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.width // self.num_heads

    @property
    def linear_cost(self) -> int:
        """Multiply-adds of one block's projections and MLP, for a token."""
        return self.width * (4 * self.width + (3 if self.gated_mlp else 2) * self.mlp_dim)

    def attention_share(self, num_tokens) -> float:
        """Exact attention's part of the blocks' multiply-adds, at so many tokens."""
        attention = 2 * num_tokens * self.width
        return attention / (attention + self.linear_cost)


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """A vision tower.

    Attributes:
      image_size: height in pixels at which positions were learned, and width if that is None.
      position_resize: one of `embeddings.POSITION_RESIZES`.
      image_width: where the images were not square.
      head: whether what follows the blocks is there. Without it the tower's tokens are the last
        block's, and their mean over the patches is what is pooled.
    """

    image_size: int
    patch_size: int
    position_resize: str
    encoder: EncoderConfig
    image_width: int | None = None
    head: bool = True

    def __post_init__(self):
        check_patches(self)
        check_choice(self, "position_resize", POSITION_RESIZES)


def image_shape(config) -> tuple[int, int]:
    """Height and width in pixels of the images for which positions were learned."""
    width = config.image_width
    return config.image_size, config.image_size if width is None else width


def position_grid(config) -> tuple[int, int]:
    """Patches down and across of the images for which positions were learned."""
    height, width = image_shape(config)
    return height // config.patch_size, width // config.patch_size


def check_image_sides(config):
    """Raises ValueError if a side of the images or of the patches is below one."""
    width = () if config.image_width is None else ("image_width",)
    check_positive(config, "image_size", *width, "patch_size")


def check_patches(config):
    """Raises ValueError if a side of the images does not divide by `patch_size`."""
    check_image_sides(config)
    for name, pixels in zip(("image_size", "image_width"), image_shape(config)):
        if pixels % config.patch_size:
            raise ValueError(f"{name} {pixels} does not divide by patch_size {config.patch_size}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What every model's config ends with: the computation's dtype and the weights'."""

    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        check_choice(self, "dtype", DTYPES)
        check_choice(self, "param_dtype", DTYPES)

    def dtypes(self):
        """Both, as keywords for modules."""
        return dict(dtype=jnp.dtype(self.dtype), param_dtype=jnp.dtype(self.param_dtype))
