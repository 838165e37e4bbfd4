"""Fewer image tokens for a language model to read: chosen once, in front of it.

Shape letters: B batch, N tokens of a prompt, M of them that are left, W width.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fna_jax import farthest_point_sampling

from .configs import check_choice

METHODS = ("farthest", "random")
_STEP = 64  # M is a multiple of it, or N, so that many batches have one shape


@dataclasses.dataclass(frozen=True)
class ImageDropping:
    """Some of each prompt's image tokens stay, in their order.

    Text stays. The language model has less to read, in its MLPs, too, and less to keep.

    Attributes:
      kept: percent of the image tokens of a prompt, rounded up.
      method: of `METHODS`: farthest points of the embeddings, which differ most, or random ones.
      seed: of random ones, which depend on it, on the prompt's place in the batch and on N.

    Raises:
      ValueError: a field out of range.
    """

    kept: int
    method: str
    seed: int = 0

    def __post_init__(self):
        check_choice(self, "method", METHODS)
        if type(self.kept) is not int or not 0 < self.kept <= 100:
            raise ValueError(f"kept must be percent of the image tokens, 1 to 100: {self.kept!r}")

    def length(self, key_mask, is_image) -> int:
        """M, for a batch with these masks bool `[B, N]` of real tokens and of image tokens."""
        is_image = np.asarray(is_image)
        left = np.sum(np.asarray(key_mask) & ~is_image, axis=1) + self._number(is_image)
        return min(-(-int(left.max()) // _STEP) * _STEP, is_image.shape[1])

    def places(self, embeddings, key_mask, is_image, length):
        """Which tokens are left, int `[B, M]`, padded on the left, and their key mask bool.

        Args:
          embeddings: `[B, N, W]`.
          key_mask, is_image: bool `[B, N]`.
          length: M, of `length`.
        """
        if self.method == "random":
            drawn = jax.random.uniform(jax.random.key(self.seed), is_image.shape)
            order = jnp.argsort(jnp.where(is_image, drawn, jnp.inf), axis=1)[:, :length]
        else:
            sample = lambda points, eligible: farthest_point_sampling(
                points, length, eligible=eligible
            )
            order = jax.vmap(sample)(embeddings, is_image)
        taken = jnp.arange(length) < self._number(is_image)[:, None]  # [B, M]
        numbers = np.arange(is_image.shape[1])
        chosen = jnp.any((order[..., None] == numbers) & taken[..., None], axis=1)  # [B, N]
        stays = key_mask & (chosen | ~is_image)
        places = jnp.argsort(stays, axis=1, stable=True)[:, -length:]
        return places, jnp.take_along_axis(stays, places, axis=1)

    def _number(self, is_image):
        """How many image tokens of each prompt stay, `[B]`."""
        return -(-is_image.sum(axis=1) * self.kept // 100)
