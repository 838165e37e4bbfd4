"""Views that take tokens away: merging against a loop over pairs, and what defines each."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from fna_jax import FNAConfig, Masking, exact_attention
from models.attends import Attended, attend_exactly
from models.reductions import Remaining, match, merge, merged
from models.rotary import patch_coordinates
from tests.conftest import random_images, rel_max_error
from tests.models.test_approximations import IMAGES, forward  # 5 × 3 patches
from tests.models.test_every_family import ENCODER, FEW_FAMILIES, tiny

MERGING = models.TokenMerging(3, "0:2")


@functools.partial(jax.jit, static_argnums=(3, 4))
def merged_in_turn(x, points, size, rs, num_prefix):
    """x after some mergings, and what is left: of `points` at first, then of x."""
    left = Remaining.all_of(x, (x.shape[1] - num_prefix, 1), num_prefix)
    left = dataclasses.replace(left, size=size)
    for r in rs:
        pairs = match(points, left.size, r, num_prefix)
        x, left = merge(x, left.size, pairs), merged(left, pairs)
        points = x
    return x, left


def merging_by_loop(x, points, size, r, num_prefix):
    """ToMe's formulas for one image, pair by pair: the new x and sizes, and where each token is."""
    first = [i for i in range(num_prefix, len(x)) if i % 2 == 0]
    second = [i for i in range(num_prefix, len(x)) if i % 2 == 1]
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    cosine = lambda i, j: unit[i] @ unit[j]
    proposals = {i: max(second, key=lambda j: cosine(i, j)) for i in first}
    gone = sorted(first, key=lambda i: -cosine(i, proposals[i]))[:r]
    order = [*range(num_prefix), *(i for i in first if i not in gone), *second]
    groups = {i: [i] for i in order}
    for i in gone:
        groups[proposals[i]].append(i)
    sizes = np.array([size[groups[i]].sum() for i in order])
    means = [(size[groups[i], None] * x[groups[i]]).sum(0) / size[groups[i]].sum() for i in order]
    places = {member: order.index(i) for i, members in groups.items() for member in members}
    return np.array(means), sizes, [places[i] for i in range(len(x))]


@pytest.mark.parametrize(("num_tokens", "num_prefix", "r"), [(9, 0, 4), (14, 5, 3)])
def test_merging_is_the_papers(num_tokens, num_prefix, r):
    rng = np.random.default_rng(num_tokens)
    x, points = rng.standard_normal((2, 2, num_tokens, 6)).astype(np.float32)
    size = rng.integers(1, 5, (2, num_tokens)).astype(np.float32)
    now, left = merged_in_turn(x, points, size, (r,), num_prefix)
    for image in range(2):
        of_image = (array[image] for array in (x, points, size))
        means, sizes, places = merging_by_loop(*of_image, r, num_prefix)
        assert rel_max_error(now[image], means) < 1e-6
        np.testing.assert_array_equal(left.size[image], sizes)
        np.testing.assert_array_equal(left.clusters.assignment[image], places)
    assert left.clusters.num_clusters == num_tokens - r


def test_unmerging_restores_the_order_after_any_number_of_mergings():
    """Each token's group is where it was, with the mean of all in it, and of their places."""
    x = np.random.default_rng(0).standard_normal((2, 13, 4)).astype(np.float32)
    now, left = merged_in_turn(x, x, np.ones((2, 13), np.float32), (3, 4, 2), 1)
    assert now.shape == (2, 4, 4) and (left.size.sum(axis=1) == 13).all()
    spread, coordinates = left.spread(now), np.pad(patch_coordinates((12, 1)), [(1, 0), (0, 0)])
    for image, of in enumerate(np.asarray(left.clusters.assignment)):
        assert of[0] == 0 and (of[1:] > 0).all()
        for token, group in enumerate(of):
            together = x[image, of == group]
            np.testing.assert_allclose(spread[image, token], together.mean(axis=0), atol=1e-6)
            place = coordinates[of == group].mean(axis=0)
            np.testing.assert_allclose(left.places[image, group], place, atol=1e-6)
            assert left.size[image, group] == len(together)


@pytest.mark.parametrize("r", [3, 6])  # 6: also where only padding is left to merge
def test_padding_changes_nothing(r):
    rng = np.random.default_rng(0)
    x, padding = (rng.standard_normal((1, n, 4)).astype(np.float32) for n in (9, 6))
    padded = np.concatenate([x, 100 * padding], axis=1)
    size = (np.arange(15)[None] < 9).astype(np.float32)
    now, left = merged_in_turn(padded, padded, size, (r,), 1)
    expected, alone = merged_in_turn(x, x, size[:, :9], (min(r, 4),), 1)
    now, size = np.asarray(now), np.asarray(left.size)
    np.testing.assert_allclose(now[size > 0], np.asarray(expected)[0], rtol=1e-6)
    np.testing.assert_array_equal(size[size > 0], np.asarray(alone.size)[0])


@pytest.mark.parametrize("family", ["clip", "dinov3"])
def test_without_merging_it_is_the_model(family):
    model = tiny(family)
    output = forward(models.with_fewer_tokens(model, models.TokenMerging(0, "0:2")), IMAGES)
    exact = forward(model, IMAGES)
    np.testing.assert_array_equal(output.tokens, exact.tokens)
    np.testing.assert_array_equal(output.pooled, exact.pooled)


@FEW_FAMILIES
def test_every_family_merges_and_no_image_looks_at_another(family):
    model = tiny(family)
    num_prefix = models.vision_tower(model).num_prefix
    view = models.with_fewer_tokens(model, MERGING)
    output, exact = forward(view, IMAGES), forward(model, IMAGES)
    assert output.tokens.shape == exact.tokens.shape
    assert output.landmarks.num_clusters == num_prefix + 15 - 2 * 3
    assert rel_max_error(output.tokens, exact.tokens) > 1e-3
    # As the evaluations fill up a batch.
    emptied = forward(view, np.concatenate([IMAGES[:1], np.zeros_like(IMAGES[:1])]))
    np.testing.assert_allclose(emptied.tokens[0], output.tokens[0], rtol=1e-4, atol=1e-5)
    assert np.isfinite(emptied.tokens).all() and np.isfinite(emptied.pooled).all()


def test_the_same_tokens_are_merged_in_bfloat16():
    """In the first block, whose inputs hardly differ."""
    model = tiny("dinov3")
    half = dataclasses.replace(model.config, dtype="bfloat16", param_dtype="bfloat16")
    graphdef, state = nnx.split(models.registry.abstract_model(type(model), half))
    cast = jax.tree.map(lambda x, like: np.asarray(x, like.dtype), nnx.state(model), state)
    once = models.TokenMerging(2, "0:1")
    exact, low = (
        forward(models.with_fewer_tokens(x, once), IMAGES)
        for x in (model, nnx.merge(graphdef, cast))
    )
    assert low.tokens.dtype == jnp.bfloat16
    np.testing.assert_array_equal(low.landmarks.assignment, exact.landmarks.assignment)
    assert rel_max_error(low.tokens, exact.tokens) < 0.1  # 8 bits of mantissa


@pytest.mark.parametrize("family", ["dinov2", "siglip"])  # with tokens in front, and without
def test_merging_identical_tokens_changes_nothing(family):
    """Of pairs of equal patches without positions one of each is enough, if it counts twice."""
    model = without_positions(tiny(family))
    halves = random_images(height=32, width=16).reshape(2, 32, 2, 8, 3)
    images = np.repeat(halves, 2, axis=2).reshape(2, 32, 32, 3)
    exact, merging = forward(model, images), models.TokenMerging(8, (0,))
    output = forward(models.with_fewer_tokens(model, merging), images)
    assert output.landmarks.num_clusters == exact.tokens.shape[1] - 8
    assert rel_max_error(output.tokens, exact.tokens) < 1e-5
    assert rel_max_error(output.pooled, exact.pooled) < 1e-5
    if family == "dinov2":
        careless = dataclasses.replace(merging, proportional=False)
        once = forward(models.with_fewer_tokens(model, careless), images)
        assert rel_max_error(once.tokens, exact.tokens) > 1e-3


def without_positions(model):
    """A copy whose patches have no positions."""
    copy = nnx.merge(*nnx.split(model))
    tower = models.vision_tower(copy)
    tower.positions = nnx.Param(jnp.zeros_like(tower.positions[...]))
    return copy


@pytest.mark.parametrize("family", ["dinov3", "siglip"])
def test_what_is_kept_is_what_a_model_of_these_tokens_computes(family):
    """And what was dropped has no output; positions stay those of the tokens."""
    tower = models.vision_tower(tiny(family))
    prefix = tower.num_prefix
    drop = models.TokenDropping(prefix + 6, 0, features="k")
    output = forward(models.with_fewer_tokens(tiny(family), drop), IMAGES)
    of = np.asarray(output.landmarks.assignment)
    kept = np.stack([np.flatnonzero(row >= 0) for row in of])
    assert kept.shape == (2, prefix + 6) and (kept[:, :prefix] == np.arange(prefix)).all()
    tokens, pooled = map(np.asarray, kept_by_hand(tower, kept))
    assert rel_max_error(output.pooled, pooled) < 1e-5
    for image, (row, found) in enumerate(zip(kept, np.asarray(output.tokens))):
        assert rel_max_error(found[row], tokens[image]) < 1e-5
        assert np.isnan(np.delete(found, row, axis=0)).all()


@nnx.jit
def kept_by_hand(tower, kept):
    """In the second block no token reads those that are not at `kept` `[B, S]`."""
    is_kept = jnp.any(kept[:, :, None] == jnp.arange(tower.num_prefix + 15), axis=1)

    def attend_to_kept(x, query, key, value, landmarks):
        return Attended(exact_attention(query, key, value, key_mask=is_kept), landmarks)

    attends = tower.position_attends([attend_exactly, attend_to_kept], IMAGES)
    tokens, _, _ = tower.encoder(tower.embed(IMAGES), attends)
    return tower.finish(jnp.take_along_axis(tokens, kept[..., None], axis=1))


def test_numbers_may_be_shares_and_at_most_half_of_the_patches_go():
    assert models.TokenMerging(0.1, (0,)).left(100, 50, 1) == 95
    assert models.TokenMerging(9, (0,)).left(14, 50, 5) == 10
    assert models.TokenDropping(0.25, 0).left(50, 50, 1) == 12
    model = tiny("clip")
    many = models.with_fewer_tokens(model, models.TokenMerging(0.5, "0:2"))
    shape = jax.eval_shape(forward, many, IMAGES)
    assert shape.landmarks.num_clusters == 5 and shape.tokens.shape == (2, 16, 32)


def test_random_tokens_are_drawn_with_a_key():
    drop, x = models.TokenDropping(6, 1, method="random", features="input"), np.ones((2, 16, 4))
    left = Remaining.all_of(x, (5, 3), 1)
    step = jax.jit(lambda rng: drop.step({"input": x}, left, rng)[1].clusters.assignment)
    kept, others = (np.asarray(step(jax.random.key(seed))) >= 0 for seed in (0, 1))
    assert (kept.sum(axis=1) == 6).all() and kept[:, 0].all() and (kept != others).any()
    view = models.with_fewer_tokens(tiny("clip"), drop)
    with pytest.raises(ValueError, match="random landmarks need a key"):
        jax.eval_shape(lambda: view(IMAGES).tokens)
    view, key = models.with_fewer_tokens(tiny("clip"), MERGING), jax.random.key(0)
    with pytest.raises(ValueError, match="rng was given, but no block draws"):
        jax.eval_shape(lambda: view(IMAGES, rng=key).tokens)


def test_a_view_gives_its_tokens_back():
    model = tiny("clip")
    view = models.with_fewer_tokens(model, MERGING)
    assert models.with_fewer_tokens(view, None).vision.reduction is None
    assert models.with_attention(view, None).vision.reduction == MERGING
    assert model.vision.reduction is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: models.TokenMerging(-1, (0,)), "r must be an integer of at least 0"),
        (lambda model: models.TokenMerging(True, (0,)), "r must be an integer of at least 0"),
        (lambda model: models.TokenMerging(1.5, (0,)), "a share of the tokens"),
        (lambda model: models.TokenMerging(1, ()), "layers must be block indices"),
        (lambda model: models.TokenMerging(1, (0,), proportional=1), "proportional must be"),
        (lambda model: models.TokenDropping(0, 0), "num_tokens must be an integer of at least 1"),
        (lambda model: models.TokenDropping(4, -1), "block must be block indices"),
        (lambda model: models.TokenDropping(4, 0, features="keys"), "features must be one of"),
        (
            lambda model: models.with_fewer_tokens(model, models.TokenDropping(1, 0))(IMAGES),
            r"1 of 16 are 1, which must lie in 2..16",
        ),
        (
            lambda model: models.with_fewer_tokens(model, models.TokenMerging(1, "1:3")),
            "has blocks 0 to 1, got 2",
        ),
        (
            lambda model: models.with_attention(
                models.with_fewer_tokens(model, MERGING), FNAConfig((1,), 4)
            ),
            "TokenMerging takes tokens away, and approximate attention needs all of them",
        ),
        (
            lambda model: models.with_fewer_tokens(
                models.with_attention(model, FNAConfig((1,), 4)), models.TokenDropping(4, 0)
            ),
            "TokenDropping takes tokens away, and approximate attention needs all of them",
        ),
        (
            lambda model: models.with_interventions(
                models.with_fewer_tokens(model, MERGING), {1: Masking("X->T")}
            ),
            "an intervention needs all of them",
        ),
        (
            lambda model: models.with_fewer_tokens(model, MERGING)(
                IMAGES, capture=models.Capture(norms=True)
            ),
            "a capture is of all tokens",
        ),
        (
            lambda model: models.with_fewer_tokens(model, MERGING)(IMAGES, compare=True),
            "compare=True needs FNA",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(change, message):
    model = tiny("clip")
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: change(model) and None)


def test_something_else_is_refused():
    with pytest.raises(TypeError, match="expected a TokenMerging, a TokenDropping or None"):
        models.with_fewer_tokens(tiny("clip"), FNAConfig((1,), 4))


def test_a_classifier_of_the_mean_patch_refuses_dropped_ones():
    with_head = {"image_size": 32, "patch_size": 8, "num_classes": 3, "encoder": ENCODER}
    model = nnx.eval_shape(lambda: models.create("dinov2-vit-s-14", rngs=nnx.Rngs(0), **with_head))
    view = models.with_fewer_tokens(model, models.TokenDropping(4, 0))
    with pytest.raises(ValueError, match="reads the mean of all patches, and this view drops"):
        view.classify(IMAGES)
