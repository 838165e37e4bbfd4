"""Questions that are answered by yes or no, as POPE (2305.10355) reads and scores them."""

import numpy as np

_NO = ("No", "no", "not")


def says_yes(answer) -> bool:
    """Whether POPE takes an answer for a yes: its first sentence has none of No, no and not.

    So what is neither, or "NO", is a yes.
    """
    first, _, _ = answer.partition(".")
    return not any(word in _NO for word in first.replace(",", "").split(" "))


def pope_scores(answers, references) -> dict:
    """In percent: `score`, the accuracy; `precision`, `recall` and `f1` of yes; `yes_ratio`, the
    share of answers that are read as yes.

    Precision and F1 are 0 where nothing is.

    Args:
      answers: M texts.
      references: M tuples of one text, "yes" or "no".
    """
    said = np.array([says_yes(answer) for answer in answers])
    true = np.array([label == "yes" for (label,) in references])
    hits = int(np.sum(said & true))
    scores = {
        "score": np.mean(said == true),
        "precision": hits / max(int(said.sum()), 1),
        "recall": hits / max(int(true.sum()), 1),
        "f1": 2 * hits / max(int(said.sum() + true.sum()), 1),
        "yes_ratio": said.mean(),
    }
    return {name: float(100 * value) for name, value in scores.items()}
