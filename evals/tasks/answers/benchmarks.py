"""The benchmarks of questions about images: how each scores answers, and wants to be told them."""

import dataclasses
import json
from collections.abc import Callable

import numpy as np

from evals.data.questions import Questions
from evals.tasks.answers.matching import (
    anls,
    exact_match,
    gqa_accuracy,
    plain_answer,
    relaxed_accuracy,
)
from evals.tasks.answers.vqa_accuracy import textvqa_accuracy, vqav2_accuracy
from evals.tasks.answers.yes_no import pope_scores


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One of them.

    Attributes:
      metric: what `score` is called in a table.
      scores: a function of M answers and M tuples of references that gives percentages by name,
        `score` first.
      fields: names of a question's id and of its answer in the file for the evaluation server.
      written: an answer as the server compares it.
      by_line: whether the file is a json object in each line rather than a list of them.
    """

    metric: str
    scores: Callable
    fields: tuple[str, str]
    written: Callable = str.strip
    by_line: bool = False


def _mean_of(mark):
    """`Benchmark.scores` of a function that marks one answer from 0 to 1."""

    def scores(answers, references):
        marks = [mark(*pair) for pair in zip(answers, references, strict=True)]
        return {"score": float(100 * np.mean(marks))}

    return scores


def _lower(answer):
    return answer.strip().lower()


DIGITS = "digits"  # the embedded questions about digit scenes
BENCHMARKS = {
    DIGITS: Benchmark("exact match %", _mean_of(exact_match), ("question_id", "answer")),
    "vqav2": Benchmark(
        "VQA accuracy %", _mean_of(vqav2_accuracy), ("question_id", "answer"), _lower
    ),
    "textvqa": Benchmark("VQA accuracy %", _mean_of(textvqa_accuracy), ("question_id", "answer")),
    "gqa": Benchmark(
        "accuracy %", _mean_of(gqa_accuracy), ("questionId", "prediction"), plain_answer
    ),
    "pope": Benchmark("accuracy %", pope_scores, ("question_id", "answer"), by_line=True),
    "docvqa": Benchmark("ANLS %", _mean_of(anls), ("questionId", "answer")),
    "chartqa": Benchmark(
        "relaxed accuracy %", _mean_of(relaxed_accuracy), ("question_id", "answer")
    ),
}


def score(dataset, answers, questions: Questions) -> dict:
    """What a benchmark measures, in percent: of all, and as `by_kind` of the groups there are.

    Args:
      dataset: a name of `BENCHMARKS`.
      answers: M texts; None for a question that could not be asked, which counts for nothing.
      questions: M, with their references.

    Raises:
      ValueError: none could be asked.
    """
    asked = [row for row, answer in enumerate(answers) if answer is not None]
    if not asked:
        raise ValueError(f"none of the {len(answers)} questions could be asked")

    def of_rows(rows):
        chosen = questions.take(rows)
        return BENCHMARKS[dataset].scores([answers[row] for row in rows], chosen.answers)

    record = of_rows(asked) | {"num_questions": len(asked)}
    if questions.kinds is not None:
        kinds = sorted({questions.kinds[row] for row in asked})
        of_kind = {kind: [row for row in asked if questions.kinds[row] == kind] for kind in kinds}
        record["by_kind"] = {kind: of_rows(rows)["score"] for kind, rows in of_kind.items()}
    return record


def predictions(dataset, answers, questions: Questions) -> str:
    """The content of the file that the evaluation server of a benchmark takes.

    It asks for all questions: one that could not be asked has an empty answer. Arguments are those
    of `score`; ChartQA has no server, and its questions their places in the file for ids.
    """
    benchmark = BENCHMARKS[dataset]
    number, said = benchmark.fields
    entries = [
        {number: key, said: benchmark.written(answer or "")}
        for key, answer in zip(questions.ids, answers, strict=True)
    ]
    if benchmark.by_line:
        return "".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in entries)
    return json.dumps(entries, ensure_ascii=False)
