"""The steps from exact attention as first written to few clusters in all blocks."""

import pytest

from benchmarks import waterfall
from tests.evals.conftest import write_image


def test_the_fewest_with_the_error_are_found_and_none_is_an_error():
    asked = []

    def error_of(number):
        asked.append(number)
        return 1 / number

    assert waterfall.fewest(error_of, 0.25, [8, 2, 4, 16]) == 4
    assert asked == [2, 4]  # each is compiled
    with pytest.raises(ValueError, match=r"at most 0.01, FNA's, but \{2: 0.5\}: name more"):
        waterfall.fewest(error_of, 0.01, [2])


def test_each_step_is_held_against_the_first_and_the_one_before(
    rows_of, small_model, tmp_path, monkeypatch
):
    write_image(tmp_path / "noise.png")
    monkeypatch.setattr(waterfall, "photographs", lambda half: [tmp_path / "noise.png"])
    options = ["--model", small_model, "--pixels", 32, "--landmarks", 4, "--clusters", 16]
    rows = rows_of(waterfall, *options)
    assert [(row["step"], row["blocks"]) for row in rows] == [
        ("exact, as first written", ""),
        ("exact, by blocks", ""),
        ("FNA, 4 shared landmarks", "1 to 1"),
        ("4 clusters", "1 to 1"),
        ("16 clusters, FNA's error", "1 to 1"),
        ("16 clusters, in all blocks", "0 to 1"),
    ]
    as_written, fused, fna, clusters, few, everywhere = rows
    assert float(as_written["error"]) < 1e-5 and float(fused["error"]) == 0
    assert float(clusters["error"]) > 0 and float(fna["error"]) > 0
    # Each patch is a cluster of its own, and a window, so that attention is exact but for rounding.
    assert float(few["error"]) < 1e-4 and float(everywhere["error"]) < 1e-4
    first = float(as_written["median_ms"])
    for before, row in zip([as_written, *rows], rows):
        time = float(row["median_ms"])
        assert float(row["times_first"]) == pytest.approx(first / time, rel=0.02, abs=2e-3)
        times_before = float(before["median_ms"]) / time
        assert float(row["times_before"]) == pytest.approx(times_before, rel=0.02, abs=2e-3)
