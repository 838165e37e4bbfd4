"""Agreement of an answer with reference texts: GQA's, DocVQA's and ChartQA's measures, 0 to 1."""

import math
import string

_LEAST_SIMILARITY = 0.5  # of DocVQA: below it an answer counts for nothing
_TOLERANCE = 0.05  # of ChartQA
_AROUND = string.punctuation + string.whitespace


def plain_answer(text) -> str:
    """In lower case, without punctuation around it, as GQA's answers are written."""
    return text.lower().strip(_AROUND)


def exact_match(answer, references) -> float:
    """1 for one of the references, letter for letter, else 0."""
    return float(answer in references)


def gqa_accuracy(answer, references) -> float:
    """1 for the reference answer, else 0 (1902.09506)."""
    return float(plain_answer(answer) in map(plain_answer, references))


def anls(answer, references) -> float:
    """The best normalised Levenshtein similarity to a reference (1905.13648).

    `1 − distance / length of the longer text`, of texts in lower case with single spaces, or 0
    where it is below one half. (The paper excludes one half itself; the server does not.)
    """
    best = max(_similarity(*map(_evened, (answer, reference))) for reference in references)
    return best if best >= _LEAST_SIMILARITY else 0.0


def relaxed_accuracy(answer, references) -> float:
    """1 for a number within 5 % of the reference, or for the same text in any case (2203.10244).

    A per cent sign divides by 100, so that "25" is not "25%". As the authors have it a year is a
    number, too, and 2010 is right for 2019; a number with commas is a text; and so is a reference
    of zero, from which nothing is 5 % away.
    """
    return float(any(_about(answer, reference) for reference in references))


def _evened(text):
    return " ".join(text.lower().split())


def _similarity(a, b):
    return 1 - edit_distance(a, b) / max(len(a), len(b), 1)


def edit_distance(a, b) -> int:
    """The fewest letters to insert, delete or replace to make one text of the other."""
    row = list(range(len(b) + 1))  # distances of a's beginning to all beginnings of b
    for i, letter in enumerate(a, start=1):
        before, row = row, [i]
        for j, other in enumerate(b, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != other)))
    return row[-1]


def _about(answer, reference):
    number, expected = _number(answer), _number(reference)
    if number is not None and expected:
        return abs(number - expected) <= _TOLERANCE * abs(expected)
    return answer.strip().lower() == reference.strip().lower()


def _number(text):
    """The number that a text is; None for another text."""
    text = text.strip()
    try:
        number = float(text.rstrip("%"))
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    return number / 100 if text.endswith("%") else number
