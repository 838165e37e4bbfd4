import jax
import numpy as np
import pytest
from flax import nnx

import models
from tests.models import tiny_decoders
from training.packing import NO_TARGET, pack, packed_states

ASKED = [[([5, 6], [7, 1]), ([8], [9, 3, 1])], [([4, 4, 4], [2, 1])]]


def test_a_token_is_to_be_followed_by_the_next_of_its_answer():
    packed = pack(ASKED, 8)
    no = NO_TARGET
    np.testing.assert_array_equal(
        packed.tokens, [[5, 6, 7, 8, 9, 3, 0, 0], [4, 4, 4, 2, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(
        packed.target, [[no, 7, 1, 9, 3, 1, no, no], [no, no, 2, 1, no, no, no, no]]
    )
    np.testing.assert_array_equal(packed.number[0], [0, 0, 0, 1, 1, 1, -1, -1])
    np.testing.assert_array_equal(packed.place[0, :6], [0, 1, 2, 0, 1, 2])


def test_more_tokens_than_there_is_room_for_are_refused():
    with pytest.raises(ValueError, match="questions of an image have 6 tokens, more than 5"):
        pack(ASKED, 5)


def test_a_packed_question_is_read_as_it_is_alone():
    """Behind the prefix, whatever is asked beside it."""
    model = models.create("qwen3-0.6b", rngs=nnx.Rngs(0), **tiny_decoders.SIZES)
    rng = np.random.default_rng(0)
    prefix = rng.normal(size=(2, 4, model.config.width)).astype(np.float32)
    positions = np.tile(np.arange(4), (2, 1))

    @jax.jit
    def states(model, packed):
        return packed_states(model, prefix, positions, packed, start=4)

    @jax.jit
    def alone(model, tokens):
        words = jax.numpy.concatenate([prefix, model.embed(tokens)], axis=1)
        return model(words, key_mask=np.ones(words.shape[:2], bool))[0][:, 4:]

    found = states(model, pack(ASKED, 8))
    for row, number, tokens in ((0, 0, [5, 6, 7]), (0, 1, [8, 9, 3]), (1, 0, [4, 4, 4])):
        expected = alone(model, np.array([tokens, tokens]))[row]
        here = slice(3 * number, 3 * number + 3)
        np.testing.assert_allclose(found[row, here], expected, atol=2e-6)
