from benchmarks import attention


def test_every_arm_is_measured(rows_of, capsys):
    sizes = ["--tokens", 20, "--heads", 2, "--head_dim", 8, "--landmarks", 4]
    rows = rows_of(attention, *sizes, "--repeats", 2)
    assert set(attention.functions(4)) <= {row["arm"] for row in rows}
    assert all(float(row["median_ms"]) > 0 for row in rows)
    ours = [row for row in rows if "torch" not in row["arm"]]
    assert all(float(row["compile_s"]) > 0 for row in ours)
    assert "| 20 |" in capsys.readouterr().out
