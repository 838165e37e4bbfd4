"""DINOv3 as its authors' `.pth` files have it: no config, and the rotation's periods among the
tensors."""

import jax.numpy as jnp
import numpy as np

from convert.errors import ConversionError, show
from convert.layout import Layout, Parsed, Source
from convert.rows import (
    TIMM_DINO_REST,
    TIMM_MLP,
    TIMM_NORMS_AND_ATTENTION,
    TIMM_SCALES,
    block_rows,
    gated_mlp,
    with_biases,
)
from convert.table import BATCHED, Row, Table
from convert.tensors import shape_of
from models.configs import EncoderConfig
from models.dinov3 import DINOv3Config

_THETA = 100.0  # of all that are published
_EPSILON = 1e-5
_NOMINAL_GRID = 14  # nothing depends on it

_PERIODS = "rope_embed.periods"
_REST = (*TIMM_DINO_REST, ("storage_tokens", "registers", BATCHED))
_LOCAL = "the norm of class tokens of small crops, in training only"
_IGNORED = {
    "mask_token": "stands for masked patches in training",
    _PERIODS: "which the model computes",
    "local_cls_norm.weight": _LOCAL,
    "local_cls_norm.bias": _LOCAL,
}


def tables(config: DINOv3Config) -> tuple[Table, ...]:
    """The one key layout."""
    encoder = config.encoder
    mlp = gated_mlp("mlp.w1", "mlp.w2", "mlp.w3") if encoder.gated_mlp else TIMM_MLP
    block = with_biases(TIMM_NORMS_AND_ATTENTION + TIMM_SCALES + mlp, encoder.biases)
    rows = (
        *(Row(*row) for row in _REST),
        *block_rows("blocks", "encoder.blocks", block, encoder.depth),
    )
    ignored = dict(_IGNORED)
    for name in (f"blocks.{i}.attn.qkv.bias" for i in range(encoder.depth)):
        ignored[f"{name}_mask"] = "says which biases count"
        if not encoder.biases:
            ignored[name] = "its mask is zero, as in all files that the authors published"
    return (Table(rows, ignored),)


def parse(source: Source) -> Parsed:
    """The config from the shapes, and from the periods and the masks of the biases.

    Raises:
      ConversionError: what no DINOv3 of the authors has.
    """
    tensors = source.tensors
    width, _, patch_size, _ = shape_of(tensors, "patch_embed.proj.weight", 4)
    head_dim = 4 * shape_of(tensors, _PERIODS, 1)[0]
    depth = sum(name.endswith(".ls1.gamma") for name in tensors)
    gated = "blocks.0.mlp.w1.weight" in tensors
    mlp_dim, _ = shape_of(tensors, f"blocks.0.mlp.{'w1' if gated else 'fc1'}.weight", 2)
    if not head_dim or not width or width % head_dim:
        raise ConversionError(
            f"width {width} does not divide into heads of {head_dim} channels, four for each of "
            f"{_PERIODS}"
        )
    encoder = EncoderConfig(
        width,
        depth,
        width // head_dim,
        mlp_dim,
        "silu" if gated else "gelu",
        _EPSILON,
        biases=_biases(tensors, width, depth),
        gated_mlp=gated,
        layer_scale=True,
    )
    config = DINOv3Config(
        _NOMINAL_GRID * patch_size,
        patch_size,
        shape_of(tensors, "storage_tokens", 3)[1],
        _THETA,
        encoder,
        rope_periods=_rounding(tensors),
    )
    return Parsed(config, [])


def _rounding(tensors):
    """The dtype to which the periods in the file are rounded; raises ConversionError for others."""
    found = np.asarray(tensors[_PERIODS].read(), np.float32)
    exact = (_THETA ** (np.arange(len(found)) / len(found))).astype(np.float32)
    rounded = exact.astype(jnp.bfloat16).astype(np.float32)
    if np.array_equal(found, rounded):
        return "bfloat16"
    if np.all(np.abs(found - exact) <= 2.0**-21 * exact):  # libraries differ in the last digits
        return "float32"
    raise ConversionError(
        f"{_PERIODS} must be {_THETA:g} to the powers i/{len(found)} in float32 or bfloat16, "
        f"got {show(found.tolist())}"
    )


def _biases(tensors, width, depth):
    """Which of query, key and value add a bias; raises ConversionError for other masks of them."""
    if "blocks.0.attn.qkv.bias" not in tensors:
        return ""
    found = set()
    for i in range(depth):
        mask = tensors.get(f"blocks.{i}.attn.qkv.bias_mask")
        numbers = np.ones(3 * width) if mask is None else np.asarray(mask.read(), np.float32)
        if numbers.shape != (3 * width,):
            raise ConversionError(f"blocks.{i}.attn.qkv.bias_mask is not [{3 * width}]")
        parts = numbers.reshape(3, width)
        kept = [name for name, part in zip("qkv", parts) if np.all(part == 1)]
        if len(kept) + sum(np.all(part == 0) for part in parts) != 3:
            raise ConversionError(
                f"blocks.{i}.attn.qkv.bias_mask must be ones for what counts and zeros elsewhere, "
                "the same for all of query, key or value"
            )
        found.add("".join(kept))
    if len(found) != 1:
        raise ConversionError(
            f"attn.qkv.bias_mask must be the same in all blocks, got {show(sorted(found))}"
        )
    return found.pop()


LAYOUT = Layout(
    family="dinov3",
    library="original",
    has_keys=lambda names: {"storage_tokens", _PERIODS, "blocks.0.ls1.gamma"} <= set(names),
    parse=parse,
    tables=tables,
    needs_config=False,
)
