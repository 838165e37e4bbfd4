from benchmarks import landmarks


def test_every_size_is_measured_and_the_choice_compared(rows_of, capsys):
    options = ["--tokens", 20, 33, "--features", 3, "--landmarks", 4, "--repeats", 1]
    rows = rows_of(landmarks, *options)
    assert {row["tokens"] for row in rows if row["arm"] == "fna_jax"} == {"20", "33"}
    assert all(float(row["median_ms"]) > 0 and row["same_indices"] == "True" for row in rows)
    assert "| 33 | 3 |" in capsys.readouterr().out
