import pytest

from benchmarks import centroids


@pytest.mark.slow
def test_every_arm_is_measured_and_compared_with_fna(rows_of, capsys):
    sizes = ["--grids", 4, "--heads", 2, "--head_dim", 8, "--landmarks", 4, "--windows", 4]
    rows = {row["arm"]: row for row in rows_of(centroids, *sizes, "--repeats", 2)}
    assert {row["tokens"] for row in rows.values()} == {"17"}
    assert all(float(row["median_ms"]) > 0 for row in rows.values())
    assert float(rows["FNA, q sampled"]["times_fna"]) == 1
    compared = [arm for arm in rows if "centroid" in arm and float(rows[arm]["times_fna"]) > 0]
    assert len(compared) == 4 and "| 17 | 4 | centroid, farthest" in capsys.readouterr().out
