"""A batch, or the tokens of one sequence, split over eight simulated devices, in one process."""

import json
import math
import os
import pathlib
import re
import subprocess
import sys

import pytest

from benchmarks.sharding import communicated_bytes
from tests.fna_jax import batch_parallel, token_parallel

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]
of_functions = pytest.mark.parametrize("case", batch_parallel.CASES)
of_arms = pytest.mark.parametrize("arm", token_parallel.ARMS)


@pytest.fixture(scope="module")
def report():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    process = subprocess.run(
        [sys.executable, "-m", "tests.fna_jax.eight_devices"],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout)


# A batch.


@pytest.fixture(scope="module")
def batch(report):
    return report["batch"]


@of_functions
def test_shard_map_gives_what_a_split_batch_gives(batch, case):
    found = batch["shard_map"][case]
    assert isinstance(found, float), found
    assert found < 5e-6


@of_functions
def test_explicit_meshes_keep_the_batch_split(batch, case):
    assert batch["explicit"][case] is None


def test_explicit_meshes_split_heads_too(batch):
    assert len(batch["explicit, heads too"]) == len(batch_parallel.CASES) - 2
    assert set(batch["explicit, heads too"].values()) == {None}


def test_a_split_batch_stays_where_it_is(batch):
    assert batch["shard_map, sent"] == []
    # The search ends when all images are done: one bit of each device.
    assert batch["automatic, sent"] == ["attention_sinks: all-reduce pred[]"]


@of_functions
def test_ranks_are_never_promoted_silently(batch, case):
    assert batch["strict ranks"][case] is None


# The tokens of one sequence.


@pytest.fixture(scope="module")
def tokens(report):
    return report["tokens"]


@pytest.mark.parametrize("case", token_parallel.CASES)
@of_arms
def test_eight_devices_compute_what_one_does(tokens, arm, case):
    found = tokens["cases"][case][arm]
    assert found["same choice"]
    assert found["error"] < 5e-6


def test_the_docstrings_program_traces(tokens):
    """Masks left out, and the mesh's axes checked; what it computes is tested above."""
    assert tokens["docstring"] == [1, 128, 2, 4]


@of_arms
def test_outputs_are_bfloat16_where_inputs_are(tokens, arm):
    assert tokens[arm]["dtype"] == "bfloat16"


def test_gradients_pass_the_collectives(tokens):
    assert tokens["cases"]["padded, grouped heads"]["gradient error"] < 5e-6


@of_arms
def test_communication_does_not_grow_with_the_tokens(tokens, arm):
    few, many = tokens[arm]["asked for"]
    assert few == many and len(few) > 5


@of_arms
def test_communication_is_what_the_benchmark_counts(tokens, arm):
    def size(line):
        shapes = re.findall(r"[fs]32\[([\d,]*)\]", line)
        return sum(4 * math.prod(map(int, shape.split(","))) for shape in shapes)

    lines = tokens[arm]["sent"]
    (step,) = (line for line in lines if "f32[1,8,10]" in line)  # score, position, 8 features
    total = sum(map(size, lines)) + 11 * size(step)  # the step runs for each of 12 landmarks
    options = dict(features=8, itemsize=4, heads=4, head_dim=8)
    counted = communicated_bytes(arm, 12, 8, lloyd_steps=1, **options)
    assert total == sum(counted.values())
