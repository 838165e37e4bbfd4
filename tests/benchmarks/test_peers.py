"""The peers compute what they are called; one that is missing is said so once."""

import numpy as np
import pytest

from benchmarks import peers
from fna_jax import exact_attention, fast_nystrom_attention, select_landmarks
from tests.conftest import random_qkv, rel_max_error


@pytest.fixture
def states():
    """Query, key, value, inputs and four landmarks."""
    query, key, value = random_qkv(batch=(2,), tokens=33, heads=2, dim=8)
    inputs = np.random.default_rng(1).standard_normal((2, 33, 16)).astype(np.float32)
    return query, key, value, inputs, select_landmarks(inputs, 4).indices


def test_a_missing_library_is_said_once(capsys):
    assert peers.library("no-such-attention") is None
    assert peers.library("no-such-attention") is None
    assert capsys.readouterr().err.count("no-such-attention is left out") == 1
    assert "no-such-attention" not in peers.versions("no-such-attention", "jax")


@pytest.mark.reference
def test_attention_in_pytorch_equals_ours(states):
    pytest.importorskip("torch")
    *attended, inputs, indices = states
    arms = peers.attention_arms(*attended, inputs, indices)
    expected = {"exact": exact_attention(*attended)}
    fna = fast_nystrom_attention(*attended, indices)
    expected |= {"FNA, landmarks given": fna, "FNA, input sampled": fna}
    for name, arm in arms.items():
        (same,) = (out for ours, out in expected.items() if name.startswith(f"{ours}, torch"))
        assert rel_max_error(arm().transpose(1, 2), same) < 1e-5


@pytest.mark.reference
def test_other_approximations_give_an_output_of_the_same_size(states):
    pytest.importorskip("torch")
    *attended, inputs, _ = states
    for name, arm in peers.other_arms(*attended, inputs, 4).items():
        assert arm().numel() == inputs.size, name
