"""Questions about digit scenes, each with the one answer that is right."""

import itertools
import typing

import numpy as np

from evals.data.digit_scenes import DIGIT_NAMES, EMPTY, PLACES

NONE = "none"  # at a place without a digit


class Question(typing.NamedTuple):
    """What is asked, its answer, and the kind of question, one of `KINDS`."""

    kind: str
    text: str
    answer: str


def _place(digits):
    for place, digit in zip(PLACES, digits, strict=True):
        answer = NONE if digit == EMPTY else DIGIT_NAMES[digit]
        yield f"which digit is at the {place}?", answer


def _number(digits):
    yield "how many digits are there?", DIGIT_NAMES[len(_named(digits))]


def _presence(digits):
    for digit, name in enumerate(DIGIT_NAMES):
        yield f"is there a {name}?", "yes" if digit in digits else "no"


def _larger(digits):
    """By value, of two places that hold different digits, in either order."""
    for (one, a), (other, b) in itertools.permutations(_named(digits), 2):
        if a != b:
            yield f"which number is larger, {one} or {other}?", DIGIT_NAMES[max(a, b)]


def _order(digits):
    names = [DIGIT_NAMES[digit] for _, digit in _named(digits)]
    yield "read all digits row by row.", " ".join(names)


def _named(digits):
    """Places with their digits, row by row, without the empty ones."""
    return [(place, digit) for place, digit in zip(PLACES, digits, strict=True) if digit != EMPTY]


_ASKED = {
    "place": _place,
    "number": _number,
    "presence": _presence,
    "larger": _larger,
    "order": _order,
}
KINDS = tuple(_ASKED)


def all_questions(digits) -> list[Question]:
    """Every question about a scene.

    Args:
      digits: int `[4]`, the digit at each of `PLACES`, or `EMPTY`.
    """
    return [Question(kind, *pair) for kind, asked in _ASKED.items() for pair in asked(digits)]


def draw_questions(digits, rng, counts) -> list[Question]:
    """Some questions about a scene, no two alike.

    Args:
      digits: as in `all_questions`.
      rng: a `numpy.random.Generator`.
      counts: how many of each kind, by its name; fewer where there are fewer. Yes and no are as
        likely as each other.
    """
    every, drawn = all_questions(digits), []
    for kind, count in counts.items():
        found = [question for question in every if question.kind == kind]
        for _ in range(min(count, len(found))):
            left = [question for question in found if question not in drawn]
            answer = ("yes", "no")[rng.integers(2)]
            pool = [question for question in left if question.answer == answer] or left
            drawn.append(pool[rng.integers(len(pool))])
    return drawn


def all_words() -> list[str]:
    """Texts that have all words of questions and answers."""
    scenes = [np.array([digit, 9 - digit, EMPTY, digit]) for digit in range(10)]
    scenes += [np.roll(scenes[0], shift) for shift in range(4)]
    asked = [question for digits in scenes for question in all_questions(digits)]
    return [text for question in asked for text in (question.text, question.answer)]
