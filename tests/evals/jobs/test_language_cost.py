"""Counts of a language model against its weights, and against counts by hand."""

import dataclasses

import jax
import pytest
from flax import nnx

from evals.jobs.language_cost import language_advice, language_cost, with_landmarks
from models import registry
from models.decoder import VARIANTS, Decoder

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


@pytest.mark.parametrize("num_tokens, pays", [(2928, False), (30000, True)])
def test_advice_says_whether_it_pays(num_tokens, pays):
    text = language_advice(VICUNA, num_tokens, 256)
    assert f"reading {num_tokens:,} tokens" in text
    assert ("does not pay" in text) != pays
