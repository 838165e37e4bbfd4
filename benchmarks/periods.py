"""What the rounding of DINOv3's rotary periods changes in the features.

    python -m benchmarks.periods    # a minute on two cores

DINOv3 was trained with periods rounded to bfloat16, and its authors' files hold them so; others
compute them in float32. Each model has random weights, and sees the same random images with
periods of one and of the other, and, to compare with, computes all but the periods in bfloat16.
An error is `‖a − e‖ / ‖e‖` of the tokens after the last norm, where e has periods of bfloat16.
"""

import dataclasses

import numpy as np
from flax import nnx

import models
from benchmarks.rows import benchmark_parser, parse, write_rows
from models.registry import abstract_model

MODELS = ("dinov3-vit-s-16", "dinov3-vit-b-16", "dinov3-vit-l-16")
PIXELS = (224, 512)
IMAGES = 2

_tokens = nnx.jit(lambda model, images: model(images).tokens)


def main(argv=None):
    arguments = parse(benchmark_parser("periods"), argv)
    write_rows(arguments.output, [row for name in MODELS for row in measure(name)])


def measure(name, pixels=PIXELS, **overrides) -> list[dict]:
    """A row for each size of images, of a model that `models.create` knows."""
    model = models.create(name, rngs=nnx.Rngs(0), rope_periods="bfloat16", **overrides)
    rng = np.random.default_rng(0)
    rows = []
    for side in pixels:
        images = rng.standard_normal((IMAGES, side, side, 3)).astype(np.float32)
        exact = _tokens(model, images)
        other = lambda **changes: _tokens(_with(model, **changes), images)  # noqa: B023
        errors = {
            "float32 periods": _error(other(rope_periods="float32"), exact),
            "bfloat16": _error(other(dtype="bfloat16"), exact),
        }
        for changed, error in errors.items():
            rows.append(
                {"model": name, "pixels": side, "changed": changed, "error": f"{error:.1e}"}
            )
    return rows


def _with(model, **changes):
    """The model with another config and the same weights."""
    config = dataclasses.replace(model.config, **changes)
    return nnx.merge(nnx.split(abstract_model(type(model), config))[0], nnx.state(model))


def _error(actual, expected):
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


if __name__ == "__main__":
    main()
