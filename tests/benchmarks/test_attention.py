import csv

from benchmarks import attention


def test_every_arm_is_measured_at_every_size(tmp_path):
    output = tmp_path / "attention.csv"
    sizes = ["--tokens", "20", "33", "--heads", "2", "--head_dim", "8", "--landmarks", "4"]
    attention.main([*sizes, "--repeats", "2", "--output", str(output)])
    with open(output) as file:
        rows = list(csv.DictReader(file))
    arms = {"exact", "exact, jax.nn", "FNA, landmarks given", "FNA, q sampled"}
    for tokens in ("20", "33"):
        assert arms <= {row["arm"] for row in rows if row["tokens"] == tokens}
    assert all(float(row["median_ms"]) > 0 and row["device"] and row["jax"] for row in rows)
