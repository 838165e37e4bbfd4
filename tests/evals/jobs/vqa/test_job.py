"""The job of questions: arms, settings, and runs that are continued."""

import json

import pytest

import models
from evals.jobs.vqa.arms import AnswerArm, make_answer_arms
from evals.jobs.vqa.job import answer_questions, answers_of, check_settings
from evals.jobs.vqa.report import vqa_report
from evals.running.pretrained import EMBEDDED_MODEL, open_answering
from tests.models.tiny_llava import config_of, tiny_llava


def test_a_killed_pass_goes_on_behind_its_last_batch(bench, tmp_path):
    whole = answers_of(bench, "pope", tmp_path)(AnswerArm())
    journal = tmp_path / "answers" / "exact.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(whole) == 5 and len(lines) == 3
    journal.write_bytes(b'["kept", "kept"]\n' + lines[1][:4])
    (tmp_path / "predictions" / "exact.jsonl").unlink()
    again = answers_of(bench, "pope", tmp_path)(AnswerArm())
    assert again == ["kept", "kept", *whole[2:]]
    told = (tmp_path / "predictions" / "exact.jsonl").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in told] == again


def test_arms_of_a_config(config):
    config.dropping.seeds = (0, 1)
    arms = make_answer_arms(config, config_of("1.5"))
    assert [(arm.name, arm.strength) for arm in arms] == [
        ("exact", ""),
        ("fps-8", "8"),
        ("prefill-fna-6", "6"),
        ("prefill-runs-3", "of 3"),
        ("cache-4", "4"),
        ("farthest-kept-50", "50 %"),
        ("random-kept-50-seed0", "50 %"),
        ("random-kept-50-seed1", "50 %"),
        ("attention-kept-50", "50 %"),
    ]
    assert arms[2].prefill.layers == arms[3].prefill.layers == arms[4].cache.layers == (1,)
    assert [arm.dropping.block for arm in arms[5:]] == [None, None, None, 1]
    config.fna.methods = ("drop",)
    with pytest.raises(ValueError, match="leaves the language model without features"):
        make_answer_arms(config, config_of("1.5"))


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("dataset", "digits", r"questions was given, but the questions of digits are embedded: dr"),
        ("image_sizes", (28, 28), r"--config\.image_sizes must be some values, all different"),
        ("questions", None, r"--config\.questions is missing"),
        ("batch_size", 0, r"--config\.batch_size must be at least 1, got 0"),
        ("repeats", -1, r"--config\.repeats must be at least 0, got -1"),
        ("dropping.kept", (), r"--config\.dropping\.kept must be some values, all different"),
        ("landmark_cache.num_landmarks", (4, 4), "must be some values, all different"),
    ],
)
def test_settings_that_cannot_be_used(config, field, value, message):
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message):
        check_settings(config)


def test_a_model_that_is_no_llava_is_refused():
    with pytest.raises(
        ValueError, match="is a clip, which does not answer questions: take a LLaVA"
    ):
        open_answering(str(EMBEDDED_MODEL))


@pytest.mark.slow
def test_the_whole_job(config, companions, tmp_path):
    models.save(tiny_llava("1.5"), tmp_path / "model", companions=[*companions.iterdir()])
    config.model, config.max_new_tokens = str(tmp_path / "model"), 2
    config.fna.methods, config.dropping.methods = (), ("farthest", "attention")
    with pytest.raises(ValueError, match="none of them behind block 1: drop tokens behind"):
        answer_questions(config, tmp_path / "run")
    config.dropping.block = 0
    config.landmark_cache.num_landmarks = (40,)
    with pytest.raises(ValueError, match=r"=40 is more than the \d+ tokens of the first prompt"):
        answer_questions(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config.landmark_cache.num_landmarks = (4,)
    text = vqa_report(config, tmp_path / "run")
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["table"]
    assert [row["attention"] for row in rows] == [
        "exact",
        "FNA in prefill",
        "centroid, runs, in prefill",
        "landmark cache",
        "image tokens, farthest points",
        "image tokens, most attended to",
    ]
    assert rows[0]["as exact %"] == 100 and "5 questions of pope" in text
    # Keys and values of float32, two heads of 8, in 32 slots and two layers.
    slot = 2 * 4 * 2 * 8 / 1e6
    expected = [slot * slots for slots in (64, 64, 64, 32 + 4, 2 * 24, 32 + 24)]
    assert [row["cache MB"] for row in rows] == pytest.approx(expected)
    assert len(list((tmp_path / "run" / "predictions").iterdir())) == 6
    before = (tmp_path / "run" / "answers" / "exact.jsonl").stat().st_mtime_ns
    again = answer_questions(config, tmp_path / "run")
    assert again["points"][0]["score"] == rows[0]["accuracy %"]
    assert (tmp_path / "run" / "answers" / "exact.jsonl").stat().st_mtime_ns == before
