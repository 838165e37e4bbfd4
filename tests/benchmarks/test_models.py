import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

import models.registry
from benchmarks import models as benchmark
from evals.jobs.cost import vision_cost
from fna_jax import FNAConfig

SMALL = models.registry.override(
    models.registry.FAMILIES["dinov2"].variants["dinov2-vit-s-14"],
    {"encoder": {"width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 64}},
)


def test_every_attention_is_measured_and_held_against_counting(rows_of, monkeypatch, capsys):
    family = dataclasses.replace(models.registry.FAMILIES["dinov2"], variants={"tiny": SMALL})
    monkeypatch.setitem(models.registry.FAMILIES, "dinov2", family)
    options = ["--model", "tiny", "--pixels", 42, "--landmarks", 3, "--repeats", 2]
    exact, fna, centroid, everywhere, *_ = rows_of(benchmark, *options)
    assert (centroid["layers"], everywhere["layers"]) == ("1 to 1", "0 to 1")
    assert exact["arm"] == "exact" and float(exact["speedup"]) == 1
    assert fna["layers"] == "1 to 1" and fna["tokens"] == "10"
    counted = vision_cost(SMALL.encoder, 10, FNAConfig((1,), 3)).speedup
    assert float(fna["counted_speedup"]) == pytest.approx(counted, abs=1e-3)
    share = float(fna["speedup"]) / counted
    assert float(fna["share_of_counted"]) == pytest.approx(share, abs=3e-3)  # both are rounded
    assert "| tiny, 42 px: FNA |" in capsys.readouterr().out


def test_a_model_is_of_the_size_asked_for_and_an_unknown_one_refused():
    config = benchmark.sized_config("clip-vit-l-14", 448, "bfloat16")
    assert (config.vision.image_size, config.dtype, config.param_dtype) == (448, *["bfloat16"] * 2)
    with pytest.raises(ValueError, match="did you mean 'clip-vit-l-14'"):
        benchmark.sized_config("clip-vit-l14", 448, "float32")


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
