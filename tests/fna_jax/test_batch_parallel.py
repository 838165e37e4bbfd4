"""Every public function with its batch split over eight simulated devices, in one process."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

import fna_jax
from tests.fna_jax.batch_parallel import CASES

ROOT = pathlib.Path(__file__).parents[2]
# What holds settings, and what computes nothing itself.
NO_FUNCTIONS = {"FNAConfig", "Landmarks", "Masking", "swap_attention"}
NO_FUNCTIONS |= {"CentroidKeyValue", "Clusters", "Windows"}


@pytest.fixture(scope="module")
def report():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    process = subprocess.run(
        [sys.executable, "-m", "tests.fna_jax.batch_parallel"],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout)


def test_every_public_function_is_covered():
    of_models = {"TokenMerging", "TokenDropping"}
    assert set(CASES) == set(fna_jax.__all__) - NO_FUNCTIONS | of_models


@pytest.mark.parametrize("case", CASES)
def test_shard_map_gives_what_a_split_batch_gives(report, case):
    found = report["shard_map"][case]
    assert isinstance(found, float), found
    assert found < 5e-6


@pytest.mark.parametrize("case", CASES)
def test_explicit_meshes_keep_the_batch_split(report, case):
    assert report["explicit"][case] is None


def test_explicit_meshes_split_heads_too(report):
    assert len(report["explicit, heads too"]) == len(CASES) - 2
    assert set(report["explicit, heads too"].values()) == {None}


def test_a_split_batch_stays_where_it_is(report):
    assert report["shard_map, sent"] == []
    # The search ends when all images are done: one bit of each device.
    assert report["automatic, sent"] == ["attention_sinks: all-reduce pred[]"]


@pytest.mark.parametrize("case", CASES)
def test_ranks_are_never_promoted_silently(report, case):
    assert report["strict ranks"][case] is None
