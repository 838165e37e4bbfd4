import csv

from benchmarks import landmarks


def test_every_size_is_measured_and_the_choice_compared(tmp_path):
    output = tmp_path / "landmarks.csv"
    sizes = ["--tokens", "20", "33", "--features", "3", "--landmarks", "4", "--repeats", "1"]
    landmarks.main([*sizes, "--output", str(output)])
    with open(output) as file:
        rows = list(csv.DictReader(file))
    assert {row["tokens"] for row in rows if row["arm"] == "fna_jax"} == {"20", "33"}
    assert all(float(row["median_ms"]) > 0 and row["same_indices"] == "True" for row in rows)
