import jax
import numpy as np
import pytest

from evals.tasks.segmentation.sliding import Sliding, interpolation, label_pixels
from tests.conftest import rel_max_error


@pytest.mark.parametrize(
    "side, starts",
    [(12, (0,)), (13, (0, 1)), (20, (0, 8)), (21, (0, 8, 9)), (36, (0, 8, 16, 24))],
)
def test_windows_begin_a_stride_apart_and_end_with_the_side(side, starts):
    assert Sliding(12, 8).starts(side) == starts


@pytest.mark.parametrize("stride", [1, 5, 12])
@pytest.mark.parametrize("size", [(12, 12), (12, 40), (31, 17)])
def test_windows_hold_every_pixel(size, stride):
    sliding = Sliding(12, stride)
    pixels = np.arange(np.prod(size)).reshape(size)
    windows = sliding.cut(pixels)
    assert windows.shape[1:] == (12, 12)
    np.testing.assert_array_equal(np.unique(windows), pixels.ravel())


def test_images_are_resized_by_their_short_side():
    assert Sliding(12, 8).canvas(12, 300) == (12, 300)
    assert Sliding(12, 8).canvas(50, 30) == (50, 30)
    assert Sliding(12, 8).canvas(6, 7) == (12, 14)
    assert Sliding(12, 8, short_side=20).canvas(50, 30) == (33, 20)
    with pytest.raises(ValueError, match="too narrow"):
        Sliding(512, 341).canvas(1, 10_000)


@pytest.mark.parametrize("settings", [(12, 13), (12, 0), (12, 8, 11)])
def test_windows_that_leave_gaps_are_refused(settings):
    with pytest.raises(ValueError, match="window's side"):
        Sliding(*settings)


@pytest.mark.parametrize("n, size", [(3, 12), (12, 5), (7, 7), (1, 4)])
def test_interpolation_is_that_of_jax(n, size):
    values = np.random.default_rng(0).standard_normal((n, 2)).astype(np.float32)
    expected = jax.image.resize(values, (size, 2), "linear", antialias=False)
    assert rel_max_error(interpolation(n, size) @ values, expected) < 1e-6


@pytest.mark.parametrize(
    "canvas, size",
    [((12, 12), (12, 12)), ((29, 12), (29, 12)), ((15, 33), (70, 140)), ((40, 27), (9, 6))],
)
def test_pixels_are_labelled_as_by_windows_added_up_one_by_one(canvas, size):
    sliding, patches, num_classes = Sliding(12, 8), 3, 4
    ys, xs = (sliding.starts(side) for side in canvas)
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((len(ys) * len(xs), patches, patches, num_classes))
    logits = logits.astype(np.float32)
    total, count = np.zeros((*canvas, num_classes)), np.zeros((*canvas, 1))
    for number, (y, x) in enumerate((y, x) for y in ys for x in xs):
        window = jax.image.resize(logits[number], (12, 12, num_classes), "linear")
        total[y : y + 12, x : x + 12] += window
        count[y : y + 12, x : x + 12] += 1
    shape = (*size, num_classes)
    resized = jax.image.resize(total / count, shape, "linear", antialias=False)
    expected = np.asarray(resized)
    labels = np.asarray(label_pixels(sliding, logits, canvas, size))
    second, first = np.moveaxis(np.sort(expected, axis=-1)[..., -2:], -1, 0)
    clear = first - second > 1e-5
    assert labels.shape == size and labels.dtype == np.uint8
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(labels[clear], np.argmax(expected, axis=-1)[clear])
