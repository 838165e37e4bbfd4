"""Scores of answers against cases by hand, and against what each definition is known to do."""

import json

import pytest

from evals.data.question_files import READERS
from evals.data.questions import Questions
from evals.tasks.answers.benchmarks import BENCHMARKS, DIGITS, predictions, score
from evals.tasks.answers.matching import anls, edit_distance, gqa_accuracy, relaxed_accuracy
from evals.tasks.answers.vqa_accuracy import normalised, textvqa_accuracy, vqav2_accuracy
from evals.tasks.answers.yes_no import pope_scores, says_yes


@pytest.mark.parametrize(
    "number, mark",
    # Of ten people k agree. Leaving one of them out k − 1 do, leaving out another k: for k = 3
    # (3 · 2/3 + 7 · 1) / 10.
    [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1)],
)
def test_agreement_is_the_mean_over_people_left_out(number, mark):
    references = ["cat"] * number + [f"dog {i}" for i in range(10 - number)]
    assert vqav2_accuracy("cat", references) == pytest.approx(mark)
    assert textvqa_accuracy("cat", references) == pytest.approx(mark)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The two  dogs", "2 dogs"),
        ("None", "0"),
        ("An apple a day", "apple day"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("yall'll", "y'all'll"),
        ("Im", "im"),  # which the official table has with a capital
        ("lets", "lets"),  # it has "let's" for "let's"
        ("shell", "shell"),
        ("well-known", "well known"),
        ("well- known", "well known"),
        ("a-b -c", "ab c"),  # a hyphen beside a space takes the other one along
        ("100,978", "100978"),
        ("1,000-b", "1000b"),  # so does a comma between digits take the hyphen
        ("red,blue", "red blue"),
        ("red, blue", "red blue"),
        ("1.5", "1.5"),
        ("U.S.", "us"),
        ("2.", "2"),
        ("v.5", "v.5"),  # a digit behind is enough
        ("." * 40, "." * 8),  # no more than 32
        ("3:15", "3:15"),
        ("dog's", "dog's"),
        ("line\nbreak", "line break"),
    ],
)
def test_normalised_texts(text, expected):
    assert normalised(text) == expected


def test_vqav2_normalises_where_people_differ():
    same, differ = ["yes"] * 10, ["two dogs"] * 9 + ["2 dogs."]
    assert vqav2_accuracy("Yes", same) == 1
    assert vqav2_accuracy("yes.", same) == 0
    assert vqav2_accuracy("the 2 dogs", differ) == 1
    assert vqav2_accuracy("yes.", ["yes"] * 9 + ["Yes"]) == 1  # which differ in case


def test_textvqa_normalises_always_and_sets_the_genitive_apart():
    assert textvqa_accuracy("yes.", ["yes"] * 10) == 1
    assert textvqa_accuracy("macy 's", ["Macy's"] * 10) == 1
    # A comma goes at once, so that it neither becomes a space nor takes other marks along.
    assert textvqa_accuracy("redblue", ["red,blue"] * 10) == 1
    assert textvqa_accuracy("1000 b", ["1,000-b"] * 10) == 1
    assert vqav2_accuracy("1000b", ["1,000-b"] * 9 + ["c"]) == 1


@pytest.mark.parametrize(
    "answer, mark", [("T-shirt.", 1), (" t-shirt", 1), ("shirt", 0), ("a t-shirt", 0)]
)
def test_gqa_wants_the_very_answer(answer, mark):
    assert gqa_accuracy(answer, ["t-shirt"]) == mark


@pytest.mark.parametrize(
    "answer, yes",
    [
        ("Yes", True),
        ("no", False),
        ("No, there is none", False),
        ("There is not.", False),
        ("Yes. There is no other.", True),  # only the first sentence is read
        ("NO", True),
        ("nothing", True),
        ("none,no", True),  # without the comma it is one word
        ("", True),
    ],
)
def test_pope_reads_yes_unless_it_finds_a_no(answer, yes):
    assert says_yes(answer) == yes


def test_pope_scores_by_hand():
    answers = ["yes", "yes", "yes", "no", "no"]
    labels = [("yes",), ("yes",), ("no",), ("yes",), ("no",)]
    third = pytest.approx(200 / 3)
    expected = {"score": 60, "precision": third, "recall": third, "f1": third, "yes_ratio": 60}
    assert pope_scores(answers, labels) == expected
    nothing = pope_scores(["no"], [("yes",)])
    assert set(nothing.values()) == {0}


@pytest.mark.parametrize(
    "a, b, distance",
    [("", "", 0), ("", "ab", 2), ("kitten", "sitting", 3), ("ab", "ba", 2), ("ab", "ab", 0)],
)
def test_edit_distance(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


@pytest.mark.parametrize(
    "answer, references, similarity",
    [
        ("Coca  Cola ", ["coca cola"], 1),
        ("coca cole", ["coca cola"], 8 / 9),
        ("abcd", ["abxy"], 0.5),
        ("abc", ["abxyz"], 0),  # 0.4
        ("abcd", ["zzzz", "abce"], 0.75),
        ("", ["a"], 0),
    ],
)
def test_anls_is_the_best_similarity_from_one_half_on(answer, references, similarity):
    assert anls(answer, references) == pytest.approx(similarity)


@pytest.mark.parametrize(
    "answer, reference, mark",
    [
        ("105", "100", 1),
        ("95", "100", 1),
        ("105.1", "100", 0),
        ("-100", "100", 0),
        ("2010", "2019", 1),  # years are numbers
        ("25%", "25", 0),
        ("26%", "25%", 1),
        ("0.25", "25%", 1),
        ("1,000", "1000", 0),
        ("1,000", "1,000", 1),
        ("0", "0", 1),
        ("0.0", "0", 0),  # of zero there are no 5 %
        ("Yes", "yes", 1),
        ("nan", "nan", 1),
        ("14 people", "14", 0),
    ],
)
def test_relaxed_accuracy(answer, reference, mark):
    assert relaxed_accuracy(answer, [reference]) == mark


def asked(ids, answers=None, kinds=None):
    return Questions(ids, ["?"] * len(ids), ["x"] * len(ids), answers, kinds)


def test_every_benchmark_that_is_read_is_scored():
    assert BENCHMARKS.keys() == {*READERS, DIGITS}


def test_what_could_not_be_asked_counts_for_nothing():
    questions = asked([1, 2, 3], [("a",), ("b",), ("c",)], ["x", "y", "x"])
    record = score("gqa", ["a", None, "d"], questions)
    assert record == {"score": 50, "num_questions": 2, "by_kind": {"x": 50}}
    with pytest.raises(ValueError, match="none of the 3 questions could be asked"):
        score("gqa", [None] * 3, questions)


@pytest.mark.parametrize(
    "dataset, expected",
    [
        ("vqav2", [{"question_id": 7, "answer": "no é."}, {"question_id": 8, "answer": ""}]),
        ("textvqa", [{"question_id": 7, "answer": "No é."}, {"question_id": 8, "answer": ""}]),
        ("gqa", [{"questionId": 7, "prediction": "no é"}, {"questionId": 8, "prediction": ""}]),
        ("docvqa", [{"questionId": 7, "answer": "No é."}, {"questionId": 8, "answer": ""}]),
    ],
)
def test_predictions_are_what_the_servers_take(dataset, expected):
    content = predictions(dataset, ["No é. ", None], asked([7, 8]))
    assert json.loads(content) == expected and "é" in content


def test_popes_predictions_are_lines():
    lines = predictions("pope", ["Yes", "No"], asked([1, 2])).splitlines()
    assert [json.loads(line)["answer"] for line in lines] == ["Yes", "No"]
