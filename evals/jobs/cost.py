"""Arithmetic of a vision tower, counted: what approximations gain at a number of tokens."""

import dataclasses
import functools

from evals.jobs.tuned import TUNED
from fna_jax import FNAConfig
from fna_jax.layers import LLOYD_STEPS
from models.configs import EncoderConfig

WORTH = 1.1  # times faster, below which advice is not to bother


@dataclasses.dataclass(frozen=True)
class VisionCost:
    """Multiply-adds of the vision blocks for one image.

    Attributes:
      linear: of projections and MLPs, which FNA does not change.
      attention: of exact attention in all blocks.
      replaced: of exact attention in the blocks that are approximated.
      fna: of the approximation in those blocks, landmarks and partitions included.
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
    def total(self) -> int:
        """All of it, with the approximation."""
        return self.linear + self.attention - self.replaced + self.fna

    @property
    def most_speedup(self) -> float:
        """How many times faster the blocks could be if FNA cost nothing."""
        total = self.linear + self.attention
        return total / (total - self.replaced)

    @property
    def speedup(self) -> float:
        """How many times less arithmetic with FNA; below one it costs more than it saves."""
        return (self.linear + self.attention) / self.total


def vision_cost(encoder: EncoderConfig, num_tokens: int, fna, *, axes=2) -> VisionCost:
    """Counts for a vision encoder, the number of its tokens, and FNAConfigs: one, or a tuple.

    `axes` of the patch grid are three in a video, where as many more windows are near.
    """
    exact = 2 * num_tokens**2 * encoder.width
    count = {"nystrom": _nystrom, "centroid": functools.partial(_centroid, axes=axes)}
    fnas = _several(fna)
    return VisionCost(
        linear=encoder.depth * num_tokens * encoder.linear_cost,
        attention=encoder.depth * exact,
        replaced=sum(len(one.layers) for one in fnas) * exact,
        fna=sum(count[one.approximation](encoder, num_tokens, one) for one in fnas),
    )


def reduced_cost(encoder: EncoderConfig, num_tokens: int, num_prefix: int, reduction) -> int:
    """Multiply-adds of the vision blocks for one image, where a reduction takes tokens away.

    Args:
      encoder: of the model.
      num_tokens, num_prefix: of an image, and of these the ones in front of the patches.
      reduction: a `models.TokenMerging` or a `models.TokenDropping`.
    """
    total, here = 0, num_tokens
    for block in range(encoder.depth):
        left = here
        if block in reduction.layers:
            left = reduction.left(here, num_tokens, num_prefix)
            choice = _dropping if reduction.drops else _merging
            total += choice(encoder, here, left, reduction)
        total += 2 * here**2 * encoder.width + left * encoder.linear_cost
        total += (here - left) * 4 * encoder.width**2  # projected, but no MLP
        here = left
    return total


def _merging(encoder, here, left, merging):
    """Of all similarities between two halves, and of what is added to one of them."""
    del merging
    gone, half = here - left, here // 2
    if not gone:
        return 0
    return half**2 * (encoder.width // encoder.num_heads) + gone * half * encoder.width


def _dropping(encoder, here, left, dropping):
    """Of farthest point sampling."""
    return here * left * _features(encoder, dropping) if dropping.method == "fps" else 0


def _several(fna) -> tuple[FNAConfig, ...]:
    return fna if isinstance(fna, tuple) else (fna,)


def _nystrom(encoder, num_tokens, fna):
    """Multiply-adds of FNA in its blocks, farthest point sampling included."""
    width, landmarks, blocks = encoder.width, fna.num_landmarks, len(fna.layers)
    attention = 4 * num_tokens * landmarks * width + 2 * landmarks**2 * width
    inverse = 4 * fna.inverse_steps * landmarks**3 * encoder.num_heads
    sampling = num_tokens * landmarks * _features(encoder, fna) * (blocks if fna.resample else 1)
    return blocks * (attention + inverse) + sampling


def _centroid(encoder, num_tokens, fna, *, axes):
    """Multiply-adds of centroid attention in its blocks, its partitions included.

    Counted as if the windows were as many as they may be, and all of one size.
    """
    width, clusters, blocks = encoder.width, fna.num_landmarks, len(fna.layers)
    near, centres = 0, clusters  # near tokens of a query; mean queries
    if fna.windows is not None:
        centres = fna.windows
        near = min(num_tokens / fna.windows * (3**axes if fna.near else 1), num_tokens)
    means = 2 * num_tokens * clusters * width  # of keys and values
    means += num_tokens * width if fna.windows else num_tokens * clusters * width  # of queries
    queries = num_tokens + (centres if fna.residual else 0)
    cheap = 2 * queries * (near + clusters) * width
    exact = 2 * centres * num_tokens * width if fna.residual else 0
    # A Lloyd step has a product for the means and one for the distances; landmarks cost as much.
    steps = LLOYD_STEPS[fna.partition] + (fna.partition == "landmarks")
    steps = steps * (blocks if fna.resample else 1) + fna.refine * (blocks - 1)
    step = 2 * num_tokens * clusters * _features(encoder, fna)
    return round(blocks * (means + cheap + exact) + steps * step)


def _features(encoder, fna):
    """Channels of what partitions and landmarks are measured on."""
    width = encoder.width
    return width if fna.features == "input" else width // encoder.num_heads


def advice(encoder, num_tokens, fnas) -> str:
    """What approximations can gain in this model, in a sentence or two; honest when it is nothing.

    Args:
      encoder: of the model.
      num_tokens: of an image.
      fnas: settings, those of one approximation after the other; a tuple for a tuned model's.
    """
    if not fnas:
        return "Attention is exact in all blocks: there is nothing to gain."
    costs = [vision_cost(encoder, num_tokens, fna) for fna in fnas]
    one, blocks = costs[0], sum(len(fna.layers) for fna in _several(fnas[0]))
    counted = {}
    for cost, fna in zip(costs, fnas):
        if isinstance(fna, tuple):
            counted[TUNED] = [f"{cost.speedup:.2f}"]
            continue
        gains = counted.setdefault(fna.approximation, [])
        gains.append(f"{cost.speedup:.2f} (S = {fna.num_landmarks})")
    whose = {
        "nystrom": "FNA's own work",
        "centroid": "centroid attention's",
        TUNED: "that of the tuned settings",
    }
    counted = "; ".join(f"{whose[name]}: {', '.join(gains)}" for name, gains in counted.items())
    text = (
        f"At {num_tokens} tokens attention is {100 * one.attention_share:.0f} % of this vision "
        f"tower's arithmetic. Without it in {blocks} of {encoder.depth} blocks it "
        f"would be at most {one.most_speedup:.2f} times faster; counting {counted}."
    )
    if max(cost.speedup for cost in costs) < WORTH:
        text += (
            " That does not pay at this size: use exact attention here, approximations at higher "
            "resolution."
        )
    return text
