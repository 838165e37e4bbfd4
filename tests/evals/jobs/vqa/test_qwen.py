"""Questions to a Qwen3-VL, which sees each image in its own size."""

import dataclasses
import json

import numpy as np
import pytest
from flax import nnx

import models
from evals.jobs.vqa.arms import make_answer_arms
from evals.jobs.vqa.job import answer_questions, benches, check_arms
from models import registry
from models.inputs.qwen_images import PixelBudget
from models.qwen_vl import QwenVL
from tests.models import tiny_qwen_vl
from tests.models.inputs.test_qwen_prompts import PREPROCESSOR
from tests.models.tiny_llava import IMAGE

CONFIG = registry.override(tiny_qwen_vl.config(), {"decoder": {"max_positions": 400}})


@pytest.fixture
def qwen(bench):
    """The questions, and a Qwen3-VL without weights."""
    model = registry.abstract_model(QwenVL, CONFIG)
    preprocess = dataclasses.replace(PREPROCESSOR, budget=PixelBudget(16, 1024, 4096))
    backbone = dataclasses.replace(bench.backbone, model=model, preprocess=preprocess)
    return dataclasses.replace(bench, backbone=backbone)


def test_a_qwen_sees_each_image_in_its_own_size(config, qwen):
    found = [qwen.prompts(*batch) for batch in qwen.batches()]
    assert len({prompts.tokens.shape for prompts in found}) == 1
    assert len({image.shape for prompts in found for image in prompts.images}) > 2
    for prompts in found:
        num_squares = sum(image[..., 0].size // 16**2 for image in prompts.images)
        assert np.sum(prompts.tokens == IMAGE) == num_squares
    for group in (config.prefill, config.landmark_cache):  # whose checks run the model
        group.num_landmarks = ()
    config.prefill.run_lengths = config.dropping.methods = ()
    check_arms(qwen, make_answer_arms(config, CONFIG))
    config.fna.num_landmarks = (17,)
    with pytest.raises(ValueError, match="17 is more than the 16 tokens of the smallest image"):
        check_arms(qwen, make_answer_arms(config, CONFIG))


def test_one_size_for_all_images_is_refused(config, qwen):
    config.image_sizes = (32,)
    with pytest.raises(ValueError, match=r"sizes=\(32,\): this model reads each image in its own"):
        benches(qwen, config)


@pytest.mark.slow
def test_the_whole_job_with_a_qwen(config, companions, tmp_path):
    model = QwenVL(CONFIG, rngs=nnx.Rngs(0))
    models.save(model, tmp_path / "model", companions=[*companions.glob("tokenizer*")])
    values = {"image_processor_type": "Qwen2VLImageProcessorFast", "patch_size": 8}
    values["size"] = {"shortest_edge": 1024, "longest_edge": 1536}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(values))
    config.model, config.repeats, config.max_new_tokens = str(tmp_path / "model"), 0, 2
    config.prefill.run_lengths = ()
    config.dropping.methods, config.dropping.block = ("attention",), 0
    results = answer_questions(config, tmp_path / "run")
    assert results["arms"].keys() == {
        *("exact", "fps-8", "prefill-fna-6", "cache-4", "attention-kept-50")
    }
    assert all(point["num_questions"] == 5 for point in results["points"])
