"""Ranks against hand-computed cases and brute force; cost against a count by hand."""

import dataclasses

import numpy as np
import pytest

from evals.cost import advice, vision_cost
from evals.retrieval import retrieval_ranks
from evals.zero_shot import true_class_rank
from fna_jax import FNAConfig
from models.clip import VARIANTS


def test_rank_of_the_true_class_counts_ties_against_it():
    scores = np.array([[3.0, 2, 1], [3, 2, 1], [1, 1, 1]])
    np.testing.assert_array_equal(true_class_rank(scores, np.array([0, 2, 1])), [0, 2, 2])


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
    assert true_class_rank(np.full((2, 3), np.nan), np.array([0, 1])).min() == 2


@pytest.mark.parametrize("block", [3, 1024])
def test_retrieval_ranks_equal_a_sort_with_several_captions_per_image(block, monkeypatch):
    monkeypatch.setattr("evals.retrieval._BLOCK", block)
    rng = np.random.default_rng(0)
    owner = np.concatenate([np.arange(10), rng.integers(0, 10, size=15)])
    unit = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    images, texts = unit(rng.normal(size=(10, 6))), unit(rng.normal(size=(25, 6)))
    image_rank, caption_rank = retrieval_ranks(images, texts, owner)
    scores = images.astype(np.float64) @ texts.T
    for image in range(10):
        order = np.argsort(-scores[image])
        assert image_rank[image] == np.flatnonzero(owner[order] == image)[0]
    for text in range(25):
        order = np.argsort(-scores[:, text])
        assert caption_rank[text] == np.flatnonzero(order == owner[text])[0]


def test_cost_of_clip_l14_counts_what_the_paper_counts():
    encoder = VARIANTS["clip-vit-l-14"].vision.encoder
    fna = FNAConfig("13:24", 64)
    at_224, at_448 = (vision_cost(encoder, num_tokens, fna) for num_tokens in (257, 1025))
    assert at_448.attention == 24 * 2 * 1025**2 * 1024
    assert at_448.linear == 24 * 1025 * 12 * 1024**2
    assert at_224.fna > at_224.replaced  # at 257 tokens FNA costs more
    assert at_448.fna < 0.4 * at_448.replaced
    assert at_448.most_speedup > at_448.speedup > 1 > at_224.speedup


def test_a_gated_mlp_has_three_matrices():
    encoder = VARIANTS["clip-vit-l-14"].vision.encoder
    gated = dataclasses.replace(encoder, gated_mlp=True)
    plain_cost, gated_cost = (vision_cost(e, 257, FNAConfig("13:24", 64)) for e in (encoder, gated))
    assert gated_cost.linear - plain_cost.linear == 24 * 257 * 1024 * 4096
    assert gated_cost.attention == plain_cost.attention


def test_advice_is_honest_when_fna_does_not_pay():
    encoder = VARIANTS["clip-vit-l-14"].vision.encoder
    fnas = [FNAConfig("13:24", 64)]
    assert "does not pay" in advice(encoder, 257, fnas)
    assert "does not pay" not in advice(encoder, 1 + 96**2, fnas)
