"""Questions of every benchmark as its authors write them, and files that cannot be used."""

import json

import pytest

from evals.data.question_files import READERS
from evals.data.questions import read_questions


def vqav2_answers(number=7, image=42, answers=("a",) * 10, **fields):
    listed = [
        {"answer": text, "answer_confidence": "yes", "answer_id": i}
        for i, text in enumerate(answers, start=1)
    ]
    entry = {"question_id": number, "image_id": image, "answer_type": "other", "answers": listed}
    return entry | fields


def vqav2(*numbers, part="val2014"):
    asked = [{"image_id": 42, "question": "What?", "question_id": n} for n in numbers]
    return {"data_type": "mscoco", "data_subtype": part, "questions": asked}


GQA = {"question": "What?", "imageId": "n42", "answer": "a", "fullAnswer": "It is a."}
POPE = {"question_id": 1, "image": "COCO_val2014_000000000042.jpg", "text": "Is it?", "label": "no"}
DOCVQA = {
    "questionId": 7,
    "question": "What?",
    "image": "documents/n42_1.png",
    "answers": ["a", "A"],
}
TEXTVQA = {"question_id": 7, "question": "What?", "image_id": "n42", "answers": ["a"] * 10}
CHARTQA = {"imgname": "n42.png", "query": "What?", "label": "14"}
FILES = {  # what a benchmark's file holds, the image's name, and the id and the answers
    "vqav2": (vqav2(7), "COCO_val2014_000000000042.jpg", 7, None),
    "textvqa": ({"dataset_type": "val", "data": [TEXTVQA]}, "n42.jpg", 7, ("a",) * 10),
    "gqa": ({"0171": GQA}, "n42.jpg", "0171", ("a",)),
    "pope": (f"{json.dumps(POPE)}\n", POPE["image"], 1, ("no",)),
    "docvqa": ({"data": [DOCVQA]}, "documents/n42_1.png", 7, ("a", "A")),
    "chartqa": ([CHARTQA], "n42.png", 0, ("14",)),
}


@pytest.fixture
def read(tmp_path):
    """A function that writes the files of a benchmark, and an image that nobody opens."""

    def read(dataset, content=None, annotations=None, image=None, **settings):
        files = {}
        for name, value in (("questions", content or FILES[dataset][0]), ("answers", annotations)):
            if value is not None:
                files[name] = tmp_path / f"{name}.json"
                files[name].write_text(value if isinstance(value, str) else json.dumps(value))
        path = tmp_path / "images" / (image or FILES[dataset][1])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return read_questions(
            dataset,
            files["questions"],
            annotations=files.get("answers"),
            **{"images": tmp_path / "images"} | settings,
        )

    return read


@pytest.mark.parametrize("dataset", FILES)
def test_files_as_published(read, dataset):
    assert FILES.keys() == READERS.keys()
    _, image, number, answers = FILES[dataset]
    questions = read(dataset)
    assert questions.ids == [number] and len(questions) == 1
    assert str(questions.images[0]).endswith(f"images/{image}")
    assert questions.answers == (answers and [answers])


def test_vqav2s_answers_are_joined_by_question(read):
    answers = [vqav2_answers(8, answers=["b"] * 10, answer_type="yes/no"), vqav2_answers(7)]
    questions = read("vqav2", vqav2(7, 8), {"annotations": answers})
    assert [x[0] for x in questions.answers] == ["a", "b"]
    assert questions.kinds == ["other", "yes/no"]
    first = read("vqav2", vqav2(7, 8), {"annotations": answers}, limit=1)
    assert (first.ids, len(first.images)) == ([7], 1)


def test_images_of_the_other_names(read):
    test = read("vqav2", vqav2(7, part="test-dev2015"), image="COCO_test2015_000000000042.jpg")
    assert test.images[0].name == "COCO_test2015_000000000042.jpg"
    assert read("vqav2", vqav2(7, part="x"), image="000000000042.jpg").images[0].is_file()
    assert read("docvqa", image="n42_1.png").images[0].is_file()


@pytest.mark.parametrize(
    "dataset, content, annotations, message",
    [
        ("vqav2", vqav2(7, 8), [vqav2_answers(7)], "1 of 2 questions have no annotation, the fir"),
        ("vqav2", vqav2(7), [vqav2_answers(7), vqav2_answers(9)], "annotations are of no question"),
        ("vqav2", vqav2(7), [vqav2_answers(7), vqav2_answers(7)], "two annotations are of quest"),
        ("vqav2", vqav2(7), [vqav2_answers(7, 43)], "question 7 is about image 42, its annotation"),
        ("vqav2", vqav2(7), [vqav2_answers(7, answers=[3])], "an answer must be a text, got 3"),
        ("vqav2", vqav2(7), [vqav2_answers(7, answers=[])], "an empty list of answers"),
        ("vqav2", vqav2(7, 7), None, "two questions have the id 7"),
        ("vqav2", vqav2(), None, "there is no question"),
        ("vqav2", {"questions": []}, None, "there is no 'data_subtype'"),
        ("vqav2", [1], None, r"questions.json must be an object, got \[1\]"),
        ("textvqa", {"data": [TEXTVQA | {"answers": "a"}]}, None, "answers must be a list, got 'a"),
        (
            "textvqa",
            {"data": [TEXTVQA | {"question": ""}]},
            None,
            "question must be a text, got ''",
        ),
        ("textvqa", {"data": [TEXTVQA | {"question_id": 1.5}]}, None, "must be a number or a text"),
        ("gqa", {"1": 3}, None, "question '1' must be an object, got 3"),
        (
            "gqa",
            {"1": GQA, "2": {"question": "?", "imageId": "n42"}},
            None,
            "1 of 2 questions have",
        ),
        ("gqa", {"1": GQA | {"answer": None}}, None, "an answer must be a text, got None"),
        ("gqa", {"1": GQA | {"imageId": "../n42"}}, None, "leads out of the image folder"),
        ("pope", "{}\n", None, "there is no 'label'"),
        ("pope", "nonsense\n", None, "line 1 must be a json object"),
        (
            "pope",
            json.dumps(POPE | {"label": "maybe"}),
            None,
            "label must be yes or no, got 'maybe",
        ),
        ("docvqa", {"data": [DOCVQA | {"image": 3}]}, None, "image must be a text, got 3"),
        ("chartqa", {"data": []}, None, "must be a list of objects"),
        ("gqa", {"1": GQA}, [], "the answers of gqa are in the file of its questions: drop it"),
        ("vqa2", {"1": GQA}, None, "did you mean 'vqav2'"),
    ],
)
def test_files_that_cannot_be_used(read, dataset, content, annotations, message):
    annotations = annotations if annotations is None else {"annotations": annotations}
    with pytest.raises(ValueError, match=message) as error:
        read(dataset, content, annotations, image="n42.jpg")
    assert "\n" not in str(error.value)


def test_files_that_are_not_there(read, tmp_path):
    other = vqav2(7, 8) | {"data_subtype": "train2014"}
    message = "COCO_train2014_000000000042.jpg does not exist, nor do those of 1 other questions"
    with pytest.raises(FileNotFoundError, match=message):
        read("vqav2", other)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        read("vqav2", images=tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"--config\.questions='/nowhere' is no file"):
        read_questions("gqa", "/nowhere", images=tmp_path)
