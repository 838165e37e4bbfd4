"""The benchmark that counts language models."""

from benchmarks import language_cost


def test_every_model_and_size_is_counted(rows_of):
    rows = rows_of(language_cost, "--tokens", 200, 4000, plot=False)
    assert [int(row["tokens"]) for row in rows] == [200, 4000] * len(language_cost.MODELS)
    short, long = rows[:2]
    assert short["times_fewer_bytes"] == "1.0"  # of no more than 256 tokens all are kept
    assert float(long["landmark_cache_gb"]) < float(long["cache_gb"])
