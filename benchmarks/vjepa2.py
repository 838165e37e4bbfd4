"""What V-JEPA 2's encoders compute for a video of 64 frames, counted.

    python -m benchmarks.vjepa2

A row for each encoder, at the size of its training, and attention, which is that of every block,
chosen anew in each. Nothing runs: random weights would tell nothing of errors.

- gmacs: giga multiply-adds of all blocks; `times_less` than exact.
- attention_share: exact attention's part of them.
- matrix_gb: of one matrix of weights for all heads, `H · N² · 4` bytes: what an implementation
  holds that forms it in float32.
"""

import dataclasses
import functools
import math

import models.registry
from benchmarks import model_tables
from benchmarks.rows import benchmark_parser, parse, write_rows
from evals.jobs.cost import vision_cost
from fna_jax import FNAConfig
from models.configs import position_grid
from models.inputs.qwen_images import FRAMES

_centroid = functools.partial(
    FNAConfig, (0,), features="k", approximation="centroid", partition="kmeans"
)
ARMS = {
    "exact": None,
    "FNA": FNAConfig((0,), 64),
    "centroid": _centroid(64),
    "centroid, own box": _centroid(64, windows=64),
    "centroid, boxes around": _centroid(64, windows=512, near=1),
}


def main(argv=None):
    arguments = parse(benchmark_parser("vjepa2"), argv)
    rows = [row for name in encoders() for row in rows_of(name)]
    write_rows(arguments.output, rows)
    print(model_tables.vjepa2(rows))


def encoders() -> list[str]:
    """The names of the models that have no classifier."""
    variants = models.registry.FAMILIES["vjepa2"].variants
    return [name for name, config in variants.items() if not config.num_classes]


def rows_of(name) -> list[dict]:
    """A row for each attention in the blocks of a model."""
    _, config = models.registry.published(name)
    encoder = config.encoder
    num_tokens = config.num_frames // FRAMES * math.prod(position_grid(config))
    rows = []
    for arm, fna in ARMS.items():
        everywhere = () if fna is None else _in_all(fna, encoder.depth)
        cost = vision_cost(encoder, num_tokens, everywhere, axes=3)
        rows.append(
            {
                "model": name,
                "tokens": num_tokens,
                "arm": arm,
                "gmacs": round(cost.total / 1e9, 1),
                "times_less": round(cost.speedup, 3),
                "attention_share": round(cost.attention_share, 4),
                "matrix_gb": round(4 * encoder.num_heads * num_tokens**2 / 1e9, 3),
            }
        )
    return rows


def _in_all(fna, depth):
    return dataclasses.replace(fna, layers=tuple(range(depth)), resample=True)


if __name__ == "__main__":
    main()
