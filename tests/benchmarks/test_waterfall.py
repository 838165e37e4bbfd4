"""The steps from exact attention as first written to few clusters in all blocks."""

import pytest

from benchmarks import on_photographs, waterfall
from tests.evals.conftest import write_image


@pytest.mark.parametrize("ceiling, number", [(2.0, 2), (0.25, 4), (0.2, 8), (1 / 16, 16), (0, 16)])
def test_the_fewest_that_have_the_error_are_found(ceiling, number):
    asked = []

    def error_of(number):
        asked.append(number)
        return 1 / number

    assert waterfall.fewest(error_of, ceiling, [8, 2, 4, 16]) == number
    assert len(asked) <= 2  # each is compiled


@pytest.mark.slow
def test_each_step_is_held_against_the_first_and_the_one_before(
    rows_of, small_model, tmp_path, monkeypatch
):
    write_image(tmp_path / "noise.png")
    monkeypatch.setattr(on_photographs, "photographs", lambda half: [tmp_path / "noise.png"])
    options = ["--model", small_model, "--pixels", 32, "--landmarks", 4, "--clusters", 16]
    rows = rows_of(waterfall, *options)
    assert [(row["step"], row["blocks"]) for row in rows] == [
        ("exact, as first written", ""),
        ("exact, by blocks", ""),
        ("FNA, 4 shared landmarks", "1 to 1"),
        ("4 clusters", "1 to 1"),
        ("only 16 clusters", "1 to 1"),
        ("in all blocks, 16 clusters", "0 to 1"),
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
