"""From a checkpoint of PyTorch to a model of this zoo."""

import collections
import dataclasses
import itertools
import pathlib
import typing
import warnings

import jax
from flax import nnx, traverse_util

import models.registry
from convert.adapters import Adapter, change_problems, open_adapter
from convert.errors import ConversionError, show, summarise
from convert.families import LAYOUTS, ONNX_LAYOUTS, considered, find_layout
from convert.files import ONNX_SUFFIX, open_state_dicts
from convert.guesses import NOTHING, Given, Guess, refuse_unused
from convert.labels import labels_of, read_labels
from convert.layout import Layout, Parsed, Source
from convert.sources import MERGE, adapter_in, fetch, find_weights, read_config
from convert.state_dicts import View, choose
from convert.table import NO_CHANGES, Table, best_table, fill, leaf_problems, name_problems
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
      view: of the tensors in the file.
      merged: the adapter that was merged into the weights, or None.
      adapter: the name of the file of another one, beside the weights and not merged, or None.
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
    view: View
    merged: Adapter | None
    adapter: str | None

    def warnings(self):
        """Sentences on what may make the model another than the one that was meant."""
        for name in self.unknown_fields:
            yield f"the config's field {show(name)} is unknown, and was not used"
        if self.not_finite:
            yield f"NaN or infinity in {summarise(self.not_finite)}"
        if self.adapter:
            yield f"{self.adapter} beside the weights: an adapter, which was not applied; {MERGE}"

    def warn(self, stacklevel):
        """Warns of what was guessed, and of all that `warnings` says."""
        guesses = (str(guess) for guess in self.guesses if guess.reason is not None)
        for warning in (*guesses, *self.warnings()):
            warnings.warn(warning, stacklevel=stacklevel)


def load_pretrained(source, *, revision=None, dtype=None, family=None, **given) -> nnx.Module:
    """A model with the weights of a PyTorch checkpoint, and exact attention.

    Args:
      source: a directory with a config and weights, a file of weights with its config beside it
        (the original DINOv2's and ONNX need none), or what training saved, or else an id on the
        Hugging Face hub.
      revision: branch, tag or commit on the hub.
      dtype: "float32" or "bfloat16", of weights and computation; by default the file's, float32
        for one of float16 or of mixed dtypes.
      family: one of `convert.families.FAMILIES`; by default told from the config or the tensors.
      **given: what the files leave open, the fields of `convert.guesses.Given`: `weights`,
        `config`, `adapter`, and what would be guessed, `heads`, `text_heads`, `patch_grid`, `pool`.

    Raises:
      ConversionError: a source that cannot be read, or a single name or shape that does not fit.

    Warns:
      UserWarning: what was guessed, tensors that hold NaN or infinity, fields of the config that
        nobody knows, or an adapter beside the weights.
    """
    given = Given(**given)
    path = fetch(source, revision)
    model, report = convert_checkpoint(path, dtype=dtype, family=family, given=given)
    report.warn(stacklevel=3)
    return model


def convert_checkpoint(
    path, *, dtype=None, family=None, given: Given = NOTHING
) -> tuple[nnx.Module, Report]:
    """The model and the report of a local directory or file; see `load_pretrained`."""
    if dtype is not None and dtype not in DTYPES:
        raise ConversionError(f"dtype must be one of {', '.join(DTYPES)}, got {show(dtype)}")
    file, view, layout, (config, unknown_fields, guesses), adapter = read_checkpoint(
        path, family, given
    )
    tables = layout.tables(config)
    table = best_table(tables, view.tensors)
    mapped = dict.fromkeys(row.source for row in table.rows if row.source in view.tensors)
    file_dtypes = collections.Counter(view.tensors[source].dtype for source in mapped)
    dtype = dtype or ("bfloat16" if set(file_dtypes) == {"bfloat16"} else "float32")
    config = dataclasses.replace(config, dtype=dtype, param_dtype=dtype)
    model_class = models.registry.FAMILIES[layout.family].model
    make = lambda: models.registry.abstract_model(model_class, config)
    changes = adapter.changes(tables) if adapter else NO_CHANGES
    model, not_finite = build(make, table, view.tensors, file, changes)
    beside = None if adapter else adapter_in(file.parent)
    return model, Report(
        layout=layout,
        num_mapped=len(mapped),
        ignored=_ignored(table, view),
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model))),
        file_dtypes=dict(file_dtypes),
        dtype=dtype,
        not_finite=tuple(not_finite),
        unknown_fields=tuple(unknown_fields),
        guesses=guesses,
        labels=_labels(file, config, given),
        view=view,
        merged=adapter,
        adapter=beside.name if beside else None,
    )


def _ignored(table, view):
    """Names of tensors that fill nothing, and why."""
    why = {name: why for name, why in table.ignored.items() if name in view.tensors}
    return why | dict.fromkeys(view.left_out, f"not under {view.prefix}, which was read")


def _labels(file, config, given):
    """The names of the classes, unless they are of another classifier than the model's."""
    num_classes = getattr(config, "num_classes", 0)
    if not num_classes:
        return None
    of_config = None if given.config is None else labels_of(read_config(file, given.config))
    labels = of_config or read_labels(file.parent)
    return labels if labels is not None and len(labels) == num_classes else None


class Checkpoint(typing.NamedTuple):
    """A file of weights, what is read of it, and as what."""

    file: pathlib.Path
    view: View
    layout: Layout
    parsed: Parsed
    adapter: Adapter | None


def read_checkpoint(path, family=None, given: Given = NOTHING) -> Checkpoint:
    """The checkpoint at a local directory or file; errors as for `load_pretrained`."""
    file = find_weights(path)
    layouts = considered(_config(file, given), family, among=_among(file))
    fits = lambda names: any(layout.has_keys(names) for layout in layouts)
    view = choose(open_state_dicts(file), fits, file, given.weights)
    adapter = None if given.adapter is None else open_adapter(given.adapter)
    if adapter:
        view = dataclasses.replace(view, tensors=adapter.beside(view.tensors))
    return Checkpoint(file, view, *read_layout(file, view.tensors, family, given), adapter)


def read_layout(file, tensors, family=None, given: Given = NOTHING) -> tuple[Layout, Parsed]:
    """The layout of a file of weights, and what its parser makes of the config or the tensors."""
    values = _config(file, given)
    layout = find_layout(values, tensors, family, among=_among(file))
    try:
        parsed = layout.parse(Source(file, values, tensors, given))
    except ValueError as error:  # the models' configs refuse sizes that do not fit each other
        said = "the names and shapes in" if values is None else "the config of"
        raise ConversionError(f"{said} {show(str(file))}: {error}") from None
    refuse_unused(
        given, parsed.guesses, f"{layout} {'without' if values is None else 'with'} a config"
    )
    return layout, parsed


def _among(file):
    return ONNX_LAYOUTS if file.suffix == ONNX_SUFFIX else LAYOUTS


def _config(file, given):
    """What the config says; of ONNX the graph says it all."""
    if file.suffix != ONNX_SUFFIX:
        return read_config(file, given.config)
    if given.config is not None:
        raise ConversionError(f"{show(str(file))} needs no config: drop --config")
    return None


def build(
    make_abstract, table: Table, tensors, file, changes=NO_CHANGES
) -> tuple[nnx.Module, list[str]]:
    """The model filled from the tensors, and the names of those that are not finite.

    Args:
      make_abstract: gives the model with leaves without memory, as of `nnx.eval_shape`.
      table: of the tensors.
      tensors: by name, of a file.
      file: to name in errors.
      changes: of an adapter, to leaves by dotted path.

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
    if problems := change_problems(changes, leaves):
        raise ConversionError(f"the adapter does not fit the model: {summarise(problems)}")
    arrays, not_finite = fill(table, leaves, tensors, changes)
    filled = {path: arrays[name] for path, name in zip(flat, leaves, strict=True)}
    nnx.replace_by_pure_dict(abstract, traverse_util.unflatten_dict(filled))
    return nnx.merge(graphdef, abstract), not_finite


def _misfit(file, problems):
    problems = summarise(problems)
    return ConversionError(f"{show(str(file))} does not fit its config: {problems}")
