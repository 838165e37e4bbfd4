"""Metrics of classification, from the scores of every class."""

import collections

import numpy as np

from evals.running.embed import TIE

_MOST_PAIRS = 10  # that a record lists


def classification(scores, labels, class_names) -> dict:
    """Accuracies in percent, in all and by class, and the mistakes that are made most.

    A class that scores as high as the true one counts as ahead of it, so that constant scores find
    nothing; so does NaN.

    Args:
      scores: `[M, K]`, float; the largest is the prediction.
      labels: int `[M]`, the true classes.
      class_names: K names.

    Returns:
      `num_images`; `top1`; `top5` where there are over five classes; `mean_per_class`, over the
      classes that have images; `per_class`, the top-1 accuracy by name, None without images;
      `confusions`, the most frequent pairs of `true` and `predicted` class with their `count`.
    """
    rank = true_class_rank(scores, labels)
    right = rank < 1
    names = _distinct(class_names)
    images_of = np.bincount(labels, minlength=len(names))
    right_of = np.bincount(labels[right], minlength=len(names))
    per_class = 100 * right_of[images_of > 0] / images_of[images_of > 0]
    record = {"num_images": len(labels), "top1": float(100 * np.mean(right))}
    if len(names) > 5:
        record["top5"] = float(100 * np.mean(rank < 5))
    found = (names[label] for label in np.flatnonzero(images_of))
    return record | {
        "mean_per_class": float(np.mean(per_class)),
        "per_class": dict.fromkeys(names) | dict(zip(found, per_class.tolist())),
        "confusions": [
            {"true": names[true], "predicted": names[predicted], "count": count}
            for (true, predicted), count in confusion_pairs(scores, labels)[:_MOST_PAIRS]
        ],
    }


def true_class_rank(scores, labels):
    """Other classes that do not score clearly below the true one, int `[M]`; scores `[M, K]`."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    return np.sum(~(scores < own - TIE), axis=1) - 1


def confusion_pairs(scores, labels) -> list:
    """Pairs `((true, predicted), count)` of the classes confused, most frequent first.

    Arguments are those of `classification`. What is predicted in error is the best of the other
    classes, also where it only equals the true one: the counts sum to the errors in top-1.
    """
    wrong = true_class_rank(scores, labels) > 0
    others, true = np.array(scores[wrong], np.float64), labels[wrong]
    np.put_along_axis(others, true[:, None], -np.inf, axis=1)
    pairs = sorted(zip(true.tolist(), others.argmax(axis=1).tolist()))
    return collections.Counter(pairs).most_common()


def _distinct(names):
    """The names; one that several classes have is followed by the number of the class."""
    times = collections.Counter(names)
    return [f"{name} ({k})" if times[name] > 1 else name for k, name in enumerate(names)]
