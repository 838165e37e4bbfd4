"""Qwen3-VL's vision tower: images apart, squares of patches, windows of the image's own grid."""

import dataclasses
import functools
import itertools
import math
import re

import jax
import numpy as np
import pytest
from flax import nnx

import models
from convert.loading import convert_checkpoint
from fna_jax import FNAConfig, Masking
from models import registry
from models.attends import vision_attends
from models.qwen_vision import VARIANTS, squares_of
from models.turning import turned
from tests import zoo
from tests.conftest import few, random_images, rel_max_error

PATCH, SIZE = 4, 2  # pixels of a patch, patches along a merger's square
CENTROID = dict(approximation="centroid", features="k")
VIEWS = {
    "exact": None,
    "FNA": FNAConfig("0:2", 6),
    "centroid": FNAConfig("0:2", 4, partition="kmeans", windows=4, **CENTROID),
}
BATCHES = (  # images, and a pair of frames
    random_images(1, batch=2, height=16, width=24),
    random_images(2, batch=2, height=32, width=8)[None],
)

encode = nnx.jit(lambda model, batches: model.encode(batches))
forward = nnx.jit(lambda model, images: model(images))


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """Of two blocks and 32 channels, with a deep-stack merger after each."""
    folder = zoo.write("qwen3_vl_hf", tmp_path_factory.mktemp("qwen") / "model")
    return convert_checkpoint(folder, family="qwen3_vl_vision")[0]


@pytest.fixture(scope="module")
def seen(tower):
    """The tower with the attention of a view."""
    return functools.cache(lambda name: models.with_attention(tower, VIEWS[name]))


def merge_order(grid):
    """Where transformers stores the patches of a grid: the numbers, row by row, in its order."""
    numbers = np.arange(grid[0] * grid[1]).reshape(grid)
    squares = itertools.product(range(0, grid[0], SIZE), range(0, grid[1], SIZE))
    return np.concatenate([numbers[i : i + SIZE, j : j + SIZE].ravel() for i, j in squares])


@pytest.mark.parametrize("view", few(["exact", "centroid"], ["centroid"]))
def test_images_of_several_sizes_are_encoded_as_each_alone(seen, view):
    together = encode(seen(view), BATCHES)
    assert [len(features.merged) for features in together] == [2, 1]
    for features, batch in zip(together, BATCHES):
        (alone,) = encode(seen(view), (batch,))
        num_squares = batch.shape[-3] * batch.shape[-2] // (PATCH * SIZE) ** 2
        for actual, expected in zip(jax.tree.leaves(features), jax.tree.leaves(alone), strict=True):
            assert actual.shape[1:] == (num_squares, 24)
            assert rel_max_error(actual, expected) < 5e-6  # 1e-6 measured


@pytest.mark.parametrize("view", few(VIEWS, ["centroid"]))
def test_no_image_looks_at_another(seen, view):
    first, *others = BATCHES
    changed = first.copy()
    changed[1] += np.linspace(-1, 1, 24)[:, None]
    expected, actual = (encode(seen(view), (x, *others)) for x in (first, changed))
    for before, after in zip(*map(jax.tree.leaves, (expected, actual)), strict=True):
        np.testing.assert_array_equal(after[0], before[0])
    assert rel_max_error(actual[0].merged[1], expected[0].merged[1]) > 1e-2


def test_the_mergers_read_the_tokens_of_a_call_in_squares(tower):
    images, grid = BATCHES[0], (4, 6)
    in_order = lambda tokens: tokens[:, merge_order(grid)].reshape(2, 6, SIZE**2, 32)

    @nnx.jit
    def run(tower, images):
        output = tower(images, capture=models.Capture(outputs=(0,)))
        deepstack, _ = tower.deepstack_mergers
        first = deepstack(in_order(output.captured.outputs[0]))
        return (
            output,
            squares_of(output.tokens, grid, SIZE),
            tower.merger(in_order(output.tokens)),
            first,
        )

    output, squares, merged, first = run(tower, images)
    (features,) = encode(tower, (images,))
    np.testing.assert_array_equal(squares, in_order(output.tokens))
    assert rel_max_error(features.merged, merged) < 5e-6
    assert rel_max_error(features.deepstack[0], first) < 5e-6
    np.testing.assert_allclose(output.pooled, output.tokens.mean(axis=1), atol=1e-5)


def test_an_image_is_two_frames_that_are_the_same(tower):
    images = BATCHES[0]
    pairs = np.stack([images, images], axis=1)
    np.testing.assert_array_equal(tower.embed(pairs), tower.embed(images))
    assert (
        rel_max_error(tower.embed(np.stack([images, -images], axis=1)), tower.embed(images)) > 0.1
    )


@pytest.mark.parametrize("view, same", [("FNA", True), ("centroid", False)])
def test_the_order_of_storage_matters_to_windows_alone(seen, view, same):
    """They are of the image where patches are stored row by row, as the tower does it."""
    tower, images, grid = seen(view), BATCHES[0], (4, 6)
    order = merge_order(grid)
    assert (order != np.arange(24)).any()
    angles = tower._angles(np.stack(np.indices(grid), axis=-1).reshape(-1, 2)[order])

    @jax.jit
    def tokens(images):
        options = dict(grid=grid, rng=None, compare=False, tokens=None, capture=None)
        attends = vision_attends(tower, **options)
        attends = [turned(attend, angles, None, num_prefix=0) for attend in attends]
        none = (None,) * len(tower.fna)
        stored = tower.embed(images)[:, order]
        return tower.encoder(stored, attends, landmarks=none)[0]

    expected = forward(tower, images).tokens[:, order]
    error = rel_max_error(tokens(images), expected)
    assert error < 5e-6 if same else error > 1e-2


def test_windows_are_rectangles_of_the_image(tower):
    config = FNAConfig((0,), 4, approximation="centroid", partition="windows")
    output = forward(models.with_attention(tower, config), BATCHES[0])
    of_image = np.asarray(output.landmarks.assignment[0]).reshape(4, 6)
    for window in range(4):
        rows, columns = np.nonzero(of_image == window)
        assert len(rows) == np.ptp(rows) * np.ptp(columns) + np.ptp(rows) + np.ptp(columns) + 1


def test_positions_turn_by_patches():
    """Row, then column, each at wavelengths from 1 to theta: D is 16 here."""
    config = dataclasses.replace(VARIANTS["qwen3-vl-2b-vision"], rope_theta=16.0)
    of_one = dict(encoder={"width": 256, "depth": 1}, deepstack=())
    config = registry.override(config, of_one)
    angles = registry.abstract_model(registry.FAMILIES["qwen3_vl_vision"].model, config)._angles(
        np.array([[3, 5]])
    )
    expected = [3, 3 / 2, 3 / 4, 3 / 8, 5, 5 / 2, 5 / 4, 5 / 8]
    np.testing.assert_allclose(angles[0], expected, rtol=1e-6)


def test_nothing_is_as_large_as_the_matrix_of_all_patches():
    small = dict(width=8, depth=1, num_heads=1, mlp_dim=8)
    config = registry.override(
        VARIANTS["qwen3-vl-2b-vision"], dict(encoder=small, deepstack=(0,), out_width=8)
    )
    model = registry.abstract_model(registry.FAMILIES["qwen3_vl_vision"].model, config)
    graphdef, state = nnx.split(model)
    num_patches = 16384
    images = jax.ShapeDtypeStruct((1, 2048, num_patches // 128 * 16, 3), np.float32)
    run = jax.jit(lambda state, images: nnx.merge(graphdef, state).encode([images]))
    shapes = re.findall(r"tensor<([0-9x]+)x[a-z]", run.lower(state, images).as_text())
    sizes = {math.prod(map(int, shape.split("x"))) for shape in shapes}
    assert 8 * num_patches in sizes and max(sizes) < num_patches**2 / 8


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(deepstack=(1, 0)), r"ascending blocks from 0 to 23, got \(1, 0\)"),
        (dict(deepstack=(24,)), r"from 0 to 23, got \(24,\)"),
        (dict(rope_theta=0.0), "rope_theta .* got 0.0"),
        (dict(merge_size=0), "merge_size .* got 0"),
        (dict(encoder=dict(num_heads=512)), "multiple of 4, got 2"),
        (dict(image_size=767), "767 does not divide"),
    ],
)
def test_bad_configs_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        registry.override(VARIANTS["qwen3-vl-2b-vision"], changes)


@pytest.mark.parametrize(
    "change, batches, message",
    [
        (lambda model: model, (), "no images to encode"),
        (lambda model: model, (random_images(height=12, width=16),), "12 × 16 .* multiples of 8"),
        (lambda model: model, (np.zeros((1, 3, 16, 16, 3), np.float32),), "preprocessed floats"),
        (
            lambda model: models.with_interventions(model, {0: Masking("X->T", "sink")}),
            (BATCHES[0],),
            "this view masks tokens",
        ),
        (
            lambda model: models.with_fewer_tokens(model, models.TokenMerging(2, "0:1")),
            (BATCHES[0],),
            "takes some away",
        ),
    ],
)
def test_what_cannot_be_encoded_is_refused(tower, change, batches, message):
    with pytest.raises(ValueError, match=message):
        change(tower).encode(batches)
