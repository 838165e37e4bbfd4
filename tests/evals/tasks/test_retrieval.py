"""Ranks of retrieval against a dense oracle, and the memory that they take."""

import jax
import numpy as np
import pytest

from evals.data import CaptionedImages
from evals.running.embed import TIE, Embedded, unit
from evals.tasks import retrieval
from evals.tasks.retrieval import retrieval_ranks


def dense_ranks(images, texts, owner):
    """Ranks from the whole matrix in float64; L for an image without captions."""
    scores = images.astype(np.float64) @ texts.T.astype(np.float64)
    own = owner == np.arange(len(images))[:, None]
    image_rank = []
    for row, mine in zip(scores, own):
        best = row[mine].max() if mine.any() else -np.inf
        image_rank.append(np.sum(~(row[~mine] < best - TIE)))
    right = scores[owner, np.arange(len(texts))]
    caption_rank = np.sum(~(scores < right - TIE) & ~own, axis=0)
    return np.array(image_rank), caption_rank


@pytest.mark.parametrize("blocks", [(6, 3, 4), (retrieval._IMAGES, 1024, 2048)])
def test_ranks_equal_the_dense_ones_in_blocks_that_do_not_divide(blocks, monkeypatch):
    for name, size in zip(("_IMAGES", "_TILE", "_CAPTIONS"), blocks):
        monkeypatch.setattr(retrieval, name, size)
    rng = np.random.default_rng(0)
    owner = np.concatenate([np.arange(8), rng.integers(0, 8, size=15)])  # two have no captions
    images = rng.normal(size=(10, 6)).astype(np.float32)
    images[5] = images[2]
    texts = images[owner] + rng.normal(size=(23, 6)).astype(np.float32)
    texts[2] = texts[7] = images[2]  # caption 7, of another image, ties with the right one
    images, texts = unit(images), unit(texts)
    expected = dense_ranks(images, texts, owner)
    assert expected[0][8:].tolist() == [23, 23] and expected[0][2] > 0
    for actual, wanted in zip(retrieval_ranks(images, texts, owner), expected):
        np.testing.assert_array_equal(actual, wanted)


class FixedEmbedder:
    """Embeds three images, of which the second does not open, and texts that are numbers."""

    def images(self, backbone, images, *, rng=None):
        times = dict(compile_seconds=0.0, images_per_second=1.0)
        return Embedded(
            np.eye(3, dtype=np.float32)[[0, 2]], np.array([0, 2]), **times, num_unreadable=1
        )

    def texts(self, pretrained, texts):
        return np.eye(3, dtype=np.float32)[[int(text) for text in texts]]


def test_images_without_captions_have_nothing_to_find():
    data = CaptionedImages(["a", "b", "c"], ["2", "1", "0"], np.array([2, 1, 2]))
    record = retrieval.retrieval(None, data, FixedEmbedder())
    counts = [record[f"num_{what}"] for what in ("images", "images_with_captions", "captions")]
    assert counts == [2, 1, 2]  # "c" has both; "a", which caption "0" finds, has none
    assert record["image_to_text_r1"] == 100 and record["text_to_image_r1"] == 50


def test_constant_embeddings_retrieve_nothing():
    ones = np.ones((12, 4), np.float32) / 2
    image_rank, caption_rank = retrieval_ranks(ones, ones, np.arange(12))
    assert (image_rank == 11).all() and (caption_rank == 11).all()


def test_a_collapsed_model_is_not_told_apart_by_rounding():
    one = np.random.default_rng(0).normal(size=128).astype(np.float32)
    same = np.tile(one / np.linalg.norm(one), (1000, 1))
    image_rank, caption_rank = retrieval_ranks(same, same, np.arange(1000))
    assert image_rank.min() == caption_rank.min() == 999


def test_nan_is_never_right():
    nan = np.full((12, 4), np.nan, np.float32)
    image_rank, caption_rank = retrieval_ranks(nan, nan, np.arange(12))
    assert image_rank.min() == caption_rank.min() == 11


def test_similarities_exist_for_one_tile_at_a_time(monkeypatch):
    called = []

    def shapes_of(tiles, captions):
        called.append((tiles[0].shape, captions[0].shape))
        return np.zeros(tiles[1].size, int), np.zeros(len(captions[1]), int)

    count_ahead = retrieval._count_ahead
    monkeypatch.setattr(retrieval, "_count_ahead", shapes_of)
    most, tile, captions = retrieval._IMAGES, retrieval._TILE, retrieval._CAPTIONS
    retrieval_ranks(
        np.zeros((2 * most, 1), np.float32),
        np.zeros((3 * captions, 1), np.float32),
        np.zeros(3 * captions, int),
    )
    assert called == [((most // tile, tile, 1), (captions, 1))] * 6
    shape = lambda *dims, dtype=np.float32: jax.ShapeDtypeStruct(dims, dtype)
    lowered = count_ahead.lower(
        (
            shape(most // tile, tile, 64),
            shape(most // tile, tile),
            shape(most // tile, tile, dtype=np.int32),
        ),
        (shape(captions, 64), shape(captions), shape(captions, dtype=np.int32)),
    )
    memory = lowered.compile().memory_analysis()
    assert memory.temp_size_in_bytes < 16 * tile * captions  # 4 of float32; measured 3
