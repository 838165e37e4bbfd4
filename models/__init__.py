"""Vision transformers in Flax nnx whose attention can be swapped for Fast Nyström Attention."""

from flax import nnx

from fna_jax import FNAConfig
from models import registry
from models.checkpoint import load, save
from models.linen_swap import swap_attention
from models.registry import create, family_of, list_models

__all__ = ["create", "list_models", "load", "save", "swap_attention", "with_attention"]


def with_attention(model, fna: FNAConfig | None):
    """A view of `model` that runs FNA in its vision blocks (None: exact attention).

    The view shares the weights; the model given is not changed.

    Raises:
      TypeError: neither an FNAConfig nor None, or a model from elsewhere.
      ValueError: blocks that the model does not have.
    """
    family_of(model)
    if fna is not None and not isinstance(fna, FNAConfig):
        raise TypeError(f"expected an FNAConfig or None, got {fna!r}")
    depth = registry.vision_config(model.config).encoder.depth
    if fna is not None and fna.layers[-1] >= depth:
        raise ValueError(f"the vision encoder has blocks 0 to {depth - 1}, got layers {fna.layers}")
    return nnx.with_attributes(model, fna=fna)
