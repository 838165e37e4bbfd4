"""Arithmetic of a vision tower, counted: what FNA can gain at a number of tokens."""

import dataclasses

from fna_jax import FNAConfig
from models.configs import EncoderConfig


@dataclasses.dataclass(frozen=True)
class VisionCost:
    """Multiply-adds of the vision blocks for one image.

    Attributes:
      linear: of projections and MLPs, which FNA does not change.
      attention: of exact attention in all blocks.
      replaced: of exact attention in the blocks that run FNA.
      fna: of FNA in those blocks, farthest point sampling included.
    """

    linear: int
    attention: int
    replaced: int
    fna: int

    @property
    def attention_share(self) -> float:
        """Attention's part of the exact model's arithmetic."""
        return self.attention / (self.linear + self.attention)

    @property
    def most_speedup(self) -> float:
        """How many times faster the blocks could be if FNA cost nothing."""
        total = self.linear + self.attention
        return total / (total - self.replaced)

    @property
    def speedup(self) -> float:
        """How many times less arithmetic with FNA; below one it costs more than it saves."""
        total = self.linear + self.attention
        return total / (total - self.replaced + self.fna)


def vision_cost(encoder: EncoderConfig, num_tokens: int, fna: FNAConfig) -> VisionCost:
    """Counts for a vision encoder and the number of its tokens."""
    width, heads, landmarks = encoder.width, encoder.num_heads, fna.num_landmarks
    mlp_matrices = 3 if encoder.gated_mlp else 2
    exact = 2 * num_tokens**2 * width
    nystrom = 4 * num_tokens * landmarks * width + 2 * landmarks**2 * width
    inverse = 4 * fna.inverse_steps * landmarks**3 * heads
    features = width if fna.features == "input" else width // heads
    sampling = num_tokens * landmarks * features * (len(fna.layers) if fna.resample else 1)
    return VisionCost(
        linear=encoder.depth * num_tokens * width * (4 * width + mlp_matrices * encoder.mlp_dim),
        attention=encoder.depth * exact,
        replaced=len(fna.layers) * exact,
        fna=len(fna.layers) * (nystrom + inverse) + sampling,
    )


def advice(encoder, num_tokens, fnas) -> str:
    """What FNA can gain in this model, in a sentence or two; honest when that is nothing."""
    costs = [vision_cost(encoder, num_tokens, fna) for fna in fnas]
    one = costs[0]
    counted = ", ".join(f"{c.speedup:.2f} (S = {f.num_landmarks})" for c, f in zip(costs, fnas))
    text = (
        f"At {num_tokens} tokens attention is {100 * one.attention_share:.0f} % of this vision "
        f"tower's arithmetic. FNA in {len(fnas[0].layers)} of {encoder.depth} blocks could "
        f"make it at most {one.most_speedup:.2f} times faster; counting FNA's own work: {counted}."
    )
    if max(cost.speedup for cost in costs) < 1.1:
        text += (
            " FNA does not pay at this size: use exact attention here, FNA at higher resolution."
        )
    return text
