"""Checkpoint directories: `model.json` (family and config), orbax weights, and companions."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import tempfile

import jax
import orbax.checkpoint as ocp
from flax import nnx

from .registry import (
    FAMILIES,
    abstract_model,
    config_from_dict,
    did_you_mean,
    family_of,
)

DESCRIPTION = "model.json"
_WEIGHTS = "weights"
_WRITTEN_AT_ONCE = 2**25  # bytes


def save(model, path, *, companions=()) -> None:
    """Writes the model to a new directory `path`, which appears whole or not at all.

    Args:
      model: one of the zoo's models; the attention it runs is not saved.
      path: must not exist.
      companions: files to copy beside the weights under their own names (tokenizer, preprocessing).

    Raises:
      FileExistsError: `path` exists.
      ValueError: `path` is an address, such as gs://bucket/model.
      TypeError: a model from elsewhere.
    """
    description = {"family": family_of(model), "config": dataclasses.asdict(model.config)}
    with new_directory(path) as folder:
        weights = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        with _frugal_checkpointer(weights) as checkpointer:
            checkpointer.save(folder / _WEIGHTS, weights)
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
        for companion in companions:
            shutil.copy(companion, folder)


def _frugal_checkpointer(weights):
    """Writes few leaves at a time: all of them at once would need the model's memory again."""
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(weights))  # less than a leaf is refused
    limit = 1.01e-9 * max(largest, _WRITTEN_AT_ONCE)
    me = jax.process_index()  # of several processes the one that saves waits for no other
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )
    handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=limit, multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def load(path, *, sharding=None) -> nnx.Module:
    """The model that `save` wrote to `path`, with exact attention.

    Args:
      path: a checkpoint directory.
      sharding: where the weights go, straight from the disk: a `jax.sharding.Sharding` for all
        leaves, or a function of a leaf's path, such as "encoder.blocks.0.mlp.fc1.kernel", and its
        `jax.ShapeDtypeStruct` that returns one. By default the first device. The axes of a mesh
        must be of type Auto: the models leave it to XLA how their products are sharded.

    Raises:
      FileNotFoundError: `path` is not a checkpoint directory.
      ValueError: an address in place of a path, a description or weights that do not fit each
        other, or a sharding that does not fit a leaf.
    """
    path = local_path(path).absolute()
    family, config = read_description(path)
    graphdef, abstract = nnx.split(abstract_model(family.model, config))
    target = _placed(nnx.to_pure_dict(abstract), sharding)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            _check_shapes(checkpointer.metadata(path / _WEIGHTS).item_metadata.tree, target)
            weights = checkpointer.restore(path / _WEIGHTS, target)
    except Exception as error:  # orbax and tensorstore raise many types for one cause
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ValueError(
            f"the weights in {path / _WEIGHTS} cannot be restored: {reason}"
        ) from error
    nnx.replace_by_pure_dict(abstract, weights)
    return nnx.merge(graphdef, abstract)


def read_description(path):
    """The family and the config of the model that `save` wrote to `path`; errors as of `load`."""
    path = local_path(path).absolute()
    if not (path / DESCRIPTION).is_file():
        raise FileNotFoundError(
            f"{path} holds no {DESCRIPTION}: not a checkpoint of models.save. "
            "Convert PyTorch weights with: python -m convert SOURCE DESTINATION"
        )
    try:
        description = json.loads((path / DESCRIPTION).read_text())
        family_name, values = description["family"], description["config"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path / DESCRIPTION} is damaged: {error!r}") from None
    if family_name not in FAMILIES:
        raise ValueError(f"unknown family {family_name!r}{did_you_mean(family_name, FAMILIES)}")
    family = FAMILIES[family_name]
    return family, config_from_dict(family.config, values)


def _placed(leaves, sharding):
    """The leaves' shapes and dtypes with the sharding of each."""
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    choose = sharding if callable(sharding) else lambda path, leaf: sharding

    def place(path, leaf):
        name = _name(path)
        leaf = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        chosen = choose(name, leaf)
        if not isinstance(chosen, jax.sharding.Sharding):
            raise ValueError(f"the sharding of {name} must be a jax.sharding.Sharding: {chosen!r}")
        try:
            chosen.shard_shape(leaf.shape)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=chosen)
        except ValueError as error:
            raise ValueError(f"the sharding of {name}, {list(leaf.shape)}: {error}") from None

    return jax.tree_util.tree_map_with_path(place, leaves)


def _name(path):
    return ".".join(str(key.key) for key in path)


def _check_shapes(stored, target):
    """Raises ValueError for the first leaf that only one of two trees has, or of another shape."""

    def shapes(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {_name(path): tuple(x.shape) for path, x in leaves}

    stored, target = shapes(stored), shapes(target)
    for path in sorted(stored.keys() | target.keys()):
        found, expected = stored.get(path, "absent"), target.get(path, "absent")
        if found != expected:
            raise ValueError(f"{path} is {found} there and {expected} in the model described")


def local_path(path) -> pathlib.Path:
    """The path with `~` expanded; raises ValueError for an address, as gs://bucket/model is."""
    text = os.path.expanduser(path)
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(text)):  # pathlib makes one slash of two
        raise ValueError(
            f"{path} is an address, but only local paths are read and written: copy what lies "
            "there to this machine, or from here to there"
        )
    return pathlib.Path(text)


@contextlib.contextmanager
def new_directory(path):
    """A temporary sibling directory that becomes `path` when the block ends without an error.

    Raises:
      FileExistsError: `path` exists.
      ValueError: `path` is an address.
    """
    path = local_path(path).absolute()
    if path.exists():
        raise FileExistsError(f"{path} exists; choose another destination or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp's 0700 is for secrets
        os.rename(folder, path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
