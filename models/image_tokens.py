"""Fewer image tokens for a language model to read: in front of it, or behind one of its blocks.

Shape letters: B batch, N tokens of a prompt, M of them that are left, W width.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fna_jax import farthest_point_sampling

from .configs import check_choice

METHODS = ("farthest", "random", "attention")
_LEAST_STEP, _MOST_STEP = 8, 128


def common_length(num_tokens) -> int:
    """The next of few lengths, that many batches have one shape, at most an eighth too long.

    (Up to 64 tokens the next multiple of 8.)
    """
    step = 1 << max(num_tokens // 8, 1).bit_length() - 1  # a power of two, at most num_tokens / 8
    step = min(max(step, _LEAST_STEP), _MOST_STEP)
    return -(-num_tokens // step) * step


@dataclasses.dataclass(frozen=True)
class ImageDropping:
    """Some of each prompt's image tokens stay, in their order. Text stays.

    The language model has less to read, in its MLPs, too, and less to keep.

    Attributes:
      kept: percent of the image tokens of a prompt, rounded up.
      method: of `METHODS`: farthest points of what is read, which differ most; random ones; or
        those that the prompt's last token attends to most, mean over heads.
      seed: of random ones, which depend on it, on the prompt's place in the batch and on N.
      block: of the language model, from 0: behind it the others go, the positions of those that
        stay are kept, and so is the last token. None: they go in front of the language model, and
        positions are counted anew. "attention" needs a block, whose attention it is.

    Raises:
      ValueError: a field out of range.
    """

    kept: int
    method: str
    seed: int = 0
    block: int | None = None

    def __post_init__(self):
        check_choice(self, "method", METHODS)
        if type(self.kept) is not int or not 0 < self.kept <= 100:
            raise ValueError(f"kept must be percent of the image tokens, 1 to 100: {self.kept!r}")
        if self.block is not None and (type(self.block) is not int or self.block < 0):
            raise ValueError(f"block must be a number from 0, or None, got {self.block!r}")
        if self.method == "attention" and self.block is None:
            raise ValueError("in front of the language model there is no attention: give a block")

    def length(self, key_mask, is_image) -> int:
        """M, for a batch with these masks bool `[B, N]` of real tokens and of image tokens.

        Raises:
          ValueError: no prompt has image tokens.
        """
        is_image = np.asarray(is_image)
        if not is_image.any():
            raise ValueError(f"there are no image tokens to keep {self.kept} % of: drop dropping=")
        left = np.sum(np.asarray(key_mask) & ~is_image, axis=1) + self._number(is_image)
        return min(common_length(int(left.max())), is_image.shape[1])

    def apply(self, embeddings, others, is_image, length):
        """Embeddings `[B, M, W]` of what is left, padded on the left, and the other arguments.

        Args:
          embeddings: `[B, N, W]`.
          others: further arguments of a decoder's call by name, `[B, N, …]`; "key_mask" is there.
          is_image: bool `[B, N]`.
          length: M, of `length`.
        """
        places, left = self.choose(embeddings, others["key_mask"], is_image, length)
        embeddings, others = jax.tree.map(lambda x: take(x, places), (embeddings, others))
        return embeddings, others | {"key_mask": left}

    def choose(self, x, key_mask, is_image, length, *, received=None):
        """Places int `[B, M]` of what is left, ascending behind padding, and its key mask.

        Args:
          x: `[B, N, W]`.
          key_mask, is_image: bool `[B, N]`.
          length: M, of `length`.
          received: float32 `[B, N]`, of the last token's attention; "attention" needs it.
        """
        if self.method == "farthest":
            sample = lambda points, eligible: farthest_point_sampling(
                points, length, eligible=eligible
            )
            order = jax.vmap(sample)(x, is_image)
        else:
            draw = lambda: jax.random.uniform(jax.random.key(self.seed), is_image.shape)
            last = -received if self.method == "attention" else draw()
            order = jnp.argsort(jnp.where(is_image, last, jnp.inf), axis=1)[:, :length]
        taken = jnp.arange(length) < self._number(is_image)[:, None]  # [B, M]
        numbers = np.arange(is_image.shape[1])
        chosen = jnp.any((order[..., None] == numbers) & taken[..., None], axis=1)  # [B, N]
        stays = key_mask & (chosen | ~is_image)
        places = jnp.argsort(stays, axis=1, stable=True)[:, -length:]
        return places, take(stays, places)

    def _number(self, is_image):
        """How many image tokens of each prompt stay, `[B]`."""
        return -(-is_image.sum(axis=1) * self.kept // 100)

    def inside(self, key_mask, is_image) -> "InnerDropping":
        """For a decoder that reads a batch with these masks bool `[B, N]`.

        Raises:
          ValueError: as in `length`.
        """
        is_image = np.array(is_image)
        is_image[:, -1] = False  # its state is what follows
        return InnerDropping(self, self.length(key_mask, is_image), jnp.asarray(is_image))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class InnerDropping:
    """`ImageDropping` behind a block of a decoder, of a batch of prompts.

    Attributes:
      dropping: the settings, with a block; static.
      length: M; static.
      is_image: bool `[B, N]`, the image tokens.
    """

    dropping: ImageDropping = dataclasses.field(metadata=dict(static=True))
    length: int = dataclasses.field(metadata=dict(static=True))
    is_image: jax.Array

    @property
    def block(self) -> int:
        """The block behind which tokens go."""
        return self.dropping.block

    def run(self, run, x, key_mask, positions, deepstack):
        """The decoder's states `[B, M, W]` behind its last block, and the records of all blocks.

        Args:
          run: a function of the other four, and `start`, `stop` and `watch`, as `Decoder._run`.
          x: `[B, N, W]`, in front of the first block.
          key_mask: bool `[B, N]`.
          positions, deepstack: as in a decoder's call.

        Raises:
          ValueError: image tokens of other prompts.
        """
        if self.is_image.shape != key_mask.shape:
            raise ValueError(
                f"dropping is for prompts {list(self.is_image.shape)}, but these are "
                f"{list(key_mask.shape)}: take ImageDropping.inside of their masks"
            )
        first = self.block + 1
        watch = self.block if self.dropping.method == "attention" else None
        x, before = run(x, key_mask, positions, deepstack, stop=first, watch=watch)
        received = before[-1].received
        places, left = self.dropping.choose(
            x, key_mask, self.is_image, self.length, received=received
        )
        x, positions, deepstack = jax.tree.map(
            lambda of_tokens: take(of_tokens, places), (x, positions, deepstack)
        )
        x, behind = run(x, left, positions, deepstack, start=first)
        return x, before + behind


def dropped(prompts, dropping: ImageDropping | None):
    """The image tokens of prompts that go in front of the language model, and those inside it.

    The first as the last arguments of `ImageDropping.apply`, its settings and M, the second as an
    `InnerDropping`; None where none go there.

    Raises:
      ValueError: image tokens to be dropped where there are none.
    """
    if dropping is None:
        return None, None
    masks = prompts.key_mask, prompts.is_image
    if dropping.block is None:
        return (dropping, dropping.length(*masks)), None
    return None, dropping.inside(*masks)


def take(x, places):
    """Tokens of x `[B, N, …]` at the places int `[B, M]`."""
    return jnp.take_along_axis(x, places.reshape(*places.shape, *[1] * (x.ndim - 2)), axis=1)
