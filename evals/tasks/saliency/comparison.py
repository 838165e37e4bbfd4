"""How far an approximation's tokens and maps are from exact attention's, photograph by photograph.

Shape letters: M photographs, N tokens, C width.
"""

import numpy as np

_LOOKED_AT = 0.2  # of the pixels, those with the highest values


def token_errors(approximate, exact, num_prefix) -> dict[str, list[float]]:
    """`‖approximate − exact‖ / ‖exact‖` of each photograph's class token, and of all its patches.

    Args:
      approximate, exact: `[M, N, C]`, the model's output.
      num_prefix: tokens in front of the patches; the first is the class token, if there are any.
    """
    errors = {"patch_error": _relative(approximate[:, num_prefix:], exact[:, num_prefix:])}
    if num_prefix:
        errors["class_token_error"] = _relative(approximate[:, 0], exact[:, 0])
    return {name: error.tolist() for name, error in errors.items()}


def map_agreement(approximate, exact) -> dict[str, list[float]]:
    """Of each photograph's maps `[M, height, width]`, how much they agree.

    `correlation`: Pearson's, over pixels. `intersection_over_union`: of the fifths of the pixels
    that people look at most.
    """
    pairs = [(a.ravel(), e.ravel()) for a, e in zip(approximate, exact, strict=True)]
    return {
        "correlation": [float(np.corrcoef(*pair)[0, 1]) for pair in pairs],
        "intersection_over_union": [_overlap(*map(looked_at, pair)) for pair in pairs],
    }


def looked_at(values) -> np.ndarray:
    """bool, like `values`: the highest fifth."""
    return values >= np.quantile(values, 1 - _LOOKED_AT)


def _overlap(a, b):
    return float(np.sum(a & b) / np.sum(a | b))


def _relative(approximate, exact):
    difference = (approximate - exact).astype(np.float64).reshape(len(exact), -1)
    exact = exact.astype(np.float64).reshape(len(exact), -1)
    return np.linalg.norm(difference, axis=1) / np.linalg.norm(exact, axis=1)
