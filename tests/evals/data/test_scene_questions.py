import collections
import itertools

import numpy as np
import pytest

from evals.data.digit_scenes import DIGIT_NAMES, EMPTY, PLACES, caption
from evals.data.embedded import asked_digit_scenes
from evals.data.scene_questions import KINDS, all_questions, draw_questions

SCENES = [
    np.array(digits)
    for digits in itertools.product((EMPTY, 0, 3, 7), repeat=4)
    if any(digit != EMPTY for digit in digits)
]


def by_reading(text, digits):
    """The answer by what is read in the scene's caption, place by place."""
    words = caption(digits).split(" and ")
    at = {p: w.split()[1] for p in PLACES for w in words if w.endswith(f"at the {p}")}
    if text.startswith("which digit is at"):
        return at.get(text.removeprefix("which digit is at the ").removesuffix("?"), "none")
    if text.startswith("how many"):
        return DIGIT_NAMES[len(words)]
    if text.startswith("is there a"):
        return "yes" if text.split()[-1].removesuffix("?") in at.values() else "no"
    if text.startswith("which number is larger"):
        asked = text.removeprefix("which number is larger, ").removesuffix("?").split(" or ")
        one, other = (at[place] for place in asked)
        assert one != other
        return max(one, other, key=DIGIT_NAMES.index)
    assert text == "read all digits row by row."
    return " ".join(word.split()[1] for word in words)


def test_answers_are_those_of_reading_the_scene():
    for digits in SCENES:
        asked = all_questions(digits)
        assert len({question.text for question in asked}) == len(asked)
        for question in asked:
            assert question.answer == by_reading(question.text, digits), (question, digits)


def test_every_question_that_has_one_answer_is_there():
    digits = np.array([7, EMPTY, 7, 2])
    found = collections.Counter(question.kind for question in all_questions(digits))
    # Of three pairs of digits one is equal; each other pair is asked in both orders.
    assert found == {"place": 4, "number": 1, "presence": 10, "larger": 4, "order": 1}
    alone = {question.kind for question in all_questions(np.array([EMPTY, 4, EMPTY, EMPTY]))}
    assert alone == {*KINDS} - {"larger"}


def test_questions_are_drawn_without_repetition_and_yes_is_as_likely_as_no():
    rng, counts = np.random.default_rng(0), {"presence": 2, "number": 3, "larger": 1}
    answers = collections.Counter()
    for digits in SCENES:
        drawn = draw_questions(digits, rng, counts)
        assert len(set(drawn)) == len(drawn)
        assert [q.kind for q in drawn][:3] == ["presence", "presence", "number"]
        answers[drawn[0].answer] += 1
    assert answers["yes"] / len(SCENES) == pytest.approx(0.5, abs=0.1)


def test_embedded_questions_are_the_same_each_time():
    one, two = asked_digit_scenes(23), asked_digit_scenes(23)
    assert len(one) == 23 and set(one.kinds) == set(KINDS)
    assert one.texts == two.texts and one.answers == two.answers
