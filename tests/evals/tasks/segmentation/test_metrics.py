import numpy as np
import pytest
import sklearn.metrics

from evals.data import IGNORED
from evals.tasks.segmentation.metrics import confusion_matrix, scores

NAMES = ["sky", "sea", "sand"]


@pytest.mark.parametrize("num_classes", [2, 7])
def test_agrees_with_scikit_learn(num_classes):
    rng = np.random.default_rng(num_classes)
    truth = rng.integers(0, num_classes, (9, 11), dtype=np.uint8)
    truth[rng.random(truth.shape) < 0.3] = IGNORED
    predicted = rng.integers(0, num_classes, truth.shape, dtype=np.uint8)
    counted = truth != IGNORED
    labels = range(num_classes)
    confusion = confusion_matrix(truth, predicted, num_classes)
    pair = truth[counted], predicted[counted]
    np.testing.assert_array_equal(confusion, sklearn.metrics.confusion_matrix(*pair, labels=labels))
    record = scores(confusion, [f"class {k}" for k in labels])
    expected = sklearn.metrics.jaccard_score(*pair, labels=labels, average=None)
    np.testing.assert_allclose([*record["iou"].values()], 100 * expected)
    np.testing.assert_allclose(record["miou"], 100 * expected.mean())
    expected = sklearn.metrics.accuracy_score(*pair)
    np.testing.assert_allclose(record["pixel_accuracy"], 100 * expected)


def test_classes_that_are_nowhere_do_not_count():
    truth = np.array([0, 0, 0, 1, IGNORED, IGNORED], np.uint8)
    predicted = np.array([0, 0, 1, 1, 2, 0], np.uint8)  # what is ignored may be called anything
    record = scores(confusion_matrix(truth, predicted, 3), NAMES)
    assert record["iou"] == {"sky": pytest.approx(200 / 3), "sea": 50, "sand": None}
    assert record["miou"] == pytest.approx((200 / 3 + 50) / 2)
    assert record["pixel_accuracy"] == 75


def test_a_class_that_is_only_predicted_counts_as_zero():
    truth, predicted = np.zeros(4, np.uint8), np.array([0, 0, 0, 2], np.uint8)
    record = scores(confusion_matrix(truth, predicted, 3), NAMES)
    assert record["iou"] == {"sky": 75, "sea": None, "sand": 0}
    assert record["miou"] == 37.5


def test_without_any_class_there_is_no_score():
    truth = np.full((2, 2), IGNORED, np.uint8)
    confusion = confusion_matrix(truth, np.zeros((2, 2), np.uint8), 3)
    nothing = {"miou": None, "pixel_accuracy": None, "iou": dict.fromkeys(NAMES)}
    assert scores(confusion, NAMES) == nothing
