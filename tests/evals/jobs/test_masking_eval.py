import csv
import functools
import importlib
import json

import jax
import numpy as np
import pytest
from flax import nnx

import models
from evals.data import batches
from evals.data.datasets import open_data
from evals.jobs.masking import job as masking
from evals.jobs.masking.job import evaluate_masking, make_views, masking_effect
from evals.jobs.masking.report import format_masking, masking_report, masking_rows, remarks
from evals.running.embed import Embedder
from evals.running.pretrained import open_pretrained
from evals.running.workdir import run_points
from evals.tasks.retrieval import retrieval
from evals.tasks.zero_shot import zero_shot
from fna_jax import Masking
from models.detectors import ArtifactTokens, AttentionSinks, MassiveByAttention, MassiveByNorm
from tests.conftest import few

ACCURACIES = ("top1", "image_to_text_r1", "text_to_image_r1")
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)


def short_settings(model, **fields):
    """The settings of `configs/masking.py`, cut to seconds."""
    config = importlib.import_module("configs.masking").get_config()
    config.model = str(model)
    config.num_labelled_scenes, config.num_captioned_scenes = 12, 20
    config.num_fidelity_images, config.batch_size, config.max_sinks = 5, 4, 3
    config.update(fields)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_model):
    """Settings, text and folder of one short run."""
    config = short_settings(small_model, strategies=("massive-sink", "sinks-sink"))
    workdir = tmp_path_factory.mktemp("finished")
    return config, masking_report(config, workdir), workdir


def accuracies_of(points, arm):
    """By task and field."""
    return {
        (point["task"], field): point[field]
        for point in points
        if point["arm"] == arm
        for field in ACCURACIES
        if field in point
    }


def test_plain_is_the_exact_model_and_nothing_found_changes_nothing(finished):
    config, text, workdir = finished
    pretrained = open_pretrained(config.model)
    exact = [
        {"arm": "exact"} | task(pretrained, data, Embedder(4))
        for task, data in (
            (zero_shot, open_data("labelled", config)),
            (retrieval, open_data("captioned", config)),
        )
    ]
    expected = accuracies_of(exact, "exact")
    points = json.loads((workdir / "masking.json").read_text())["points"]
    effects = {p["arm"]: p for p in points if p["task"] == "masking_effect"}
    assert len(expected) == 3 and accuracies_of(points, "plain") == expected
    assert accuracies_of(points, "massive-sink") == expected
    assert effects["massive-sink"]["most_tokens_masked"] == 0
    assert effects["massive-sink"]["embedding_change"] < 1e-6
    assert effects["sinks-sink"]["embedding_change"] > 1e-3
    assert "massive tokens (by norm): none found in any of 5 images, so massive-sink change" in text


def test_the_files_hold_the_table(finished):
    _, text, workdir = finished
    results = json.loads((workdir / "masking.json").read_text())
    rows = results["table"]
    assert rows == masking_rows(results) and format_masking(rows) in text
    with open(workdir / "masking.csv") as file:
        read = list(csv.DictReader(file))
    assert [row["strategy"] for row in read] == ["plain", "massive-sink", "sinks-sink"]
    assert float(read[2]["tokens masked"]) == rows[2]["tokens masked"] > 0
    assert {row["jax"] for row in read} == {jax.__version__}


def test_a_finished_run_runs_nothing_again(finished, monkeypatch):
    config, text, workdir = finished
    for task in ("zero_shot", "retrieval", "masking_effect"):
        monkeypatch.setattr(masking, task, lambda *args, **options: pytest.fail("ran again"))
    assert masking_report(config, workdir) == text


def test_killed_jobs_continue_and_none_runs_twice(tmp_path):
    ran = []

    def job(number, killed):
        ran.append(number)
        if number == killed:
            raise KeyboardInterrupt
        return {"number": number}

    def run(killed):
        jobs = [("arm", str(i), functools.partial(job, i, killed)) for i in range(3)]
        return run_points(jobs, tmp_path / "points")

    with pytest.raises(KeyboardInterrupt):
        run(killed=1)
    assert run(killed=None) == [{"arm": "arm", "number": i} for i in range(3)]
    assert ran == [0, 1, 1, 2]


SINKS = AttentionSinks(0, 1, 3)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def two_passes(graphdef, state, images, detector, intervention):
    """The tokens found, and the embeddings without and with the intervention on them."""
    model = nnx.merge(graphdef, state)
    tokens = models.detect(model, images, detector)
    masked = models.with_interventions(model, {1: intervention})
    return tokens, model.encode_image(images), masked.encode_image(images, tokens=tokens)


@pytest.mark.parametrize(
    "strategy, by, detector, intervention",
    few(
        [
            ("massive-mask", "attention", MassiveByAttention(1), Masking("X->T", "mask")),
            ("massive-sink-others", "attention", MassiveByAttention(1), Masking("~T->T", "sink")),
            ("artifacts-sink", "norm", ArtifactTokens(SINKS, MassiveByNorm(1)), Masking()),
        ]
    ),
)
def test_a_strategy_is_two_passes_by_hand(small_model, strategy, by, detector, intervention):
    pretrained = open_pretrained(str(small_model))
    config = short_settings(small_model, strategies=(strategy,), detector=by)
    record = masking_effect(make_views(pretrained, config)[strategy], IMAGES, Embedder(4))
    images = next(batches(IMAGES, pretrained.preprocess, 5)).images
    tokens, plain, masked = jax.device_get(
        two_passes(*nnx.split(pretrained.model), images, detector, intervention)
    )
    change = np.mean(np.linalg.norm(masked - plain, axis=1) / np.linalg.norm(plain, axis=1))
    sizes = tokens.sum(axis=1)
    assert record["tokens_masked"] == sizes.mean() and record["most_tokens_masked"] == sizes.max()
    assert record["num_patches"] == 64
    assert record["embedding_change"] == pytest.approx(change, rel=1e-4, abs=1e-6)


def test_cancelled_suppression_has_no_token_set(small_model):
    pretrained = open_pretrained(str(small_model))
    config = short_settings(small_model, strategies=("cancel-suppression",), block=0)
    record = masking_effect(
        make_views(pretrained, config)["cancel-suppression"], IMAGES, Embedder(5)
    )
    assert record["embedding_change"] > 1e-3 and "tokens_masked" not in record


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"strategies": ("sink-sink",)}, "did you mean 'sinks-sink'"),
        ({"strategies": ()}, "strategies must be some values"),
        ({"strategies": ("sinks-sink", "sinks-sink")}, "all different"),
        ({"detector": "norms"}, "did you mean 'norm'"),
        ({"block": 2}, "blocks 0 to 1, got 2"),
        ({"first_block": -1}, "blocks 0 to 1, got -1"),
        ({"block": 0, "first_block": 1}, "first_block must lie in 0..0"),
        ({"max_sinks": 0}, "max_sinks must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_runs(
    small_model, tmp_path, fields, message
):
    config = short_settings(small_model)
    config.update(fields)
    with pytest.raises(ValueError, match=message):
        evaluate_masking(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def effect(arm, mean, most):
    return {"arm": arm, "tokens_masked": mean, "most_tokens_masked": most} | {
        "num_images": 64,
        "num_patches": 256,
    }


def test_remarks_say_what_a_detector_cannot_tell():
    results = {"config": {"detector": "attention", "max_sinks": 16}}
    results["points"] = [
        {"arm": "plain", "top1": 3.0},
        effect("massive-sink", 120.4, 200),
        effect("massive-mask", 120.4, 200),
        effect("artifacts-sink", 0.0, 0),
        effect("sinks-sink", 15.9, 16),
    ]
    crowd, nothing, limit = remarks(results)
    assert crowd.startswith("massive tokens (by attention): 120 of 256 patches")
    assert nothing.startswith("artifact tokens: none found") and "artifacts-sink change" in nothing
    assert limit.startswith("attention sinks: the search ended at max_sinks = 16")
    results["points"] = [effect("massive-sink", 2.6, 7), effect("sinks-sink", 9.0, 15)]
    assert remarks(results) == []
