"""The names and shapes of Google's `.npz`: Flax's modules, whose leaves are those of our models.

vision_transformer numbers the modules of a block one after the other, big_vision each kind of them;
big_vision may also write all blocks as one, stacked along the first axis.
"""

import re

from convert.errors import ConversionError, show
from convert.fields import Fields
from convert.guesses import Guesses
from convert.rows import QKV
from convert.table import SAME, Row, Transform
from convert.tensors import shape_of
from models.configs import EncoderConfig

_BLOCK = "encoderblock"
_NORM = (("scale", "scale"), ("bias", "bias"))
_LAYER = (("kernel", "kernel"), ("bias", "bias"))
_MLP = (("Dense_0", "fc1"), ("Dense_1", "fc2"))
# Of a block: norm, attention, norm, MLP.
IN_ORDER = ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
BY_KIND = ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
_OF_FLAX = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}  # its defaults


def nth(index, count) -> Transform:
    """One of `count` leaves that are stacked along a new first axis."""
    return Transform(lambda leaf: (count, *leaf), lambda x, leaf: x[index])


def norm(source, target):
    """The rows of a layer norm."""
    return tuple((f"{source}/{name}", f"{target}.{leaf}", SAME) for name, leaf in _NORM)


def layer(source, target):
    """The rows of a linear layer, a convolution or a projection of attention."""
    return tuple((f"{source}/{name}", f"{target}.{leaf}", SAME) for name, leaf in _LAYER)


def attention(source, target):
    """The rows of a multi-head attention."""
    projections = (*QKV, "out")
    return tuple(row for x in projections for row in layer(f"{source}/{x}", f"{target}.{x}"))


def mlp(source, target):
    """The rows of the two layers of an MLP."""
    return tuple(row for x, leaf in _MLP for row in layer(f"{source}/{x}", f"{target}.{leaf}"))


def _block(names):
    norm1, attends, norm2, two_layers = names
    return (
        *norm(norm1, "norm1"),
        *attention(attends, "attention"),
        *norm(norm2, "norm2"),
        *mlp(two_layers, "mlp"),
    )


def encoder_rows(source, target, names, depth, *, stacked=False) -> list[Row]:
    """The rows of an encoder's blocks and of the norm behind them.

    Args:
      source: what its names in the file begin with.
      target: the leaves of the blocks without their numbers, and of the norm.
      names: IN_ORDER or BY_KIND.
      depth: number of blocks.
      stacked: whether the file has them as one.
    """
    blocks, last_norm = target
    rows = [Row(*row) for row in norm(f"{source}/encoder_norm", last_norm)]
    for i in range(depth):
        name = _BLOCK if stacked else f"{_BLOCK}_{i}"
        rows += [
            Row(f"{source}/{name}/{key}", f"{blocks}.{i}.{leaf}", nth(i, depth) if stacked else how)
            for key, leaf, how in _block(names)
        ]
    return rows


def encoder_of(tensors, source, names) -> EncoderConfig:
    """The config of an encoder, all of which its shapes say.

    Raises:
      ConversionError: names or shapes of no encoder.
    """
    _, attends, _, two_layers = names
    kernel = f"{attends}/query/kernel"
    numbered = re.compile(rf"{re.escape(source)}/{_BLOCK}_\d+/{kernel}")
    depth = sum(numbered.fullmatch(name) is not None for name in tensors)
    if depth:
        block, axes = f"{source}/{_BLOCK}_0", 0
    else:  # stacked
        block, axes = f"{source}/{_BLOCK}", 1
    *stack, width, heads, _ = shape_of(tensors, f"{block}/{kernel}", axes + 3)
    *_, mlp_dim = shape_of(tensors, f"{block}/{two_layers}/Dense_0/kernel", axes + 2)
    fields = Fields(
        f"{source}'s shapes",
        {
            "hidden_size": width,
            "num_hidden_layers": depth or stack[0],
            "num_attention_heads": heads,
            "intermediate_size": mlp_dim,
        },
        _OF_FLAX,
    )
    return fields.encoder()


def image_sizes(tensors, embedding, num_patches, guesses: Guesses) -> dict:
    """The fields of a tower's config that say of what images it is.

    Args:
      tensors: by name.
      embedding: the name of the kernel that makes the patches.
      num_patches: of which positions were learned.
      guesses: of how many are down and across.

    Raises:
      ConversionError: patches that are not square and of colours, or no number for them.
    """
    rows, patch_size, channels, _ = shape_of(tensors, embedding, 4)
    if rows != patch_size or channels != 3:
        shape = list(tensors[embedding].shape)
        raise ConversionError(
            f"{embedding} must be of square patches of three colours, got {show(shape)}"
        )
    grid = guesses.patch_grid(num_patches)
    values = {"image_size": [n * patch_size for n in grid], "patch_size": patch_size}
    fields = Fields("shapes", values, {})
    height, width = fields.sides("image_size")
    return dict(image_size=height, patch_size=fields.size("patch_size"), image_width=width)
