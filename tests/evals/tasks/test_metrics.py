"""Classification against scikit-learn and by hand."""

import numpy as np
import pytest
import sklearn.metrics

from evals.tasks.metrics import classification, confusion_pairs, true_class_rank


def test_rank_of_the_true_class_counts_ties_against_it():
    scores = np.array([[3.0, 2, 1], [3, 2, 1], [1, 1, 1]])
    np.testing.assert_array_equal(true_class_rank(scores, np.array([0, 2, 1])), [0, 2, 2])


def test_scores_that_are_nan_or_equal_find_nothing():
    labels = np.array([0, 1, 1])
    for scores in (np.full((3, 3), np.nan), np.ones((3, 3))):
        record = classification(scores, labels, "abc")
        assert record["top1"] == record["mean_per_class"] == 0
        assert sum(pair["count"] for pair in record["confusions"]) == 3
        assert all(pair["true"] != pair["predicted"] for pair in record["confusions"])


def test_classes_by_hand():
    scores = np.array([[3.0, 1, 2], [2, 3, 1], [1, 3, 3], [0, 0, 1], [9, 0, 5]])
    record = classification(scores, np.array([0, 0, 1, 0, 0]), ["cat", "dog", "eel"])
    assert record == {
        "num_images": 5,
        "top1": 40.0,
        "mean_per_class": 25.0,  # of the two classes that have images
        "per_class": {"cat": 50.0, "dog": 0.0, "eel": None},
        "confusions": [
            {"true": "cat", "predicted": "dog", "count": 1},
            {"true": "cat", "predicted": "eel", "count": 1},
            {"true": "dog", "predicted": "eel", "count": 1},
        ],
    }


def test_classes_of_one_name_are_told_apart():
    record = classification(np.eye(3), np.array([0, 1, 0]), ["crane", "dog", "crane"])
    assert record["per_class"] == {"crane (0)": 100.0 / 2, "dog": 100.0, "crane (2)": None}


def test_top5_needs_more_than_five_classes():
    labels = np.zeros(4, int)
    assert "top5" not in classification(np.ones((4, 5)), labels, "abcde")
    assert classification(np.ones((4, 6)), labels, "abcdef")["top5"] == 0


def test_classification_equals_scikit_learns():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(300, 8)), rng.integers(0, 7, size=300)
    scores[np.arange(300), labels] += 1
    record = classification(scores, labels, "abcdefgh")
    for k in (1, 5):
        expected = sklearn.metrics.top_k_accuracy_score(labels, scores, k=k, labels=range(8))
        assert record[f"top{k}"] == pytest.approx(100 * expected)
    table = sklearn.metrics.confusion_matrix(labels, scores.argmax(axis=1), labels=range(8))
    expected = 100 * np.diag(table)[:7] / table.sum(axis=1)[:7]
    np.testing.assert_allclose([*record["per_class"].values()][:7], expected)
    assert record["per_class"]["h"] is None
    assert record["mean_per_class"] == pytest.approx(np.mean(expected))
    np.fill_diagonal(table, 0)
    counts = dict(confusion_pairs(scores, labels))
    assert {pair: table[pair] for pair in zip(*np.nonzero(table))} == counts
    assert [pair["count"] for pair in record["confusions"]] == sorted(counts.values())[:-11:-1]
