"""What the smoke tests share: a benchmark at a tiny size, and its rows."""

import pytest

from benchmarks import peers
from benchmarks.rows import read_rows


@pytest.fixture
def rows_of(request, tmp_path, monkeypatch):
    """A function that runs `main` of a benchmark with options, and reads the rows it wrote.

    Every row has its device and versions, and a picture that is not empty lies beside them.
    PyTorch's arms take part in tests that are marked as a reference.
    """
    if not request.node.get_closest_marker("reference"):
        monkeypatch.setattr(peers, "device", lambda: None)

    def run(benchmark, *options, plot=True):
        output = tmp_path / "out" / "rows.csv"
        benchmark.main([*map(str, options), "--output", str(output)])
        rows = read_rows(output)
        assert rows and all(row["device"] and row["jax"] and row["command"] for row in rows)
        picture = output.with_suffix(".png")
        assert picture.stat().st_size > 1000 if plot else not picture.exists()
        return rows

    return run
