"""Cost against a count by hand."""

import dataclasses

from evals.jobs.cost import advice, reduced_cost, vision_cost
from fna_jax import FNAConfig
from models import TokenDropping, TokenMerging
from models.clip import VARIANTS


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


def test_cost_of_centroids_by_hand():
    encoder, num_tokens = VARIANTS["clip-vit-l-14"].vision.encoder, 1025
    centroid = FNAConfig("12:24", 64, "k", approximation="centroid")
    token = num_tokens * 1024
    layer = token * 64 * 3 + 2 * (num_tokens + 64) * 64 * 1024 + 2 * token * 64
    step = 2 * num_tokens * 64 * 64  # farthest points and the nearest of them, or a Lloyd step
    assert vision_cost(encoder, num_tokens, centroid).fna == 12 * layer + 2 * step

    near = FNAConfig("12:24", 64, approximation="centroid", partition="windows", windows=64)
    with_near = vision_cost(encoder, num_tokens, near).fna
    own = num_tokens / 64
    layer = token * (64 * 2 + 1) + 2 * (num_tokens + 64) * (64 + own) * 1024 + 2 * token * 64
    assert with_near == round(12 * layer)
    around = dataclasses.replace(near, near=1)
    for axes, windows in ((2, 9), (3, 27)):  # of an image, and of a video
        cost = vision_cost(encoder, num_tokens, around, axes=axes).fna
        more = 2 * (num_tokens + 64) * (windows - 1) * own * 1024
        assert cost == round(12 * (layer + more))

    once, *others = (
        vision_cost(encoder, num_tokens, dataclasses.replace(centroid, **change)).fna
        for change in ({}, dict(refine=1), dict(resample=True), dict(residual=False))
    )
    assert others[0] - once == 11 * step and others[1] - once == 11 * 2 * step
    assert others[2] < once < vision_cost(encoder, num_tokens, FNAConfig("12:24", 256)).fna


def test_cost_of_fewer_tokens_by_hand():
    encoder, num_tokens = VARIANTS["clip-vit-l-14"].vision.encoder, 257
    width, depth = encoder.width, encoder.depth
    block = lambda n, left: 4 * n * width**2 + 2 * n**2 * width + 8 * left * width**2
    whole = vision_cost(encoder, num_tokens, ()).total
    assert whole == depth * block(num_tokens, num_tokens)
    assert reduced_cost(encoder, num_tokens, 1, TokenMerging(0, "0:24")) == whole

    merging = reduced_cost(encoder, num_tokens, 1, TokenMerging(10, (0, 22)))
    expected = block(257, 247) + 21 * block(247, 247) + block(247, 237) + block(237, 237)
    expected += (128**2 + 123**2) * 64 + 10 * (128 + 123) * width
    assert merging == expected

    dropping = reduced_cost(encoder, num_tokens, 1, TokenDropping(0.25, 12, features="input"))
    expected = 12 * block(257, 257) + block(257, 64) + 11 * block(64, 64)
    assert dropping == expected + 257 * 64 * width


def test_advice_is_honest_when_fna_does_not_pay():
    encoder = VARIANTS["clip-vit-l-14"].vision.encoder
    fnas = [FNAConfig("13:24", 64)]
    assert "does not pay" in advice(encoder, 257, fnas)
    assert "does not pay" not in advice(encoder, 1 + 96**2, fnas)
