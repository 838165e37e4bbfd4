"""Every layout: converted tiny models against what the original libraries computed."""

import functools

import numpy as np
import pytest
from flax import nnx

import models
from convert.families import LAYOUTS
from convert.loading import convert_checkpoint
from convert.verify import BOUND, random_inputs, stages, verify
from fna_jax import FNAConfig
from tests import zoo
from tests.conftest import few, rel_max_error

MEASURED = 5e-6  # the largest: 2.6e-6
TESTED_ELSEWHERE = {
    *("dinov2 (original)", "dinov3 (original)"),  # no library reads them: test_convert_dino*.py
    "siglip (open_clip)",  # no library makes a tiny one: test_convert_open_clip_siglip.py
    # No library of PyTorch's makes them: test_convert_npz.py.
    *("vit (vision_transformer)", "siglip (big_vision)"),
}

# What FNA sees of a model, whatever file it came from: the family, and the tokens in front.
ONE_OF_A_KIND = (
    *("clip_hf", "dinov2_hf", "dinov2_registers_hf", "dinov3_hf", "dinov3_gated_hf"),
    *("llava_hf", "llava_onevision_hf", "qwen3_vl_hf", "qwen3_vl_tower_hf"),
    *("siglip_hf", "siglip_timm", "vit_hf", "vit_timm_gap", "vjepa2_hf"),
)

forward = nnx.jit(lambda model, images: model(images))


def kind(model):
    """None for a language model, which has no vision tower for FNA."""
    if not models.registry.has_vision(model.config):
        return None
    return type(model), models.vision_tower(model).num_prefix


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of a case, written once."""
    root = tmp_path_factory.mktemp("zoo")
    return functools.cache(lambda case: zoo.write(case, root / case))


@pytest.fixture(scope="module")
def loaded(folders):
    """The converted model of a case, and its report."""
    return functools.cache(lambda case: convert_checkpoint(folders(case)))


def test_every_layout_has_a_case(loaded):
    converted = {str(loaded(case)[1].layout) for case in zoo.CASES}
    assert converted | TESTED_ELSEWHERE == {str(layout) for layout in LAYOUTS}
    assert {kind(loaded(case)[0]) for case in zoo.CASES} - {None} == {
        kind(loaded(case)[0]) for case in ONE_OF_A_KIND
    }


@pytest.mark.parametrize("case", few(zoo.CASES, zoo.EVERYDAY))
def test_outputs_are_the_originals(loaded, case):
    model, report = loaded(case)
    zoo.assert_computes(model, zoo.expected(case), MEASURED)
    assert not report.unknown_fields and not report.not_finite


@pytest.mark.parametrize("case", few(ONE_OF_A_KIND, zoo.EVERYDAY))
def test_fna_runs_in_every_family(loaded, case):
    model, _ = loaded(case)
    inputs, _ = random_inputs(model.config)
    depth = models.registry.vision_config(model.config).encoder.depth
    exact = stages(model, *inputs)["tokens"]
    num_tokens = exact.shape[1]
    fast = models.with_attention(model, FNAConfig(f"{depth - 1}:{depth}", num_tokens - 2))
    approximate = forward(fast, inputs[0])
    _, num_prefix = kind(model)
    chosen = np.asarray(approximate.landmarks.indices)
    assert all(set(range(num_prefix)) <= set(row) for row in chosen)
    assert 1e-7 < rel_max_error(approximate.tokens, exact) < 0.5  # nearly all are landmarks
    assert rel_max_error(stages(model, *inputs)["tokens"], exact) == 0


@pytest.mark.parametrize("case", few(zoo.CASES, ["clip_hf", "qwen3_hf"]))
def test_a_saved_model_is_the_converted_one(loaded, tmp_path, case):
    model, _ = loaded(case)
    models.save(model, tmp_path / "saved")
    again = models.load(tmp_path / "saved")
    assert again.config == model.config and type(again) is type(model)
    zoo.assert_same_leaves(again, model)


@pytest.mark.reference
@pytest.mark.parametrize("case", zoo.CASES)
def test_every_stage_agrees_live(folders, case):
    pytest.importorskip("torch")
    comparisons = verify(folders(case))
    assert len({c.inputs for c in comparisons}) == 2
    assert {"embeddings", "block 0"} < {c.stage for c in comparisons}
    for comparison in comparisons:
        assert comparison.error < BOUND and comparison.cosine > 1 - 1e-6, comparison
