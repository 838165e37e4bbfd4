"""The job of questions: prompts, batches, arms, predictions, and runs that are continued."""

import dataclasses
import importlib
import json

import numpy as np
import pytest
import tokenizers
from flax import nnx

import models
from evals.data.notices import say
from evals.data.questions import read_questions
from evals.jobs.vqa.arms import AnswerArm, make_answer_arms
from evals.jobs.vqa.asking import Bench, encoded, prompt_form
from evals.jobs.vqa.job import (
    answer_questions,
    answers_of,
    benches,
    check_arms,
    check_settings,
    questions_of,
)
from evals.jobs.vqa.picture import answer_examples, draw_answers
from evals.jobs.vqa.report import format_table, table_rows, vqa_report
from evals.running.pretrained import EMBEDDED_MODEL, Answering, open_answering
from models import registry
from models.chat import load_chat
from models.llava import LLaVA
from models.qwen_images import PixelBudget
from models.qwen_vl import QwenVL
from tests.evals.conftest import write_image
from tests.models import tiny_qwen_vl
from tests.models.test_prompts import PREPROCESSOR
from tests.models.test_qwen_prompts import PREPROCESSOR as QWEN_PREPROCESSOR
from tests.models.tiny_llava import IMAGE, SIDE, config_of, tiny_llava

WORDS = ["<s>", "</s>", "<unk>", "USER", "ASSISTANT", "How", "many", "cats", "dogs", "<image>"]
TEMPLATE = (
    "{{ bos_token }} USER {% for m in messages %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %} ASSISTANT"
)
AS_TEXT = "{{ bos_token }} USER {{ messages[0]['content'] }} ASSISTANT"
SIZES = ((90, 70), (30, 40), (50, 50), (28, 90), (60, 60))


@pytest.fixture(scope="module")
def companions(tmp_path_factory):
    """The files beside the checkpoint of a tiny LLaVA."""
    folder = tmp_path_factory.mktemp("companions")
    words = WORDS + [f"word{i}" for i in range(31 - len(WORDS))]
    assert words[IMAGE] == "<image>"
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "</s>", "<unk>", "<image>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    files = {
        "tokenizer_config.json": {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "chat_template": TEMPLATE,
        },
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": SIDE},
            "crop_size": {"height": SIDE, "width": SIDE},
        },
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def chat(companions):
    return load_chat(companions, vocab_size=31)


@pytest.fixture
def pope(tmp_path):
    """Five questions of POPE's form, each about an image of its own."""
    lines = []
    for i, size in enumerate(SIZES):
        write_image(tmp_path / "images" / f"{i}.png", size=size, seed=i)
        word = ("cats", "dogs")[i % 2]
        entry = {"question_id": i, "image": f"{i}.png", "text": f"How many {word}"}
        lines.append(json.dumps(entry | {"label": ("yes", "no")[i % 2]}))
    (tmp_path / "pope.json").write_text("\n".join(lines))
    return tmp_path


@pytest.fixture
def config(pope):
    config = importlib.import_module("configs.vqa").get_config()
    config.model, config.dataset = "/nowhere", "pope"
    config.questions, config.images = str(pope / "pope.json"), str(pope / "images")
    config.max_new_tokens, config.batch_size, config.repeats = 3, 2, 1
    config.fna.num_landmarks, config.fna.methods = (8,), ("fps",)
    config.landmark_cache.num_landmarks, config.dropping.kept = (4,), (50,)
    config.prefill.num_landmarks, config.prefill.run_lengths = (6,), (3,)
    return config


class Scripted(Bench):
    """Answers without a model: the last words of each prompt."""

    def written(self, view, arm, prompts, **settings):
        return prompts.tokens[:, -3:-1]


@pytest.fixture
def bench(config, chat):
    """The questions, and a model without weights."""
    model = registry.abstract_model(LLaVA, config_of("1.5"))
    backbone = Answering("tiny", model, PREPROCESSOR, chat=chat)
    questions = read_questions("pope", config.questions, images=config.images)
    form = prompt_form(chat, IMAGE)
    return Scripted(backbone, questions, form, config.batch_size, config.max_new_tokens)


def test_the_template_writes_one_image_and_the_place_of_the_question(chat):
    form = prompt_form(chat, IMAGE, instruction="many")
    assert form == "<s> USER <image> {question}\nmany ASSISTANT"
    as_text = dataclasses.replace(chat, template=AS_TEXT)
    assert prompt_form(as_text, IMAGE) == "<s> USER <image>\n{question} ASSISTANT"
    own = prompt_form(chat, IMAGE, form="<image> {question}", instruction="many")
    assert own == "<image> {question}\nmany"


def test_a_text_begins_once(chat):
    assert encoded(chat, "<s> USER") == encoded(chat, "USER") == [0, 3]


@pytest.mark.parametrize(
    "form, template, message",
    [
        ("{question}", TEMPLATE, r"--config\.prompt must give one image token \('<image>'\) and"),
        ("<image>", TEMPLATE, r"--config\.prompt must give one image token"),
        ("<image> <image> {question}", TEMPLATE, r"--config\.prompt must give one image token"),
        (None, "USER", r"the chat template in .* must give one image token .*, got 'USER'; set"),
        (None, None, "has no chat template"),
    ],
)
def test_a_form_without_image_or_question_is_refused(chat, form, template, message):
    chat = dataclasses.replace(chat, template=template)
    with pytest.raises(ValueError, match=message):
        prompt_form(chat, IMAGE, form=form)


def test_batches_have_few_shapes_and_all_questions(bench):
    found = [(rows.tolist(), bench.prompts(rows, looked)) for rows, looked in bench.batches()]
    assert [rows for rows, _ in found] == [[0, 1], [2, 3], [4, 4]]
    assert {prompts.tokens.shape for _, prompts in found} == {(2, 24)}
    assert {len(prompts.tiles) for _, prompts in found} == {2}
    assert np.sum(found[0][1].tokens[0] == IMAGE) == 16
    later = [rows.tolist() for rows, _ in bench.batches(start=2)]
    assert later == [[4, 4]]


def test_a_question_does_not_hold_an_image_token(bench):
    texts = [*bench.questions.texts[:-1], "How many <image>"]
    questions = dataclasses.replace(bench.questions, texts=texts)
    with pytest.raises(ValueError, match="question 4 has the image token '<image>' in its text"):
        _ = dataclasses.replace(bench, questions=questions).token_ids


def test_more_tokens_than_positions_are_refused_with_their_number(bench):
    small = dataclasses.replace(bench, max_new_tokens=390)
    message = "question 0 and its image have 22 tokens, and an answer 390, but the model has 400"
    with pytest.raises(ValueError, match=message):
        small.first_prompts()


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


def test_images_that_do_not_open_are_named_and_left_out(bench, monkeypatch, capfd):
    bench.questions.images[2].write_bytes(b"none")
    with pytest.raises(ValueError, match=r"1 of 5 images do not open .*2\.png"):
        list(bench.answers(AnswerArm()))
    monkeypatch.setattr("evals.data.unreadable.MOST_UNREADABLE", 0.5)
    say.cache_clear()
    bench.questions.images[3].write_bytes(b"none")
    answers = [text for texts in bench.answers(AnswerArm()) for text in texts]
    assert [text is None for text in answers] == [False, False, True, True, False]
    assert "2 of 5 images do not open" in capfd.readouterr().err


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
        ("image_sizes", (), r"--config\.image_sizes must be some values, all different"),
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


def test_a_table_has_means_over_seeds():
    arms = {
        name: {"label": name[:1], "strength": name[2:4]}
        for name in ("e", "r-50-seed0", "r-50-seed1")
    }
    speed = {"task": "speed", "arm": "all"} | {
        "first_token_ms": {"e": 4.0, "r-50-seed0": 2.0, "r-50-seed1": 4.0},
        "next_token_ms": {"e": 1.0},
        "cache_bytes": dict.fromkeys(arms, 2_000_000),
    }
    points = [
        {"arm": name, "task": "gqa", "score": score, "identical": 100.0, "num_questions": 2}
        for name, score in zip(arms, (50.0, 40.0, 42.0))
    ]
    results = {"points": [*points, speed], "arms": arms, "config": {"dataset": "gqa"}}
    assert format_table(table_rows(results)).splitlines()[2:] == [
        "| e |  | 50.0 | 100.0 | 4.0 | 1.00 | 2.0 |",
        "| r | 50 | 41.0 ± 1.4 | 100.0 ± 0.0 | 3.0 |  | 2.0 |",
    ]


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


def tiny_qwen(**decoder):
    """The config of a Qwen3-VL for batches of up to 128 tokens."""
    return registry.override(tiny_qwen_vl.config(), {"decoder": {"max_positions": 400} | decoder})


def test_a_qwen_sees_each_image_in_its_own_size(config, bench):
    model = registry.abstract_model(QwenVL, tiny_qwen())
    preprocess = dataclasses.replace(QWEN_PREPROCESSOR, budget=PixelBudget(16, 1024, 4096))
    backbone = dataclasses.replace(bench.backbone, model=model, preprocess=preprocess)
    bench = dataclasses.replace(bench, backbone=backbone)
    found = [bench.prompts(*batch) for batch in bench.batches()]
    assert len({prompts.tokens.shape for prompts in found}) == 1
    assert len({image.shape for prompts in found for image in prompts.images}) > 2
    for prompts in found:
        num_squares = sum(image[..., 0].size // 16**2 for image in prompts.images)
        assert np.sum(prompts.tokens == IMAGE) == num_squares
    for group in (config.prefill, config.landmark_cache):  # whose checks run the model
        group.num_landmarks = ()
    config.prefill.run_lengths = config.dropping.methods = ()
    check_arms(bench, make_answer_arms(config, model.config))
    config.fna.num_landmarks = (17,)
    with pytest.raises(ValueError, match="17 is more than the 16 tokens of the smallest image"):
        check_arms(bench, make_answer_arms(config, model.config))


@pytest.mark.slow
def test_the_whole_job_with_a_qwen(config, companions, tmp_path):
    model = QwenVL(tiny_qwen(), rngs=nnx.Rngs(0))
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


def test_a_table_has_rows_for_each_size():
    points = [
        {"arm": "e", "task": "digits", "score": 50.0, "identical": 100.0, "pixels": px}
        for px in (64, 96)
    ]
    speeds = [
        {"arm": "all", "task": "speed", "pixels": px, "first_token_ms": {"e": px / 10}}
        | {"next_token_ms": {}, "cache_bytes": {}}
        for px in (64, 96)
    ]
    arms, config = {"e": {"label": "exact", "strength": ""}}, {"dataset": "digits"}
    table = format_table(table_rows({"points": points + speeds, "arms": arms, "config": config}))
    assert table.splitlines()[2:] == [
        "| 64 | exact |  | 50.0 | 100.0 | 6.4 |",
        "| 96 | exact |  | 50.0 | 100.0 | 9.6 |",
    ]


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
