import pytest

from benchmarks import scaling


@pytest.mark.slow
def test_all_sweeps_are_measured_and_the_laws_fitted(rows_of, monkeypatch, capsys):
    compiled_slowly = ("FNA, q sampled", "FNA, input sampled")  # and run by the test of attention
    monkeypatch.setattr(scaling, "LEFT_OUT", scaling.LEFT_OUT + compiled_slowly)
    sizes = ["--tokens", 9, 17, "--landmarks", 4, "--batch", 2, "--fixed", 9, 2, 1]
    rows = rows_of(scaling, *sizes, "--fit_from", 9, "--heads", 1, "--head_dim", 4, "--repeats", 1)
    exact = [row for row in rows if row["arm"] == "exact"]
    assert [[row[name] for name in ("sweep", *scaling.SIZES)] for row in exact] == [
        ["tokens", "9", "2", "1"],
        ["tokens", "17", "2", "1"],
        ["landmarks", "9", "4", "1"],
        ["batch", "9", "2", "2"],
    ]
    assert [bool(row["exponent"]) for row in exact] == [True, True, False, False]
    assert f"| exact | {float(exact[0]['exponent']):.2f} |" in capsys.readouterr().out


def test_laws_of_known_times_are_found():
    sizes = (256, 512, 1024, 2048)
    times = {"exact": 2, "exact, torch": 1, "FNA": 1, "slow": 1}  # powers of N
    scale = {"exact": 1.0, "exact, torch": 1500.0, "FNA": 700.0, "slow": 1e6}
    rows = [
        {"arm": arm, "tokens": n, "median_ms": scale[arm] * n**power}
        for arm, power in times.items()
        for n in sizes
    ]
    laws = scaling.laws(rows, fit_from=512)
    assert {arm: law["exponent"] for arm, law in laws.items()} == times
    assert laws["exact"]["break_even_tokens"] is None
    assert float(laws["FNA"]["break_even_tokens"]) == pytest.approx(700, abs=1)
    assert laws["slow"]["break_even_tokens"] == "above 2048"
    rows = [row for row in rows if row["tokens"] > 1000]
    assert scaling.laws(rows, fit_from=2048)["FNA"] == {
        "exponent": None,
        "break_even_tokens": "below 1024",
    }
