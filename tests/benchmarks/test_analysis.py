import pytest

from benchmarks import analysis


@pytest.mark.slow
def test_a_run_is_measured(tmp_path, small_model):
    (tmp_path / "model").symlink_to(small_model)
    analysis.write_random_images(tmp_path / "images", 2, 64)
    row = analysis.measure(tmp_path, 2, 2)
    assert row["images"] == 2 and row["seconds"] > 0 and row["peak_gb"] > 0.1
