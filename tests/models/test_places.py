"""A decoder whose tokens have places: time, row and column, and features added behind blocks."""

import jax
import numpy as np
import pytest

from models.image_tokens import ImageDropping
from models.rope import UNSCALED, interleaved_axes, token_angles
from tests.conftest import rel_max_error
from tests.models.tiny_decoders import prompts, tiny

SECTIONS = (4, 2, 2)  # of the 8 planes of a head
run = jax.jit(lambda model, x, **others: model(x, **others))


@pytest.fixture(scope="module")
def model():
    return tiny("qwen3", rope_sections=SECTIONS)


@pytest.fixture(scope="module")
def batch(model):
    """Embeddings `[2, 9, 32]`, and the key mask."""
    tokens, real = prompts()
    return np.asarray(model.embed(tokens)), real


@pytest.mark.parametrize(
    "sections, axes",
    [
        ((4, 2, 2), [0, 1, 2, 0, 1, 2, 0, 0]),
        ((2, 1, 1), [0, 1, 2, 0]),
        ((2, 2, 2), [0, 1, 2, 0, 1, 2]),
        ((24, 20, 20), [*[0, 1, 2] * 20, 0, 0, 0, 0]),  # as published
    ],
)
def test_axes_take_turns(sections, axes):
    np.testing.assert_array_equal(interleaved_axes(sections), axes)
    np.testing.assert_array_equal(np.bincount(axes), sections)


def test_each_plane_turns_by_its_axis():
    of = lambda positions: np.asarray(
        token_angles(np.asarray(positions), 16, theta=9.0, scaling=UNSCALED, sections=SECTIONS)
    )
    apart = of([[[2, 3, 5]]])[0, 0]
    for axis, position in enumerate((2, 3, 5)):
        own = interleaved_axes(SECTIONS) == axis
        np.testing.assert_array_equal(apart[own], of([[position]])[0, 0][own])


def test_a_text_whose_axes_agree_is_read_as_one_without_places(model, batch):
    embeddings, real = batch
    counted = np.maximum(real.cumsum(axis=1) - 1, 0)
    expected, _ = run(tiny("qwen3"), embeddings, key_mask=real)
    for positions in (counted, np.repeat(counted[..., None], 3, axis=2)):
        actual, cache = run(model, embeddings, key_mask=real, positions=positions)
        np.testing.assert_allclose(actual[real], expected[real], atol=1e-6)  # measured: 0
        np.testing.assert_array_equal(cache.position, [9, 5])


def test_what_follows_is_behind_all_axes_of_the_last_token(model, batch):
    embeddings, real = batch
    positions = np.zeros((2, 9, 3), np.int32)
    positions[:, -1] = [[1, 7, 3], [2, 0, 5]]
    _, cache = run(model, embeddings, key_mask=real, positions=positions)
    np.testing.assert_array_equal(cache.position, [8, 6])


def test_features_are_added_behind_the_first_blocks(model, batch):
    embeddings, real = batch
    features = np.random.default_rng(0).standard_normal(embeddings.shape).astype(np.float32)
    how, none = dict(key_mask=real), np.zeros_like(features)
    states = jax.jit(lambda *deepstack: model.hidden_states(embeddings, deepstack=deepstack, **how))
    plain, added = states(none, none), states(features, none)
    np.testing.assert_array_equal(added[0], plain[0])
    assert rel_max_error(added[1][real], (plain[1] + features)[real]) < 1e-6
    # Behind the last block nothing reads them but the norm.
    both = states(features, features)
    assert rel_max_error(both[2][real], (added[2] + features)[real]) < 1e-6


@pytest.mark.parametrize(
    "kind, positions, message",
    [
        ("qwen3", np.zeros((2, 9, 3), int), r"positions must be \[2, 9\], got \[2, 9, 3\]"),
        (None, np.zeros((2, 9, 2), int), r"must be \[2, 9\] or \[2, 9, 3\], got \[2, 9, 2\]"),
        (None, np.zeros((9,), int), r"must be \[2, 9\] or \[2, 9, 3\], got \[9\]"),
    ],
)
def test_positions_that_do_not_fit_are_refused(model, batch, kind, positions, message):
    embeddings, real = batch
    model = model if kind is None else tiny(kind)
    with pytest.raises(ValueError, match=message):
        model(embeddings, key_mask=real, positions=positions)


def test_more_features_than_blocks_are_refused(model, batch):
    embeddings, real = batch
    with pytest.raises(ValueError, match="3 features to add, but the model has 2 blocks"):
        model(embeddings, key_mask=real, deepstack=(embeddings,) * 3)


@pytest.mark.parametrize("sections", [(8,), (2, 3, 3), (4, 4, 0), (4, 2, 1), (9, -1, 0)])
def test_sections_that_do_not_share_the_planes_are_refused(sections):
    with pytest.raises(ValueError, match="rope_sections must share the 8 planes"):
        tiny("qwen3", rope_sections=sections)


def test_features_and_places_go_with_the_tokens_that_are_dropped(batch):
    """Behind block 0: what block 1 adds to a token that is gone, changes nothing."""
    embeddings, real = batch
    model = tiny("qwen3", rope_sections=SECTIONS, depth=3)
    is_image = real & (np.arange(9) < 7)
    dropping = ImageDropping(50, "random", block=0).inside(real, is_image)
    places, left = dropping.dropping.choose(embeddings, real, dropping.is_image, dropping.length)
    kept = [set(row[mask].tolist()) for row, mask in zip(np.asarray(places), np.asarray(left))]
    rng = np.random.default_rng(0)
    features = rng.standard_normal(embeddings.shape).astype(np.float32)
    positions = rng.integers(0, 9, (*real.shape, 3))

    how = dict(key_mask=real, positions=positions, dropping=dropping)
    call = jax.jit(lambda *deepstack: model(embeddings, deepstack=deepstack, **how, last_only=True))
    states = lambda second: np.asarray(call(features, second)[0])
    expected = states(features)
    for token in range(4, 9):
        changed = features.copy()
        changed[1, token] += 1
        differs = np.abs(states(changed) - expected).max(axis=(1, 2))
        assert differs[0] == 0 and (differs[1] > 0) == (token in kept[1])
