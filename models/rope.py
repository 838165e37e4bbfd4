"""Rotary positions of tokens in a row (RoPE, arXiv 2104.09864), and their scaling for long texts.

Shape letters: B batch, N tokens, D head dimension.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from .configs import check_choice

SCALINGS = ("none", "linear", "llama3")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How a model turns more slowly, to read texts longer than those that it was trained on first.

    Attributes:
      kind: "none"; "linear", all frequencies by `factor` (arXiv 2306.15595); "llama3", only waves
        longer than `original_positions / low_frequency`, with a ramp down to those of
        `original_positions / high_frequency`, which stay (Llama 3.1).
      factor: how much more slowly.
      low_frequency, high_frequency: waves in `original_positions`.
      original_positions: of the texts before the scaling.
    """

    kind: str = "none"
    factor: float = 1.0
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    original_positions: int = 8192

    def __post_init__(self):
        check_choice(self, "kind", SCALINGS)
        if self.factor < 1:
            raise ValueError(f"factor must be at least 1, got {self.factor}")
        if not 0 < self.low_frequency < self.high_frequency:
            raise ValueError(
                "low_frequency and high_frequency must be positive, the second larger, got "
                f"{self.low_frequency} and {self.high_frequency}"
            )
        if self.original_positions < 1:
            raise ValueError(f"original_positions must be at least 1: {self.original_positions}")

    def scaled(self, frequencies):
        """Frequencies `[D/2]` as the model uses them."""
        if self.kind == "none":
            return frequencies
        if self.kind == "linear":
            return frequencies / self.factor
        waves = self.original_positions * frequencies / (2 * math.pi)
        kept = (waves - self.low_frequency) / (self.high_frequency - self.low_frequency)
        kept = np.clip(kept, 0, 1)
        return kept * frequencies + (1 - kept) * frequencies / self.factor


UNSCALED = RopeScaling()


def interleaved_axes(sections) -> np.ndarray:
    """The axis, 0, 1 or 2, by which each of `sum(sections)` planes of a head is turned.

    They take turns, `i mod 3`, until an axis other than 0 has had its section; what is left is of
    axis 0 (Qwen3-VL, arXiv 2511.21631).
    """
    planes = np.arange(sum(sections))
    axes = planes % 3
    return np.where(planes < 3 * np.asarray(sections)[axes], axes, 0)


def token_angles(positions, head_dim, *, theta, scaling: RopeScaling, sections=()):
    """Angles float32 `[B, N, D/2]` of tokens at positions int `[B, N]`, or `[B, N, 3]`.

    Each is the position times `theta^(−2i/D)`, i = 0, …, D/2 − 1, or times what the scaling makes
    of that; with three positions, that on the axis of i by `interleaved_axes(sections)`.
    """
    frequencies = scaling.scaled(theta ** (-2 * np.arange(head_dim // 2) / head_dim))
    of_planes = positions[..., None]
    if positions.ndim == 3:
        of_planes = positions[..., interleaved_axes(sections)]
    return of_planes.astype(jnp.float32) * frequencies.astype(np.float32)
