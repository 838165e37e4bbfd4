import pytest

import models.registry
from benchmarks import vjepa2
from fna_jax.windows import Windows


def test_what_is_counted_is_all_blocks(rows_of):
    rows = rows_of(vjepa2, plot=False)
    assert len(rows) == 4 * len(vjepa2.ARMS)
    exact, *others = rows[: len(vjepa2.ARMS)]
    width, num_tokens = 1024, 32 * 16 * 16
    attention, linear = 2 * num_tokens**2 * width, 12 * num_tokens * width**2
    assert float(exact["gmacs"]) == pytest.approx(24 * (attention + linear) / 1e9, abs=0.1)
    assert float(exact["attention_share"]) == pytest.approx(0.5714, abs=1e-4)
    assert float(exact["matrix_gb"]) == pytest.approx(16 * 8192**2 * 4 / 1e9, abs=1e-3)
    assert all(float(row["times_less"]) > 1 for row in others)
    assert {int(row["tokens"]) for row in rows} == {8192, 18432}


@pytest.mark.parametrize("name", vjepa2.encoders())
def test_as_many_boxes_are_near_as_are_counted(name):
    """They are nearly as many as they may be, and 27 of them near to one that has no edge."""
    config = models.registry.published(name)[1]
    grid = (32, *2 * [config.image_size // 16])
    for fna in vjepa2.ARMS.values():
        if fna is not None and fna.windows:
            windows = Windows.at_most(fna.windows, grid, fna.near)
            assert 0.8 * fna.windows < windows.num_windows <= fna.windows
            assert windows.neighbours().shape[1] == 27**fna.near
