"""The benchmark of loading runs; its shares are what they say."""

import types

from flax import nnx

from benchmarks import loading
from evals.running.pretrained import Backbone
from models.inputs.preprocessor import Preprocessor


class Mean(nnx.Module):
    """A model that is quick to compile."""

    def __call__(self, images, *, rng=None):
        return types.SimpleNamespace(pooled=images.mean(axis=(1, 2)))


def test_loading_is_measured_alone_and_with_the_model(rows_of, monkeypatch):
    preprocess = Preprocessor((8, 8), (8, 8), (0.5,) * 3, (0.5,) * 3)
    monkeypatch.setattr(loading, "backbone_of", lambda name: Backbone(name, Mean(), preprocess))
    options = ["--models", "mean", "--images", 6, "--size", 30, 20, "--batch", 4, "--workers", 0]
    (row,) = rows_of(loading, *options, "--repeats", 1, plot=False)
    assert (row["model"], row["images"], row["workers"]) == ("mean", "6", "0")
    assert all(float(row[f"{name}_per_s"]) > 0 for name in ("loading", "model", "together"))


def test_reading_goes_on_while_an_accelerator_computes(rows_of):
    options = ["--models", "waiting", "--waiting_per_s", 400, "--images", 16, "--size", 30, 20]
    (row,) = rows_of(loading, *options, "--batch", 8, "--workers", 0, "--repeats", 1, plot=False)
    assert float(row["model_per_s"]) <= 400 and float(row["together_per_s"]) > 0


def test_shares_of_the_slower_and_of_shared_cores():
    row = loading.shares(100.0, 300.0, 60.0)
    assert row["of_slower"] == 0.6 and row["shared_per_s"] == 75 and row["of_shared"] == 0.8
