import dataclasses

import pytest

import models.registry
from benchmarks import qwen_tower
from benchmarks.rows import read_rows
from evals.running.workdir import ROOT

SMALL = models.registry.override(
    models.registry.FAMILIES["qwen3_vl_vision"].variants["qwen3-vl-2b-vision"],
    {
        "encoder": {"width": 16, "depth": 3, "num_heads": 2, "mlp_dim": 24},
        "deepstack": (0,),
        "out_width": 8,
    },
)
ARMS = ["exact", "FNA", "centroid", "centroid, near field"]


@pytest.fixture
def tiny(monkeypatch):
    family = dataclasses.replace(
        models.registry.FAMILIES["qwen3_vl_vision"], variants={"tiny": SMALL}
    )
    monkeypatch.setitem(models.registry.FAMILIES, "qwen3_vl_vision", family)
    return ["--model", "tiny", "--landmarks", 3, "--windows", 4]


def test_committed_memory_is_linear_in_the_patches():
    """By XLA's account of the compiled blocks, which are not compiled again here."""
    rows = [row for row in read_rows(ROOT / "results" / "qwen_tower.csv") if row["gmacs"]]
    per_patch = lambda row: float(row["block_temporaries_mb"]) / int(row["patches"])
    of_arm = {arm: [row for row in rows if row["arm"] == arm] for arm in ARMS}
    assert all(int(of_rows[-1]["patches"]) == 65536 for of_rows in of_arm.values())
    for of_rows in of_arm.values():
        assert per_patch(of_rows[-1]) <= per_patch(of_rows[0])


@pytest.mark.slow
def test_a_run_is_continued_with_the_rows_that_it_lacks(rows_of, tiny, monkeypatch, capsys):
    options = [*tiny, "--grids", "4x6"]
    compiled = rows_of(qwen_tower, *options, "--most_patches", 0, plot=False)
    assert [row["arm"] for row in compiled] == ARMS
    assert all(row["block_s"] == "" and row["block_temporaries_mb"] for row in compiled)
    rows = rows_of(qwen_tower, *options, plot=False)
    assert [row["arm"] for row in rows] == [*ARMS, qwen_tower.WITHOUT]
    assert all(float(row["block_s"]) > 0 for row in rows)
    monkeypatch.setattr(qwen_tower, "measure", None)  # nothing is left to do
    assert rows_of(qwen_tower, *options, plot=False) == rows
    assert "| 24 |" in capsys.readouterr().out


def test_what_is_counted_is_the_whole_tower():
    """Three blocks, the patch embedding, and two mergers of squares of four patches."""
    linear = 3 * 24 * (4 * 16**2 + 2 * 16 * 24) + 24 * 16 * 6 * 16**2
    mergers = 2 * 6 * (64 * 64 + 64 * 8)
    attention = 3 * 2 * 24**2 * 16
    assert qwen_tower.outside(SMALL, 24) == 24 * 16 * 6 * 16**2 + mergers
    share = qwen_tower.counted(SMALL, 24, None)["attention_share"]
    assert qwen_tower.matrix_bytes(SMALL, 24) == 4 * 2 * 24 * 24
    assert share == pytest.approx(attention / (linear + mergers + attention), abs=1e-4)


def test_an_unknown_tower_is_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="unknown model 'tinny'; did you mean 'tiny'"):
        qwen_tower.main(["--model", "tinny", "--output", str(tmp_path / "rows.csv")])
