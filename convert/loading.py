"""From a checkpoint of PyTorch to a model of this zoo."""

import collections
import dataclasses
import itertools
import warnings

import jax
from flax import nnx, traverse_util

import models.registry
from convert.errors import ConversionError, show, summarise
from convert.families import LAYOUTS, ONNX_LAYOUTS, find_layout
from convert.guesses import NOTHING, Given, Guess, refuse_unused
from convert.labels import read_labels
from convert.layout import Layout, Parsed, Source
from convert.sources import MERGE, adapter_in, fetch, find_weights, read_config
from convert.table import Table, best_table, fill, leaf_problems, name_problems
from convert.tensors import ONNX_SUFFIX, open_tensors
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
      guesses: what the files leave open, and whether it was guessed or given.
      labels: names of the classifier's classes, where the config has as many as the model.
      adapter: the name of an adapter's file beside the weights, or None.
    """

    layout: Layout
    num_mapped: int
    ignored: dict[str, str]
    num_parameters: int
    file_dtypes: dict[str, int]
    dtype: str
    not_finite: tuple[str, ...]
    unknown_fields: tuple[str, ...]
    guesses: tuple[Guess, ...]
    labels: tuple[str, ...] | None
    adapter: str | None

    def warnings(self):
        """Sentences on what may make the model another than the one that was meant."""
        for name in self.unknown_fields:
            yield f"the config's field {show(name)} is unknown, and was not used"
        if self.not_finite:
            yield f"NaN or infinity in {summarise(self.not_finite)}"
        if self.adapter:
            yield f"{self.adapter} beside the weights: an adapter, which was not applied; {MERGE}"


def load_pretrained(source, *, revision=None, dtype=None, family=None, **given) -> nnx.Module:
    """A model with the weights of a PyTorch checkpoint, and exact attention.

    Args:
      source: a directory with a config and weights, a file of weights with its config beside it
        (the original DINOv2's and ONNX need none), or else an id on the Hugging Face hub.
      revision: branch, tag or commit on the hub.
      dtype: "float32" or "bfloat16", of weights and computation; by default the file's, float32
        for one of float16 or of mixed dtypes.
      family: one of `convert.families.FAMILIES`; by default told from the config or the tensors.
      **given: what the files leave open and would be guessed, the fields of
        `convert.guesses.Given`: `heads`, `text_heads`, `patch_grid` and `pool`.

    Raises:
      ConversionError: a source that cannot be read, or a single name or shape that does not fit.

    Warns:
      UserWarning: what was guessed, tensors that hold NaN or infinity, fields of the config that
        nobody knows, or an adapter beside the weights.
    """
    given = Given(**given)
    path = fetch(source, revision)
    model, report = convert_checkpoint(path, dtype=dtype, family=family, given=given)
    for guess in report.guesses:
        if guess.reason is not None:
            warnings.warn(str(guess), stacklevel=2)
    for warning in report.warnings():
        warnings.warn(warning, stacklevel=2)
    return model


def convert_checkpoint(
    path, *, dtype=None, family=None, given: Given = NOTHING
) -> tuple[nnx.Module, Report]:
    """The model and the report of a local directory or file; see `load_pretrained`."""
    if dtype is not None and dtype not in DTYPES:
        raise ConversionError(f"dtype must be one of {', '.join(DTYPES)}, got {show(dtype)}")
    file = find_weights(path)
    tensors = open_tensors(file)
    layout, (config, unknown_fields, guesses) = read_layout(file, tensors, family, given)
    table = best_table(layout.tables(config), tensors)
    mapped = dict.fromkeys(row.source for row in table.rows if row.source in tensors)
    file_dtypes = collections.Counter(tensors[source].dtype for source in mapped)
    dtype = dtype or ("bfloat16" if set(file_dtypes) == {"bfloat16"} else "float32")
    config = dataclasses.replace(config, dtype=dtype, param_dtype=dtype)
    ignored = {name: why for name, why in table.ignored.items() if name in tensors}
    model_class = models.registry.FAMILIES[layout.family].model
    make = lambda: models.registry.abstract_model(model_class, config)
    model, not_finite = build(make, table, tensors, file)
    return model, Report(
        layout=layout,
        num_mapped=len(mapped),
        ignored=ignored,
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model))),
        file_dtypes=dict(file_dtypes),
        dtype=dtype,
        not_finite=tuple(not_finite),
        unknown_fields=tuple(unknown_fields),
        guesses=guesses,
        labels=_labels(file, config),
        adapter=adapter.name if (adapter := adapter_in(file.parent)) else None,
    )


def _labels(file, config):
    """The names of the classes, unless they are of another classifier than the model's."""
    num_classes = getattr(config, "num_classes", 0)
    labels = read_labels(file.parent) if num_classes else None
    return labels if labels is not None and len(labels) == num_classes else None


def read_layout(file, tensors, family=None, given: Given = NOTHING) -> tuple[Layout, Parsed]:
    """The layout of a file of weights, and what its parser makes of the config or the tensors."""
    is_onnx = file.suffix == ONNX_SUFFIX
    values = None if is_onnx else read_config(file)  # of ONNX the graph says it all
    among = ONNX_LAYOUTS if is_onnx else LAYOUTS
    layout = find_layout(values, tensors, family, among=among)
    try:
        parsed = layout.parse(Source(file, values, tensors, given))
    except ValueError as error:  # the models' configs refuse sizes that do not fit each other
        said = "the names and shapes in" if values is None else "the config of"
        raise ConversionError(f"{said} {show(str(file))}: {error}") from None
    refuse_unused(
        given, parsed.guesses, f"{layout} {'without' if values is None else 'with'} a config"
    )
    return layout, parsed


def build(make_abstract, table: Table, tensors, file) -> tuple[nnx.Module, list[str]]:
    """The model filled from the tensors, and the names of those that are not finite.

    Args:
      make_abstract: gives the model with leaves without memory, as of `nnx.eval_shape`.
      table: of the tensors.
      tensors: by name, of a file.
      file: to name in errors.

    Raises:
      ConversionError: a tensor that is missing, unknown or of another shape.
    """
    missing, unknown = name_problems(table, tensors)
    # In turns, so that the few that are shown tell of both: a prefix too many or too few.
    pairs = itertools.zip_longest(missing, unknown)
    problems = [problem for pair in pairs for problem in pair if problem]
    if len(missing) > len(tensors):  # names suffice: to build so large a model would take minutes
        raise _misfit(file, problems)
    graphdef, abstract = nnx.split(make_abstract())
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
