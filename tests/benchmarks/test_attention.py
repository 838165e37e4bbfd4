import pytest

from benchmarks import attention


@pytest.mark.slow
def test_every_arm_is_measured(rows_of, capsys):
    sizes = ["--tokens", 20, "--heads", 2, "--head_dim", 8, "--landmarks", 4]
    rows = rows_of(attention, *sizes, "--repeats", 2)
    assert set(attention.functions(4)) <= {row["arm"] for row in rows}
    assert all(float(row["median_ms"]) > 0 for row in rows)
    assert all(float(row["compile_s"]) > 0 for row in rows)
    assert "| 20 |" in capsys.readouterr().out


@pytest.mark.reference
def test_arms_of_pytorch_take_part(rows_of):
    pytest.importorskip("torch")
    sizes = ["--tokens", 20, "--heads", 2, "--head_dim", 8, "--landmarks", 4]
    rows = rows_of(attention, *sizes, "--repeats", 1)
    assert {"exact, torch", "FNA, landmarks given, torch"} <= {row["arm"] for row in rows}
