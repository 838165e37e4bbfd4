"""What is chosen among pairs of attentions, and that a run of one size keeps those of others."""

import argparse

import numpy as np
import pytest

import models.registry
from benchmarks import on_photographs, recommended
from benchmarks.recommended import CANDIDATES, EXACT, PAPER
from benchmarks.rows import write_rows
from evals.running.pretrained import open_backbone
from fna_jax.config import config_by_block
from models.recommendation import recommended_for
from tests.evals.conftest import write_image


def row_of(pair, error, ms, half="choose", pixels=448):
    """A row as `measure` gives them."""
    row = {"half": half, "pixels": pixels, "tokens": 1025, "first": pair[0], "second": pair[1]}
    row |= {"class_token_error": error / 2, "patch_error": error, "error": error, "median_ms": ms}
    return row | {"speedup": 100 / ms, "counted_speedup": 1.1}


def test_every_candidate_runs_in_one_half_and_the_other_stays_exact():
    pairs = recommended.one_half(CANDIDATES)
    assert pairs[0] == (EXACT, EXACT) and len(set(pairs)) == len(pairs) and PAPER in pairs
    assert {name for pair in pairs for name in pair} == {EXACT, *CANDIDATES}
    assert all(EXACT in pair for pair in pairs)
    for first, second in pairs:
        blocks = config_by_block(recommended.configs_of((first, second), 7))
        assert [*blocks] == [0, 1, 2] * (first != EXACT) + [3, 4, 5, 6] * (second != EXACT)
    encoder = models.registry.FAMILIES["dinov2"].variants["dinov2-vit-s-14"].encoder
    for pair, error in zip(recommended.RECOMMENDED, (0.25, 0.2), strict=True):
        shown = tuple(recommended.configs_of(pair, encoder.depth))
        assert shown == recommended_for(encoder, 4097, error)
    assert recommended.one_half(["FNA 64"]) == [(EXACT, EXACT), PAPER]


def test_the_fastest_pair_below_a_ceiling_is_that_of_a_search():
    rng = np.random.default_rng(0)
    halves = [(EXACT, EXACT), *((x, EXACT) for x in "abcde"), *((EXACT, x) for x in "abcde")]
    found = {pair: row_of(pair, *rng.uniform((0, 80), (0.2, 105))) for pair in halves}
    found[EXACT, EXACT] = row_of((EXACT, EXACT), 0, 100)
    below = recommended.fastest_below([0.05, 0.15, 1], [*found.values()])
    assert len(below) == 3
    for ceiling, (first, second) in below.items():
        times = {}
        for a in (EXACT, *"abcde"):
            for b in (EXACT, *"abcde"):
                alone = found[a, EXACT], found[EXACT, b]
                if np.hypot(*(row["error"] for row in alone)) <= ceiling:
                    times[a, b] = sum(row["median_ms"] for row in alone)
        assert times[first, second] == min(times.values())


def test_where_nothing_is_faster_exact_attention_is_not_recommended_to_itself():
    rows = [row_of((EXACT, EXACT), 0, 100), row_of(("a", EXACT), 0.1, 101)]
    assert recommended.fastest_below([0.05, 0.5], [*rows, row_of((EXACT, "a"), 0.1, 90)]) == {
        0.5: (EXACT, "a")
    }


def test_one_size_can_be_measured_alone(rows_of, monkeypatch, tmp_path, capsys):
    def measure(pairs, backbone, half, pixels, arguments):
        return [
            row_of(p, 0.03 * (p != (EXACT, EXACT)), 100 - i, half, pixels)
            for i, p in enumerate(pairs)
        ]

    monkeypatch.setattr(recommended, "measure", measure)
    monkeypatch.setattr(recommended, "open_backbone", lambda name: None)
    (tmp_path / "out").mkdir()
    earlier = [row_of(pair, 0.5, 50, pixels=pixels) for pixels in (28, 42) for pair in [PAPER]]
    write_rows(tmp_path / "out" / "rows.csv", earlier)
    candidates = ["--candidates", "centroid 16", "--ceilings", "0.04"]
    rows = rows_of(recommended, "--pixels", 42, *candidates)
    assert [row["pixels"] for row in rows] == ["28"] + ["42"] * 7
    chosen = [row for row in rows if row["below"]]
    assert [(row["half"], row["first"], row["second"]) for row in chosen] == [
        ("report", EXACT, "centroid 16")
    ]
    assert "| 1,025 | 0.04 | exact | centroid 16 |" in capsys.readouterr().out


def test_errors_are_of_each_photograph_once(small_model, tmp_path, monkeypatch):
    files = [tmp_path / f"{number}.png" for number in range(4)]
    for number, file in enumerate(files):
        write_image(file, seed=number)
    monkeypatch.setattr(on_photographs, "photographs", lambda half: files)
    pairs, counts = [(EXACT, EXACT), (EXACT, "windows 64, near")], argparse.Namespace(choose=3)
    exact, near = recommended.measure(pairs, open_backbone(small_model), "choose", 32, counts)
    assert exact["error"] == 0 and exact["speedup"] == 1 and exact["tokens"] == 17
    assert near["photographs"] == 3 and near["repeats"] == 1
    # Every window is one patch, so that attention is exact but for rounding: measured 4e-7.
    assert near["patch_error"] < 4e-6 and near["class_token_error_spread"] < 4e-6


def test_no_photographs_are_refused(capsys):
    with pytest.raises(SystemExit):
        recommended.main(["--report", "0"])
    assert "at least 1, got 0" in capsys.readouterr().err
