"""Key tables: which tensor of a checkpoint fills which leaf of a model, checked both ways.

Shape letters: C width, H heads, D head dimension, I and O channels in and out of a layer. The
shapes of a file are PyTorch's, those of a leaf are Flax's.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import numpy as np
import tqdm

from convert.errors import show
from convert.tensors import Tensor

Shape = tuple[int, ...]
Changes = Mapping[str, Callable[[Shape], np.ndarray]]  # of leaves by dotted path, from their shapes
NO_CHANGES: Changes = {}
_FLOATS = ("float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Transform:
    """From a tensor in a file to a leaf.

    Attributes:
      source_shape: the shape in the file that a leaf of the given shape needs.
      apply: the leaf, from the tensor and the leaf's shape.
    """

    source_shape: Callable[[Shape], Shape]
    apply: Callable[[np.ndarray, Shape], np.ndarray]


SAME = Transform(lambda leaf: leaf, lambda x, leaf: x)
FLAT = Transform(lambda leaf: (math.prod(leaf),), lambda x, leaf: x.reshape(leaf))  # [H·D] → [H, D]
LINEAR = Transform(lambda leaf: leaf[::-1], lambda x, leaf: x.T)  # [O, I] → [I, O]
SPLIT_HEADS = Transform(  # [H·D, C] → [C, H, D]
    lambda leaf: (leaf[1] * leaf[2], leaf[0]), lambda x, leaf: x.T.reshape(leaf)
)
MERGE_HEADS = Transform(  # [C, H·D] → [H, D, C]
    lambda leaf: (leaf[2], leaf[0] * leaf[1]), lambda x, leaf: x.T.reshape(leaf)
)
CONVOLUTION = Transform(  # [O, I, height, width] → [height, width, I, O]
    lambda leaf: (leaf[3], leaf[2], leaf[0], leaf[1]), lambda x, leaf: x.transpose(2, 3, 1, 0)
)
BATCHED = Transform(lambda leaf: (1, 1, *leaf)[-3:], lambda x, leaf: x.reshape(leaf))  # [1, N, C]
# Where a file leaves out what a model adds: zeros, which add nothing.
BATCHED_WITHOUT_FIRST = Transform(  # [1, N, C] → [1 + N, C]
    lambda leaf: (1, leaf[0] - 1, leaf[1]), lambda x, leaf: np.pad(x[0], ((1, 0), (0, 0)))
)
LINEAR_OF_FIRST_HALF = Transform(  # [O, I] → [2 I, O]
    lambda leaf: (leaf[1], leaf[0] // 2),
    lambda x, leaf: np.pad(x.T, ((0, leaf[0] // 2), (0, 0))),
)


def part(transform: Transform, index: int, count: int) -> Transform:
    """`transform` of one of `count` equal parts along the first axis of a fused tensor."""

    def source_shape(leaf):
        first, *rest = transform.source_shape(leaf)
        return (count * first, *rest)

    return Transform(source_shape, lambda x, leaf: transform.apply(np.split(x, count)[index], leaf))


@dataclasses.dataclass(frozen=True)
class Row:
    """Tensor `source` fills leaf `target`, a dotted path; a fused tensor has several rows."""

    source: str
    target: str
    transform: Transform


@dataclasses.dataclass(frozen=True)
class Table:
    """All names of one key layout.

    Attributes:
      rows: each must be in the file.
      ignored: names that may be in the file and fill nothing, and why.
    """

    rows: tuple[Row, ...]
    ignored: dict[str, str]


def best_table(tables, names) -> Table:
    """The layout that shares most names with a file; the first of equals."""
    return max(tables, key=lambda table: sum(row.source in names for row in table.rows))


def name_problems(table: Table, names) -> tuple[list[str], list[str]]:
    """What a file lacks, and what it holds that the table does not know, in words."""
    sources = dict.fromkeys(row.source for row in table.rows)
    missing = [f"{name} is missing" for name in sources if name not in names]
    known = sources.keys() | table.ignored.keys()
    unknown = [f"{show(name)} is unknown" for name in names if name not in known]
    return missing, unknown


def leaf_problems(table: Table, leaves: dict[str, jax.ShapeDtypeStruct], tensors) -> list[str]:
    """Shapes and dtypes in a file that do not fit the model, and leaves that nothing fills."""
    filled = {row.target for row in table.rows}
    problems = [f"nothing fills the leaf {name}" for name in leaves if name not in filled]
    for row in table.rows:
        if row.target not in leaves:
            problems.append(f"the model has no leaf {row.target} for {row.source}")
        elif row.source in tensors:
            problems += _fit(row, leaves[row.target], tensors[row.source])
    return problems


def _fit(row, leaf, tensor: Tensor):
    expected = row.transform.source_shape(leaf.shape)
    if tensor.shape != expected:
        yield f"{row.source} is {show(list(tensor.shape))}, expected {list(expected)}"
    if tensor.dtype not in _FLOATS:
        yield f"{row.source} is {show(tensor.dtype)}, expected one of {', '.join(_FLOATS)}"


def fill(
    table: Table,
    leaves: dict[str, jax.ShapeDtypeStruct],
    tensors: dict[str, Tensor],
    changes: Changes = NO_CHANGES,
):
    """The leaves by dotted path, and the names of tensors that hold NaN or infinity.

    One tensor of the file is in memory at a time. Table, leaves and tensors must fit.

    Args:
      table, leaves, tensors: of one model.
      changes: what is added to some leaves.
    """
    rows: dict[str, list[Row]] = {}
    for row in table.rows:
        rows.setdefault(row.source, []).append(row)
    arrays, not_finite = {}, []
    bar = tqdm.tqdm(rows.items(), desc="converting", unit="tensor", leave=False, disable=None)
    for source, targets in bar:  # disable=None: no bar unless a person looks on
        array = tensors[source].read()
        finite = True
        for row in targets:
            leaf = _leaf(array, row, leaves[row.target], changes.get(row.target))
            finite &= bool(np.isfinite(leaf).all())
            arrays[row.target] = jax.device_put(leaf)  # jnp.asarray compiles for each shape
        if not finite:
            not_finite.append(source)
    return arrays, not_finite


def _leaf(array, row, leaf, change):
    with np.errstate(all="ignore"):  # what does not survive the cast is found by the finite check
        value = row.transform.apply(array, leaf.shape)
        if change is not None:
            value = value.astype(np.float32) + change(leaf.shape)
        return value.astype(leaf.dtype)
