"""From a checkpoint of PyTorch to a model of this zoo."""

import collections
import dataclasses
import itertools
import typing
import warnings

import jax
from flax import nnx, traverse_util

import models.registry
from convert.errors import ConversionError, show, summarise
from convert.families import find_layout
from convert.labels import read_labels
from convert.layout import Layout, Source
from convert.sources import fetch, find_weights, read_config
from convert.table import best_table, fill, leaf_problems, name_problems
from convert.tensors import open_tensors
from models.configs import DTYPES


@dataclasses.dataclass(frozen=True)
class Report:
    """What was done with every tensor of a checkpoint.

    Attributes:
      layout: the model's family and the library whose file it was.
      num_mapped: tensors that fill leaves.
      ignored: names of the others, and why.
      num_parameters: of the model.
      file_dtypes: number of mapped tensors of each dtype in the file.
      dtype: of the model's weights and computation.
      not_finite: names of the tensors that hold NaN or infinity.
      unknown_fields: of the checkpoint's config, not used.
      labels: names of the classifier's classes, where the config has as many as the model.
    """

    layout: Layout
    num_mapped: int
    ignored: dict[str, str]
    num_parameters: int
    file_dtypes: dict[str, int]
    dtype: str
    not_finite: tuple[str, ...]
    unknown_fields: tuple[str, ...]
    labels: tuple[str, ...] | None


def load_pretrained(source, *, revision=None, dtype=None, family=None) -> nnx.Module:
    """A model with the weights of a PyTorch checkpoint, and exact attention.

    Args:
      source: a directory with a config and weights, a file of weights with its config beside it
        (the original DINOv2's need none), or else an id on the Hugging Face hub.
      revision: branch, tag or commit on the hub.
      dtype: "float32" or "bfloat16", of weights and computation; by default the file's, float32
        for one of float16 or of mixed dtypes.
      family: one of `convert.families.FAMILIES`; by default told from the config or the tensors.

    Raises:
      ConversionError: a source that cannot be read, or a single name or shape that does not fit.

    Warns:
      UserWarning: tensors that hold NaN or infinity, or fields of the config that nobody knows.
    """
    model, report = convert_checkpoint(fetch(source, revision), dtype=dtype, family=family)
    if report.unknown_fields:
        names = ", ".join(map(show, report.unknown_fields))
        warnings.warn(f"the config has fields that are unknown and not used: {names}", stacklevel=2)
    if report.not_finite:
        names = summarise(report.not_finite)
        warnings.warn(f"NaN or infinity in {names}", stacklevel=2)
    return model


def convert_checkpoint(path, *, dtype=None, family=None) -> tuple[nnx.Module, Report]:
    """The model and the report of a local directory or file; see `load_pretrained`."""
    if dtype is not None and dtype not in DTYPES:
        raise ConversionError(f"dtype must be one of {', '.join(DTYPES)}, got {show(dtype)}")
    file = find_weights(path)
    tensors = open_tensors(file)
    layout, config, unknown_fields = read_layout(file, tensors, family)
    table = best_table(layout.tables(config), tensors)
    mapped = dict.fromkeys(row.source for row in table.rows if row.source in tensors)
    file_dtypes = collections.Counter(tensors[source].dtype for source in mapped)
    dtype = dtype or ("bfloat16" if set(file_dtypes) == {"bfloat16"} else "float32")
    config = dataclasses.replace(config, dtype=dtype, param_dtype=dtype)
    ignored = {name: why for name, why in table.ignored.items() if name in tensors}
    model_class = models.registry.FAMILIES[layout.family].model
    model, not_finite = _build(model_class, config, table, tensors, file)
    return model, Report(
        layout=layout,
        num_mapped=len(mapped),
        ignored=ignored,
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model))),
        file_dtypes=dict(file_dtypes),
        dtype=dtype,
        not_finite=tuple(not_finite),
        unknown_fields=tuple(unknown_fields),
        labels=_labels(file, config),
    )


def _labels(file, config):
    """The names of the classes, unless they are of another classifier than the model's."""
    num_classes = getattr(config, "num_classes", 0)
    labels = read_labels(file.parent) if num_classes else None
    return labels if labels is not None and len(labels) == num_classes else None


def read_layout(file, tensors, family=None) -> tuple[Layout, typing.Any, list[str]]:
    """The layout of a file of weights, the model's config, and fields that nobody knows."""
    values = read_config(file)
    layout = find_layout(values, tensors, family)
    try:
        return layout, *layout.parse(Source(file, values, tensors))
    except ValueError as error:  # the models' configs refuse sizes that do not fit each other
        raise ConversionError(f"the config of {show(str(file))}: {error}") from None


def _build(model_class, config, table, tensors, file):
    """The model filled from the tensors, and the names of those that are not finite."""
    missing, unknown = name_problems(table, tensors)
    # In turns, so that the few that are shown tell of both: a prefix too many or too few.
    pairs = itertools.zip_longest(missing, unknown)
    problems = [problem for pair in pairs for problem in pair if problem]
    if len(missing) > len(tensors):  # names suffice: to build so large a model would take minutes
        raise _misfit(file, problems)
    graphdef, abstract = nnx.split(models.registry.abstract_model(model_class, config))
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(abstract))
    leaves = {".".join(map(str, path)): leaf for path, leaf in flat.items()}
    if problems := problems + leaf_problems(table, leaves, tensors):
        raise _misfit(file, problems)
    arrays, not_finite = fill(table, leaves, tensors)
    filled = {path: arrays[name] for path, name in zip(flat, leaves, strict=True)}
    nnx.replace_by_pure_dict(abstract, traverse_util.unflatten_dict(filled))
    return nnx.merge(graphdef, abstract), not_finite


def _misfit(file, problems):
    problems = summarise(problems)
    return ConversionError(f"{show(str(file))} does not fit its config: {problems}")
