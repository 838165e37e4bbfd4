"""Questions about images, with the answers of people, from the files of six benchmarks."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from convert.errors import show
from evals.data.json_fields import plain_name
from evals.data.question_files import READERS, Entry
from models.registry import did_you_mean


@dataclasses.dataclass(frozen=True)
class Questions:
    """M questions, each about an image.

    Attributes:
      ids: M of what the authors number them by, texts or numbers.
      texts: M questions.
      images: M of what `evals.data.read_image` takes: paths, uint8 arrays `[height, width, 3]`;
        several questions may be about one image.
      answers: M tuples of reference answers; None where the authors keep them to themselves.
      kinds: M names of groups that are also scored apart; None for no groups.
    """

    ids: Sequence[int | str]
    texts: Sequence[str]
    images: Sequence[pathlib.Path | np.ndarray]
    answers: Sequence[tuple[str, ...]] | None
    kinds: Sequence[str] | None

    def __len__(self):
        return len(self.ids)

    def take(self, rows) -> "Questions":
        """Those questions alone."""
        fields = (getattr(self, field.name) for field in dataclasses.fields(self))
        return Questions(*(x if x is None else [x[row] for row in rows] for x in fields))


def read_questions(dataset, questions, *, images, annotations=None, limit=None) -> Questions:
    """The questions of a benchmark's files.

    Args:
      dataset: a name of `question_files.READERS`.
      questions: the json (POPE: a line of json for each question).
      images: the folder that the authors publish.
      annotations: of VQAv2 the json of the answers; None to go without.
      limit: how many questions to take, the first ones.

    Raises:
      FileNotFoundError: no such file, or an image that is not in the folder.
      ValueError: an unknown benchmark, files of another one or damaged ones, questions and
        annotations that do not match, or nothing to ask.
    """
    if dataset not in READERS:
        raise ValueError(
            f"--config.dataset={dataset!r} must be one of {', '.join(READERS)}"
            f"{did_you_mean(dataset, READERS)}"
        )
    for name, path in (("questions", questions), ("annotations", annotations)):
        if path is not None and not pathlib.Path(path).is_file():
            raise FileNotFoundError(f"--config.{name}={str(path)!r} is no file")
    reader = READERS[dataset]
    if annotations is not None and not reader.of_annotations:
        raise ValueError(
            f"--config.annotations was given, but the answers of {dataset} are in the file of its "
            "questions: drop it"
        )
    extra = () if annotations is None else (annotations,)
    try:
        found = reader.read(questions, *extra)
        _check(found)
    except ValueError as error:
        files = " and ".join(str(path) for path in (questions, *extra))
        raise ValueError(f"{files} cannot be used as {dataset}: {error}") from None
    found = found[:limit]
    files = _files(found, pathlib.Path(images).expanduser())
    answered, grouped = found[0].answers is not None, found[0].kind is not None
    return Questions(
        [entry.id for entry in found],
        [entry.question for entry in found],
        files,
        [entry.answers for entry in found] if answered else None,
        [entry.kind for entry in found] if grouped else None,
    )


def _check(found: list[Entry]):
    """Raises ValueError for no question, an id of two, or answers to some only."""
    if not found:
        raise ValueError("there is no question")
    ids = set()
    for entry in found:
        if entry.id in ids:
            raise ValueError(f"two questions have the id {show(entry.id)}")
        ids.add(entry.id)
    if len(bare := [entry for entry in found if entry.answers is None]) not in (0, len(found)):
        raise ValueError(
            f"{len(bare)} of {len(found)} questions have no answer, the first {show(bare[0].id)}"
        )


def _files(found, folder):
    """The image of each entry: the first of its names that is there."""
    if not folder.is_dir():
        raise FileNotFoundError(f"--config.images={str(folder)!r} is no folder")
    known = {}
    for names in {entry.images for entry in found}:
        files = [folder / plain_name(name) for name in names]
        known[names] = next((file for file in files if file.is_file()), None)
    if missing := [entry for entry in found if known[entry.images] is None]:
        more = f", nor do those of {len(missing) - 1} other questions" if missing[1:] else ""
        raise FileNotFoundError(
            f"{folder / missing[0].images[0]} does not exist{more}; set --config.images to their "
            "folder"
        )
    return [known[entry.images] for entry in found]
