"""Questions about digit scenes: sizes of images, and a picture of answers."""

import importlib
import json

import numpy as np
import pytest

import models
from evals.jobs.vqa.job import benches, questions_of
from evals.jobs.vqa.picture import answer_examples, draw_answers
from evals.jobs.vqa.report import vqa_report
from tests.models.tiny_llava import tiny_llava


def test_a_size_that_the_model_cannot_have_is_one_line(bench, config):
    config.image_sizes = (41, 28)
    message = r"--config\.image_sizes=\(41, 28\): image size 41 does not divide by the patch size 7"
    with pytest.raises(ValueError, match=message):
        benches(bench, config)


def test_a_picture_shows_first_where_both_answers_differ(config, tmp_path):
    config.dataset, config.num_questions = "digits", 14
    questions = questions_of(config)
    exact = [answer for (answer,) in questions.answers]
    wrong = [*exact[:-1], "wrong"]
    for name, answers in (("exact", exact), ("random", wrong)):
        (tmp_path / "predictions").mkdir(exist_ok=True)
        entries = [{"question_id": i, "answer": answer} for i, answer in enumerate(answers)]
        (tmp_path / "predictions" / f"{name}.json").write_text(json.dumps(entries))
    points = [{"arm": "exact", "identical": 100.0}, {"arm": "random", "identical": 92.0}]
    results = {
        "points": [point | {"task": "digits"} for point in points],
        "arms": {"random": {"label": "at random", "strength": "25 %"}},
    }
    examples, name = answer_examples(config, results, tmp_path, num_images=2)
    assert name == "at random 25 %" and len(examples) == 2
    np.testing.assert_array_equal(examples[0].image, questions.images[-1])
    assert examples[0].asked[-1] == (questions.texts[-1], exact[-1], exact[-1], "wrong")
    draw_answers(examples, name, tmp_path / "answers.png")
    assert (tmp_path / "answers.png").stat().st_size > 1000


@pytest.mark.slow
def test_digits_are_asked_at_each_size(config, companions, tmp_path):
    models.save(tiny_llava("1.5"), tmp_path / "model", companions=[*companions.iterdir()])
    config.model, config.dataset, config.image_sizes = str(tmp_path / "model"), "digits", (28, 42)
    config.questions = config.images = None
    config.num_questions, config.max_new_tokens, config.repeats = 5, 2, 0
    config.fna.methods, config.dropping.methods = (), ()
    config.prefill.num_landmarks = config.prefill.run_lengths = ()
    text = vqa_report(config, tmp_path / "run")
    assert "answers.png" in text and (tmp_path / "run" / "answers.png").is_file()
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["table"]
    assert [(row["px"], row["S"]) for row in rows] == [(28, ""), (28, "4"), (42, ""), (42, "4")]


@pytest.mark.slow
def test_the_embedded_model_answers(tmp_path):
    config = importlib.import_module("configs.vqa").get_config()
    config.fna.methods, config.dropping.methods, config.repeats = (), (), 0
    config.prefill.num_landmarks = config.prefill.run_lengths = ()
    config.landmark_cache.num_landmarks = (64,)
    vqa_report(config, tmp_path / "run")
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["table"]
    exact, cached = rows[::2], rows[1::2]
    assert [row["px"] for row in exact] == [row["px"] for row in cached] == [64, 96]
    assert min(row["exact match %"] for row in exact) >= 85  # of 100 questions; 90 of many
    assert all(row["as exact %"] == 100 for row in exact)
    assert min(row["as exact %"] for row in cached) >= 90
