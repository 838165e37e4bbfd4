"""Segmentation metrics from a confusion matrix: IoU by class, their mean, pixel accuracy."""

import numpy as np

from evals.data import IGNORED


def confusion_matrix(truth, predicted, num_classes) -> np.ndarray:
    """Pixels of each true class (rows) and predicted class (columns), int64 `[K, K]`.

    Args:
      truth: uint8, classes below K, or `IGNORED` for pixels that count for nothing.
      predicted: of the same shape, classes below K.
      num_classes: K.
    """
    counted = truth != IGNORED
    pairs = truth[counted].astype(np.int64) * num_classes + predicted[counted]
    counts = np.bincount(pairs, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def scores(confusion, class_names) -> dict:
    """`miou`, `pixel_accuracy` and `iou` by class, in percent.

    A class's IoU is `correct / (true + predicted − correct)`: None where no pixel is, or is called,
    of that class. `miou` is the mean over the others. Without any pixel all are None.
    """
    correct = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - correct
    iou = [100 * float(c / u) if u else None for c, u in zip(correct, union)]
    present = [value for value in iou if value is not None]
    return {
        "miou": float(np.mean(present)) if present else None,
        "pixel_accuracy": 100 * float(correct.sum() / confusion.sum()) if present else None,
        "iou": dict(zip(class_names, iou)),
    }
