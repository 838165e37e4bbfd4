"""Images of several sizes in one sequence of tokens, none of which looks at another image.

Shape letters: b images of one size, n tokens of each, N tokens of all, H heads, D head dimension,
C width.
"""

import dataclasses
import itertools

import jax.numpy as jnp

from .attends import Attended


@dataclasses.dataclass(frozen=True)
class Packing:
    """Batches of images, each of one size, one behind the other.

    Attributes:
      shapes: (b, n) of each batch; N is the sum of their products.
    """

    shapes: tuple[tuple[int, int], ...]

    def pack(self, parts):
        """`[1, N, …]` of each batch's `[b, n, …]`."""
        return jnp.concatenate([x.reshape(1, -1, *x.shape[2:]) for x in parts], axis=1)

    def unpack(self, packed):
        """The inverse of `pack`."""
        ends = itertools.accumulate(images * tokens for images, tokens in self.shapes)
        parts = jnp.split(packed, list(ends)[:-1], axis=1)
        return [part.reshape(*shape, *packed.shape[2:]) for part, shape in zip(parts, self.shapes)]

    def attend(self, attends):
        """A block's attention on what is packed, of the attention of each batch.

        Its landmarks are a tuple with those of each batch. Nothing is padded and no mask is needed:
        an image's tokens are given to its attention alone.
        """

        def attend_apart(x, query, key, value, landmarks):
            states = zip(*(self.unpack(part) for part in (x, query, key, value)))
            attended = [
                attend(*of_batch, mine)
                for attend, of_batch, mine in zip(attends, states, landmarks, strict=True)
            ]
            out = self.pack([part.out for part in attended])
            return Attended(out, tuple(part.landmarks for part in attended))

        return attend_apart
