"""Forms of prompts, batches of few shapes, and images that do not open."""

import dataclasses

import numpy as np
import pytest

from evals.data.notices import say
from evals.jobs.vqa.arms import AnswerArm
from evals.jobs.vqa.asking import encoded, prompt_form
from tests.evals.jobs.vqa.conftest import TEMPLATE
from tests.models.tiny_llava import IMAGE

AS_TEXT = "{{ bos_token }} USER {{ messages[0]['content'] }} ASSISTANT"


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
