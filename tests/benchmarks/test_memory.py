import argparse
import math

import pytest

from benchmarks import memory


def over_states(arm, num_tokens):
    """Peak of a compiled layer of ViT-L's size over query, key, value and output."""
    arguments = argparse.Namespace(batch=1, heads=16, head_dim=64, dtype="float32")
    spec = memory.state_spec(num_tokens, arguments)
    return memory.compiled_peak(memory.compiled(arm, spec, 64)) / (16 * math.prod(spec.shape))


@pytest.mark.parametrize("arm", ["exact", "FNA, q sampled"])
def test_peak_memory_is_linear_in_the_tokens(arm):
    assert over_states(arm, 65537) < 3  # 2.0 and 2.02 measured


def test_attention_that_holds_its_matrix_shows():
    assert over_states("exact, jax.nn", 4097) > 30  # 4097 / (4 · 64) for one matrix, and more


@pytest.mark.slow
def test_both_measures_tell_of_every_arm(rows_of, capsys):
    options = ["--tokens", 1025, "--heads", 2, "--head_dim", 8, "--landmarks", 4]
    rows = rows_of(memory, *options)
    assert [row["arm"] for row in rows] == list(memory.ARMS)
    assert [bool(row["resident_mb"]) for row in rows] == [False, True, True]
    assert all(float(row["compiled_mb"]) > float(row["states_mb"]) for row in rows)
    assert "| FNA, q sampled | 1,025 |" in capsys.readouterr().out
