"""Which output of a model's own classifier each class of the data is."""

import collections
import dataclasses
import re
import unicodedata

import numpy as np

from evals.data.class_names import WORDNET_ID, are_numbers
from evals.data.notices import say
from evals.data.records import LabelledImages

_SHOWN = 3  # names of a list
_LABELS_FILE = "write labels.json beside the weights, a list of the classes' names in their order"


def by_outputs(data: LabelledImages, num_outputs, labels=None) -> LabelledImages:
    """The data with a classifier's outputs for classes, also those that the data have no images of.

    What the checkpoint calls its outputs decides, where that matches the folders' names or what
    `--config.class_names` calls them. Otherwise names that are numbers are numbers of outputs, and
    as many folders as outputs whose names are WordNet ids come in their order: that of ImageNet,
    in which its classifiers are trained. Data that number their classes themselves are of that
    numbering, unless labels say another. Nothing else is guessed.

    Args:
      data: labelled images, of these classes or some of them.
      num_outputs: of the classifier.
      labels: what the checkpoint calls them, in their order; None if it does not.

    Raises:
      ValueError: classes that do not match.
    """
    if labels is not None and len(labels) != num_outputs:
        say(f"the checkpoint names {len(labels)} classes, but has {num_outputs}: not used")
        labels = None
    outputs = np.array(_outputs_of(data, num_outputs, labels))
    names = [f"class {k}" for k in range(num_outputs)] if labels is None else list(labels)
    for k, name in zip(outputs, data.class_names):
        names[k] = name
    return dataclasses.replace(data, labels=outputs[data.labels], class_names=names, folders=None)


def _outputs_of(data, num_outputs, labels):
    """The number of the output for each class, all different."""
    named = [data.class_names] if data.folders is None else [data.folders, data.class_names]
    matches = [] if labels is None else [_match(names, labels) for names in named]
    for found in matches:
        if None not in found and len(set(found)) == len(found):
            return found
    if data.folders is None and labels is None:
        return _by_position(len(data.class_names), num_outputs)
    if data.folders is not None and are_numbers(data.folders):
        return _by_number(data.folders, num_outputs)
    if data.folders is not None and _are_imagenets(data.folders, num_outputs):
        say(f"the {num_outputs} folders are taken for the classifier's classes in ImageNet's order")
        return range(num_outputs)
    if labels is None:
        raise ValueError(
            f"the checkpoint does not say what its {num_outputs} classes are, so that "
            f"{_some(data.folders)} cannot be told to be which: number the folders, 0 to "
            f"{num_outputs - 1}, or {_LABELS_FILE}"
        )
    best = max(range(len(named)), key=lambda k: len(set(matches[k]) - {None}))
    remedy = _LABELS_FILE
    if data.folders is not None:
        remedy = 'give a json {"FOLDER": "label", …} as --config.class_names, or number the folders'
    raise ValueError(f"{_differences(named[best], matches[best], labels)}; {remedy}")


def _by_position(num_classes, num_outputs):
    if num_classes != num_outputs:
        raise ValueError(
            f"the classifier tells {num_outputs} classes, but the data have {num_classes}; take "
            "data of its classes"
        )
    return range(num_outputs)


def _by_number(folders, num_outputs):
    numbers = [int(name) for name in folders]
    if high := [name for name in folders if int(name) >= num_outputs]:
        raise ValueError(
            f"the folder {high[0]!r} is no number of a class: the classifier has {num_outputs}, 0 "
            f"to {num_outputs - 1}; number the folders so, or name them after its labels"
        )
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"two of the folders {', '.join(folders)} are of one number")
    return numbers


def _are_imagenets(folders, num_outputs):
    return len(folders) == num_outputs and all(map(WORDNET_ID.fullmatch, folders))


def _differences(names, found, labels):
    """What to tell of names that do not match one label each."""
    times = collections.Counter(found)
    lost = [name for name, k in zip(names, found) if k is None or times[k] > 1]
    free = [label for k, label in enumerate(labels) if times[k] != 1]
    return (
        f"{len(lost)} of {len(names)} classes of the data do not match one label each of the "
        f"checkpoint: {_some(lost)}; labels without a class are {_some(free)}"
    )


def _some(names):
    more = ", …" if len(names) > _SHOWN else ""
    return f"{', '.join(map(repr, names[:_SHOWN]))}{more}" if names else "(none)"


def _match(names, labels) -> list:
    """The number of the label of each name; None where there is none, or more than one.

    They match as they are; or else but for case, punctuation and zeros in front; or else by one of
    the synonyms between commas, as in "tench, Tinca tinca".
    """
    tables = [
        (spellings, _numbers(spellings, labels))
        for spellings in (lambda name: [name], lambda name: [_plain(name)], _synonyms)
    ]
    return [_unique(name, tables) for name in names]


def _numbers(spellings, labels):
    """The numbers of the labels with each spelling."""
    numbers = collections.defaultdict(set)
    for number, label in enumerate(labels):
        for spelling in filter(None, spellings(label)):
            numbers[spelling].add(number)
    return numbers


def _unique(name, tables):
    """By the first table that knows the name."""
    for spellings, numbers in tables:
        if found := set().union(*(numbers.get(spelling, ()) for spelling in spellings(name))):
            return found.pop() if len(found) == 1 else None
    return None


def _plain(name):
    words = re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", name).casefold())
    return re.sub(r"\b0+(?=\d)", "", words.strip())


def _synonyms(name):
    """The plain names between commas; a WordNet id in front is one too."""
    parts = re.sub(rf"^({WORDNET_ID.pattern})\s", r"\1,", name).split(",")
    return [_plain(part) for part in parts]
