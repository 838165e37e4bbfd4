"""Centroid attention beside FNA of the same error: how the number of landmarks is found."""

import numpy as np
import pytest

from benchmarks import equal_error
from tests.evals.conftest import write_image


@pytest.mark.parametrize("error, landmarks", [(2.0, 8), (1 / 8, 8), (0.06, 16), (1e-4, 256)])
def test_fna_gets_the_most_landmarks_with_which_it_is_no_more_accurate(error, landmarks):
    asked = []

    def error_of(number):
        asked.append(number)
        return 1 / number

    assert equal_error.as_inaccurate(error_of, error, 1370) == landmarks
    assert len(asked) <= 6  # each is compiled
    assert equal_error.as_inaccurate(error_of, 1e-4, 65) == 64  # no more than the tokens


@pytest.mark.slow
def test_every_arm_is_measured_beside_fna_of_its_error(rows_of, small_model, tmp_path, monkeypatch):
    write_image(tmp_path / "noise.png")
    monkeypatch.setattr(equal_error, "photographs", lambda half: [tmp_path / "noise.png"])
    monkeypatch.setattr(equal_error, "_PARTITIONS", {"kmeans": "k-means"})
    monkeypatch.setattr(equal_error.peers, "sampled_arm", lambda *arguments: {})
    options = ["--model", small_model, "--pixels", 32, "--clusters", 4, "--repeats", 1]
    exact, centroid, fna = rows_of(equal_error, *options, "--photographs", 1, plot=False)
    assert exact["arm"] == "exact" and exact["tokens"] == "17" and not exact["error"]
    assert centroid["arm"] == "centroid, k-means, S = 4" and fna["arm"].startswith("FNA, S = ")
    ratio = float(centroid["median_ms"]) / float(fna["median_ms"])
    assert float(centroid["times_fna"]) == pytest.approx(ratio, rel=0.02)  # one round, rounded
    assert 0 < float(centroid["error"]) < 1 and np.isfinite(float(fna["error"]))


@pytest.mark.reference
def test_pytorchs_fna_samples_the_mean_query_within_its_time():
    torch, _ = pytest.importorskip("torch"), pytest.importorskip("torch_quickfps")
    states = np.random.default_rng(0).standard_normal((3, 1, 20, 2, 4)).astype(np.float32)
    (arm,) = equal_error.peers.sampled_arm("torch", *states, 5).values()
    heads_first = [torch.from_numpy(x).transpose(1, 2) for x in states]
    chosen = equal_error.peers.sampler(5)(torch.from_numpy(states[0].mean(axis=2)))
    np.testing.assert_allclose(
        arm(), equal_error.peers.nystrom_attention(*heads_first, chosen), rtol=1e-5, atol=1e-5
    )
