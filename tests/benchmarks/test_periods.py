"""The benchmark of DINOv3's rotary periods."""

import pytest

from benchmarks import periods
from benchmarks.rows import read_rows
from evals.running.workdir import ROOT


@pytest.mark.slow
def test_rounded_periods_change_less_than_rounded_numbers():
    small = dict(encoder=dict(width=32, depth=1, num_heads=2, mlp_dim=32), patch_size=8)
    rows = periods.measure("dinov3-vit-s-16", [32], **small)
    assert [row["changed"] for row in rows] == ["float32 periods", "bfloat16"]
    assert 0 < float(rows[0]["error"]) < float(rows[1]["error"]) < 0.1  # of published sizes 0.011


def test_all_models_were_measured():
    rows = read_rows(ROOT / "results" / "periods.csv")
    assert {row["model"] for row in rows} == set(periods.MODELS)
    assert {int(row["pixels"]) for row in rows} == set(periods.PIXELS)
