"""Several questions about an image behind one reading of it, none of which sees another.

Shape letters: B images, M tokens of all questions of an image, F of its features, N tokens in all,
W width.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from models.attends import Attended
from models.blocks import run_blocks
from models.rope import token_angles
from models.rotary import rotate

NO_TARGET = -1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """Questions with their answers, int32 `[B, M]` each.

    Attributes:
      tokens: question and answer, without the token that ends an answer.
      number: of the question that a token belongs to; -1 on padding.
      place: within its question.
      target: what is to be written behind a token; `NO_TARGET` where nothing is learned.
    """

    tokens: jax.Array
    number: jax.Array
    place: jax.Array
    target: jax.Array


def pack(asked, length) -> Packed:
    """The questions of B images.

    Args:
      asked: for each image pairs of token ids: a question's, and its answer's with what ends it.
      length: M.

    Raises:
      ValueError: the questions of an image have more tokens.
    """
    longest = max(sum(len(q) + len(a) - 1 for q, a in of_image) for of_image in asked)
    if longest > length:
        raise ValueError(f"the questions of an image have {longest} tokens, more than {length}")
    fields = {name: np.full((len(asked), length), -1, np.int32) for name in _FIELDS}
    for row, of_image in enumerate(asked):
        end = 0
        for number, (question, answer) in enumerate(of_image):
            written = [*question, *answer]
            start, end = end, end + len(written) - 1
            here = slice(start, end)
            fields["tokens"][row, here] = written[:-1]
            fields["number"][row, here] = number
            fields["place"][row, here] = np.arange(end - start)
            fields["target"][row, end - len(answer) : end] = answer
    fields["tokens"] = np.maximum(fields["tokens"], 0)
    return Packed(**fields)


_FIELDS = [field.name for field in dataclasses.fields(Packed)]


def packed_states(decoder, prefix, positions, packed: Packed, *, start):
    """States after the last norm `[B, M, W]` of the questions' tokens.

    A question sees the prefix and itself, at the positions that it has alone behind the prefix.

    Args:
      decoder: a `models.decoder.Decoder`.
      prefix: embeddings `[B, N − M, W]` of what is in front of every question.
      positions: int `[B, N − M]`, theirs.
      packed: the questions.
      start: the position of a question's first token.
    """
    before = prefix.shape[1]
    question = jnp.concatenate([jnp.full_like(positions, -1), packed.number], axis=1)  # [B, N]
    positions = jnp.concatenate([positions, start + packed.place], axis=1)
    own = question[:, :, None] == question[:, None, :]
    visible = jnp.tri(question.shape[1], dtype=bool) & (own | (question == -1)[:, None, :])
    config = decoder.config
    angles = token_angles(
        positions, config.head_dim, theta=config.rope_theta, scaling=config.rope_scaling
    )

    def attend(x, query, key, value, landmarks):
        del x
        query, key = (rotate(states, angles=angles, num_prefix=0) for states in (query, key))
        out = jax.nn.dot_product_attention(query, key, value, mask=visible[:, None])
        return Attended(out, landmarks)

    x = jnp.concatenate([prefix, decoder.embed(packed.tokens)], axis=1)
    x, _, _ = run_blocks(decoder.blocks, x, [attend] * config.depth)
    return decoder.final_norm(x[:, before:])
