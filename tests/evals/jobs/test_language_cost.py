"""Counts of a language model against its weights, and against counts by hand."""

import dataclasses

import jax
import pytest
from flax import nnx

from evals.jobs.language_cost import (
    language_advice,
    language_cost,
    with_dropping,
    with_landmarks,
    with_prefill,
)
from models import registry
from models.decoder import VARIANTS, Decoder
from models.image_tokens import ImageDropping
from models.prefill import CentroidPrefill, NystromPrefill

VICUNA, QWEN = VARIANTS["vicuna-7b-v1.5"], VARIANTS["qwen2-0.5b"]


@pytest.mark.parametrize("name", ["vicuna-7b-v1.5", "mistral-7b-v0.2", "qwen2-0.5b"])
def test_all_matrices_are_counted(name):
    """A token is multiplied by every matrix of the model; but embeddings are looked up."""
    config = VARIANTS[name]
    state = nnx.state(registry.abstract_model(Decoder, config))
    counted = "embedding" if config.tied_head else "head", "kernel"
    sizes = {
        jax.tree_util.keystr(path): leaf.size for path, leaf in jax.tree.leaves_with_path(state)
    }
    matrices = sum(n for path, n in sizes.items() if any(part in path for part in counted))
    cost = language_cost(config, 1)
    assert cost.linear == cost.weight_bytes // 2 == matrices


def test_counts_by_hand():
    cost = language_cost(VICUNA, 100)
    assert cost.attention == 32 * 2 * 4096 * sum(range(1, 101))
    assert cost.cache_bytes == 32 * 100 * 2 * 4096 * 2
    grouped = language_cost(QWEN, 100)
    assert grouped.attention == 24 * 2 * (14 * 64) * 5050
    assert grouped.cache_bytes == 24 * 100 * 2 * (2 * 64) * 2
    windowed = language_cost(dataclasses.replace(VICUNA, sliding_window=10), 100)
    assert windowed.attention == 32 * 2 * 4096 * (sum(range(1, 11)) + 90 * 10)


def test_attention_is_little_of_llava_nexts_prefill():
    cost = language_cost(VICUNA, 2928)
    assert cost.attention_share == pytest.approx(0.06, abs=0.005)
    assert cost.most_speedup(0.5) < 1.03 < cost.most_speedup(1) < 1.07


def test_landmarks_in_half_of_the_layers():
    cost = language_cost(VICUNA, 1000)
    assert with_landmarks(cost, 1000, 250, 0.5).cache_bytes == cost.cache_bytes * 0.625
    assert with_landmarks(cost, 1000, 1000, 0.5) == cost


def test_approximate_prefill_by_hand():
    exact = language_cost(QWEN, 1000)
    of_block = exact.attention / 24
    fna = with_prefill(QWEN, 1000, NystromPrefill("20:24", 100))
    own = 14 * 64 * (4 * 1000 * 100 + 2 * 100**2) + 14 * 24 * 100**3
    assert fna.attention == 20 * of_block + 4 * own + 1000 * 100 * 64
    runs = with_prefill(QWEN, 1000, CentroidPrefill("20:24", 30))
    assert runs.attention == 20 * of_block + 4 * 2 * 14 * 64 * 1000 * (60 + 34)
    assert fna.linear == runs.linear == exact.linear


def test_dropped_tokens_cost_nothing_behind_the_block():
    whole, half = language_cost(VICUNA, 1000), language_cost(VICUNA, 500)
    inner = with_dropping(VICUNA, 1000, ImageDropping(50, "attention", block=7))
    for name in ("attention", "cache_bytes"):
        eighths = 2 * getattr(whole, name) + 6 * getattr(half, name)
        assert getattr(inner, name) == eighths / 8
    assert with_dropping(VICUNA, 1000, ImageDropping(50, "random")) == half


def test_approximate_prefill_gains_less_than_three_percent_in_llava_next():
    exact = language_cost(VICUNA, 2928).prefill
    for prefill in (NystromPrefill("16:32", 256), CentroidPrefill("16:32", 64)):
        assert 1 < exact / with_prefill(VICUNA, 2928, prefill).prefill < 1.03


@pytest.mark.parametrize("num_tokens, pays", [(2928, False), (30000, True)])
def test_advice_says_whether_it_pays(num_tokens, pays):
    text = language_advice(VICUNA, num_tokens, 256)
    assert f"reading {num_tokens:,} tokens" in text
    assert ("does not pay" in text) != pays
