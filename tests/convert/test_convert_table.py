"""Key tables: complete, unambiguous, and every row does something."""

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx, traverse_util

import models.registry
from convert.families import FAMILIES
from convert.files import open_tensors
from convert.loading import convert_checkpoint, read_layout
from convert.sources import find_weights
from convert.table import (
    BATCHED_WITHOUT_FIRST,
    FLAT,
    LINEAR,
    LINEAR_OF_FIRST_HALF,
    SAME,
    Row,
    Table,
    best_table,
    fill,
    leaf_problems,
    name_problems,
    part,
)
from convert.tensors import Tensor
from tests import zoo


@pytest.fixture
def source(tmp_path):
    """Of a case: the model's tables, the tensors, and a function that writes others in place."""

    def open_case(case):
        folder = zoo.write(case, tmp_path / case)
        file = find_weights(folder)
        layout, parsed = read_layout(file, open_tensors(file))
        return folder, layout.tables(parsed.config), zoo.tensors(case), file

    return open_case


def test_every_family_is_converted():
    assert set(models.registry.FAMILIES) == set(FAMILIES)


@pytest.mark.parametrize("case", zoo.CASES)
def test_tables_name_each_leaf_once(source, case):
    for table in source(case)[1]:
        targets = [row.target for row in table.rows]
        assert len(set(targets)) == len(targets)
        assert not {row.source for row in table.rows} & table.ignored.keys()


@pytest.mark.parametrize("case", zoo.CASES)
def test_every_row_fills_its_leaf_and_no_other(source, case):
    folder, tables, arrays, file = source(case)
    table = best_table(tables, arrays)
    numbers = {row.source: i for i, row in enumerate(table.rows)}
    marked = {  # each tensor is filled with its own number
        name: np.full_like(x, numbers[name]) if name in numbers else x for name, x in arrays.items()
    }
    safetensors.numpy.save_file(marked, file)
    model, report = convert_checkpoint(folder)
    assert report.num_mapped == len({row.source for row in table.rows})
    assert report.ignored.keys() == arrays.keys() & table.ignored.keys()
    leaves = traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(model)))
    leaves = {".".join(map(str, path)): leaf for path, leaf in leaves.items()}
    assert leaves.keys() == {row.target for row in table.rows}
    for row in table.rows:
        filled = leaves[row.target]
        if row.transform in (BATCHED_WITHOUT_FIRST, LINEAR_OF_FIRST_HALF):
            first, second = filled[:1], filled[1:]
            if row.transform is LINEAR_OF_FIRST_HALF:
                second, first = np.split(filled, 2)
            assert not np.any(first)
            filled = second
        np.testing.assert_array_equal(filled, numbers[row.source])


def lazy(array):
    return Tensor(array.shape, array.dtype.name, lambda: array)


def leaf(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_a_fused_tensor_is_read_once_and_fills_several_leaves():
    reads = []
    array = np.arange(6, dtype=np.float32)
    tensors = {"fused": Tensor((6,), "float32", lambda: reads.append(1) or array)}
    table = Table(tuple(Row("fused", name, part(SAME, i, 3)) for i, name in enumerate("qkv")), {})
    leaves = {name: leaf(2) for name in "qkv"}
    assert leaf_problems(table, leaves, tensors) == []
    filled, not_finite = fill(table, leaves, tensors)
    np.testing.assert_array_equal([filled[name] for name in "qkv"], [[0, 1], [2, 3], [4, 5]])
    assert reads == [1] and not_finite == []


def test_the_layout_that_fits_the_names_is_chosen():
    old = Table((Row("model.a", "a", SAME), Row("model.b", "b", SAME)), {})
    new = Table((Row("a", "a", SAME), Row("b", "b", SAME)), {})
    assert best_table((old, new), {"a", "b"}) is new
    assert best_table((old, new), {"model.a", "c"}) is old
    assert best_table((old, new), set()) is old


def test_both_directions_are_checked():
    table = Table((Row("a", "a", LINEAR), Row("b", "b", FLAT)), {"buffer": "not a weight"})
    tensors = {"a": lazy(np.zeros((2, 3), int)), "buffer": lazy(np.zeros(1)), "c": lazy(np.ones(1))}
    assert name_problems(table, tensors) == (["b is missing"], ["'c' is unknown"])
    leaves = {"a": leaf(2, 3), "d": leaf(1)}
    problems = leaf_problems(table, leaves, tensors)
    assert sorted(problems) == [
        "a is 'int64', expected one of float32, float16, bfloat16",
        "a is [2, 3], expected [3, 2]",
        "nothing fills the leaf d",
        "the model has no leaf b for b",
    ]


def test_not_finite_after_the_cast_is_named():
    table = Table((Row("large", "a", SAME), Row("small", "b", SAME)), {})
    tensors = {"large": lazy(np.float32([3.4e38])), "small": lazy(np.float32([1.0]))}
    leaves = {"a": leaf(1, dtype="bfloat16"), "b": leaf(1, dtype="bfloat16")}
    assert fill(table, leaves, tensors)[1] == ["large"]
