"""Choice of tiles and packing of their features: hand-computed cases and brute force."""

import math

import jax
import numpy as np
import pytest

from models.inputs.tiles import END, Tiling, best_resolution, fitted_size, margins, plain_packing

NEXT = Tiling(336, 24, ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)))
SIDES = range(384, 2305, 384)
ONEVISION = Tiling(384, 27, tuple((height, width) for height in SIDES for width in SIDES), most=9)
SMALL = Tiling(8, 4, tuple((8 * rows, 8 * columns) for rows in (1, 2, 3) for columns in (1, 2, 3)))
SHRUNK = Tiling(8, 4, SMALL.resolutions, most=2)


def sizes(count=200, largest=3000):
    """Random ones of every shape, very wide and very tall ones included."""
    rng = np.random.default_rng(0)
    return [tuple(map(int, np.exp(rng.uniform(1, np.log(largest), 2)))) for _ in range(count)]


@pytest.mark.parametrize(
    "size, resolution",
    [
        ((336, 672), (336, 672)),
        ((1000, 1000), (672, 672)),
        ((100, 100), (336, 672)),  # none loses a pixel: the first of the smallest
        ((200, 900), (336, 1008)),
        ((900, 200), (1008, 336)),
        ((480, 640), (672, 672)),
    ],
)
def test_resolutions_of_next(size, resolution):
    assert NEXT.resolution(size) == resolution


def test_the_first_of_equals_is_chosen():
    assert best_resolution((10, 10), [(20, 40), (40, 20)]) == (20, 40)
    assert best_resolution((10, 10), [(40, 40), (20, 20)]) == (20, 20)  # less is wasted


@pytest.mark.parametrize(
    "tiling, size, count",
    [
        (NEXT, (1000, 1000), 576 + 48 * 48 + 48),
        (NEXT, (336, 672), 576 + 24 * 48 + 24),
        # 672 × 672 and 48 patches, of which 640:480 leaves 36 rows.
        (NEXT, (480, 640), 576 + 36 * 48 + 36),
        (NEXT, (640, 480), 576 + 48 * 36 + 48),
        # 1008 wide: 16 of 24 rows, at (24 − 16) // 2 = 4 from either end.
        (NEXT, (200, 900), 576 + 16 * 72 + 16),
        # 17 shown of 24 leave 7, of which 3 are taken from either end: 18 rows stay.
        (NEXT, (215, 900), 576 + 18 * 72 + 18),
        (ONEVISION, (384, 384), 729 + 27 * 27 + 27),
        (ONEVISION, (2304, 2304), 729 + 81 * 81 + 81),
        (ONEVISION, (1152, 1152), 729 + 81 * 81 + 81),
        # 2304 × 1536: 162 × 108 patches shrink by √(162 · 108 / 6561) = 1.63.
        (ONEVISION, (2304, 1536), 729 + 99 * 66 + 99),
    ],
)
def test_counts_by_hand(tiling, size, count):
    assert tiling.num_tokens(size) == count


@pytest.mark.parametrize("tiling", [NEXT, ONEVISION, SMALL, SHRUNK])
def test_as_many_tokens_are_packed_as_counted(tiling):
    for size in sizes(40):
        packing = tiling.packing(size)
        assert len(packing.index) == len(packing.weight) == tiling.num_tokens(size), size
        np.testing.assert_allclose(packing.weight.sum(1), 1, atol=1e-6)
        assert packing.index.max() < tiling.num_tiles(size) * tiling.patches**2


def packed(packing, features, end):
    """The tokens themselves, of features `[T · F]`."""
    return np.sum(np.append(features, end)[packing.index] * packing.weight, axis=1)


def grid_of(tiling, size, features):
    """The features of the tiles behind the base as one picture."""
    rows, columns = (side // tiling.side for side in tiling.resolution(size))
    tiles = features.reshape(-1, tiling.patches, tiling.patches)[1:]
    lines = [np.concatenate(tiles[i * columns : (i + 1) * columns], 1) for i in range(rows)]
    return np.concatenate(lines)


@pytest.mark.parametrize("tiling", [SMALL, SHRUNK])
def test_tokens_are_the_base_and_the_shown_rows_each_with_its_end(tiling):
    rng = np.random.default_rng(0)
    for size in [(8, 8), (16, 24), (24, 24), (9, 20), (20, 9), (23, 24), *sizes(30)]:
        features = rng.standard_normal(tiling.num_tiles(size) * 16)
        grid = grid_of(tiling, size, features)[tiling.unpadded(size)]
        shape = tiling.shape(size)
        if 0 not in shape and shape != grid.shape:
            grid = np.asarray(jax.image.resize(grid, shape, "linear", antialias=False))
        lines = np.pad(grid, ((0, 0), (0, 1)), constant_values=7.0)
        tokens = packed(tiling.packing(size), features, 7.0)
        np.testing.assert_allclose(tokens, np.append(features[:16], lines), atol=2e-6)


def test_what_is_shown_is_where_the_image_was_put():
    """To the patch: the two are computed apart, in pixels for the one, in patches for the other."""
    for size in sizes():
        resolution = NEXT.resolution(size)
        fitted = fitted_size(size, resolution)
        above = [x / 14 for x in margins(fitted, resolution)]
        for kept, margin, pixels in zip(NEXT.unpadded(size), above, fitted, strict=True):
            assert abs(kept.start - margin) <= 1 and abs(kept.stop - margin - pixels / 14) <= 1.5


def test_an_image_is_fitted_in_its_own_shape():
    for size in sizes():
        resolution = NEXT.resolution(size)
        fitted = fitted_size(size, resolution)
        scale = min(outer / inner for outer, inner in zip(resolution, size))
        assert any(inner == outer for inner, outer in zip(fitted, resolution))
        for inner, outer, original in zip(fitted, resolution, size):
            assert inner <= outer and 0 <= inner - math.floor(original * scale) <= 1


def test_one_of_several_images_is_its_base_and_an_end():
    packing = SHRUNK.base_packing()
    assert packing.index.shape == (17, 4) == packing.weight.shape
    np.testing.assert_array_equal(packing.index[:, 0], [*range(16), END])
    np.testing.assert_array_equal(packing.weight, np.eye(4)[np.zeros(17, int)])
    np.testing.assert_array_equal(plain_packing(5).index[:, 0], range(5))


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(resolutions=()), "no resolution to choose"),
        (dict(resolutions=((336, 600),)), r"divide by the tiles' side 336, got \(336, 600\)"),
        (dict(resolutions=((0, 336),)), r"got \(0, 336\)"),
        (dict(resolutions=((336,),)), r"got \(336,\)"),
        (dict(most=0), "at least 1 tile, got 0"),
    ],
)
def test_bad_settings_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        Tiling(**{"side": 336, "patches": 24, "resolutions": ((336, 336),)} | settings)
