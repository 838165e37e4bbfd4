"""What each benchmark of questions writes where, in the files that its authors publish."""

import dataclasses
import json
import pathlib
from collections.abc import Callable

from convert.errors import show
from evals.data.json_fields import field, objects, text
from evals.data.texts import is_text, read_json, read_lines

_COCO_FOLDERS = {"test-dev2015": "test2015"}  # the part of the images that others are questions of


@dataclasses.dataclass(frozen=True)
class Entry:
    """One question.

    Attributes:
      id: what the authors number it by; its number where they do not.
      question: the text.
      images: names that its image may have, below the folder.
      answers: reference answers; None where there are none.
      kind: the group that it is also scored in; None for none.
    """

    id: int | str
    question: str
    images: tuple[str, ...]
    answers: tuple[str, ...] | None
    kind: str | None = None


@dataclasses.dataclass(frozen=True)
class Reader:
    """How the files of a benchmark are read.

    Attributes:
      read: a function of the path of the questions that gives entries; and of the path of the
        annotations, where there may be such. It raises ValueError for files of another form.
      of_annotations: whether there may be such.
    """

    read: Callable
    of_annotations: bool = False


def _vqav2(questions, annotations=None):
    """`v2_OpenEnded_mscoco_val2014_questions.json`, `v2_mscoco_val2014_annotations.json`."""
    content = _object(questions)
    part = text(content, "data_subtype")
    part = _COCO_FOLDERS.get(part, part)
    asked = objects(content, "questions")
    answered = (
        {} if annotations is None else _by_question(objects(_object(annotations), "annotations"))
    )
    if annotations is not None:
        _check_match([_id(entry, "question_id") for entry in asked], answered)
    found = []
    for entry in asked:
        number, image = _id(entry, "question_id"), field(entry, "image_id")
        if type(image) is not int:
            raise ValueError(f"image_id must be a number, got {show(image)}")
        own = answered.get(number)
        if own is not None and own.get("image_id", image) != image:
            raise ValueError(
                f"question {number} is about image {image}, its annotation about "
                f"{show(own['image_id'])}: not the annotations of these questions"
            )
        found.append(
            Entry(
                number,
                text(entry, "question"),
                (f"COCO_{part}_{image:012d}.jpg", f"{image:012d}.jpg"),
                None if own is None else _texts([x.get("answer") for x in objects(own, "answers")]),
                None if own is None else text(own, "answer_type"),
            )
        )
    return found


def _textvqa(questions):
    """`TextVQA_0.5.1_val.json`, beside `train_images` or `test_images`."""
    return [
        Entry(
            _id(entry, "question_id"),
            text(entry, "question"),
            (f"{text(entry, 'image_id')}.jpg",),
            _answers(entry),
        )
        for entry in objects(_object(questions), "data")
    ]


def _gqa(questions):
    """`testdev_balanced_questions.json`, an object of questions by their ids."""
    found = []
    for number, entry in _object(questions).items():
        if not isinstance(entry, dict):
            raise ValueError(f"question {show(number)} must be an object, got {show(entry)}")
        image = (f"{text(entry, 'imageId')}.jpg",)
        answers = _texts([entry["answer"]]) if "answer" in entry else None
        found.append(Entry(number, text(entry, "question"), image, answers))
    return found


def _pope(questions):
    """`coco_pope_random.json`, in truth an object in each line."""
    found = []
    for number, line in enumerate(read_lines(questions), start=1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict):
            raise ValueError(f"line {number} must be a json object, got {show(line)}")
        if (label := field(entry, "label")) not in ("yes", "no"):
            raise ValueError(f"label must be yes or no, got {show(label)}")
        asked = text(entry, "text")
        found.append(Entry(_id(entry, "question_id"), asked, (text(entry, "image"),), (label,)))
    return found


def _docvqa(questions):
    """`val_v1.0.json`, whose images are in `documents/`."""
    found = []
    for entry in objects(_object(questions), "data"):
        image = text(entry, "image")
        images = (image, image.rpartition("/")[2])
        asked = text(entry, "question")
        found.append(Entry(_id(entry, "questionId"), asked, images, _answers(entry)))
    return found


def _chartqa(questions):
    """`test_human.json` or `test_augmented.json`, a list of questions without ids."""
    listed = objects({"the list": read_json(questions)}, "the list")
    return [
        Entry(
            number, text(entry, "query"), (text(entry, "imgname"),), _texts([field(entry, "label")])
        )
        for number, entry in enumerate(listed)
    ]


READERS = {
    "vqav2": Reader(_vqav2, of_annotations=True),
    "textvqa": Reader(_textvqa),
    "gqa": Reader(_gqa),
    "pope": Reader(_pope),
    "docvqa": Reader(_docvqa),
    "chartqa": Reader(_chartqa),
}


def _object(path) -> dict:
    """The object in a json."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{pathlib.Path(path).name} must be an object, got {show(content)}")
    return content


def _id(entry, name):
    value = field(entry, name)
    if isinstance(value, bool) or not (isinstance(value, int) or is_text(value)):
        raise ValueError(f"{name} must be a number or a text, got {show(value)}")
    return value


def _answers(entry):
    """Those of an entry that has its own; None for none."""
    if "answers" not in entry:
        return None
    if not isinstance(found := entry["answers"], list):
        raise ValueError(f"answers must be a list, got {show(found)}")
    return _texts(found)


def _texts(answers) -> tuple[str, ...]:
    """The answers; raises ValueError for none, and for one that is no text."""
    if not answers:
        raise ValueError("a question has an empty list of answers")
    if strange := [answer for answer in answers if not is_text(answer)]:
        raise ValueError(f"an answer must be a text, got {show(strange[0])}")
    return tuple(answers)


def _by_question(annotations) -> dict:
    found = {}
    for entry in annotations:
        number = _id(entry, "question_id")
        if number in found:
            raise ValueError(f"two annotations are of question {number}")
        found[number] = entry
    return found


def _check_match(ids, answered):
    """Raises ValueError for questions without an annotation, or the reverse."""
    known = set(ids)
    without = [number for number in ids if number not in answered]
    others = [number for number in answered if number not in known]
    for wrong, what in (
        (without, "questions have no annotation"),
        (others, "annotations are of no question"),
    ):
        if wrong:
            raise ValueError(
                f"{len(wrong)} of {len(known)} {what}, the first {show(wrong[0])}: not the "
                "annotations of these questions"
            )
