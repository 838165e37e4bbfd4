"""Converted checkpoints on disk: in a directory of one's own, or once in the cache folder."""

import json
import os
import pathlib
import shutil
import sys
import tempfile
import urllib.parse

from flax import nnx

import models
from convert.errors import ConversionError, show
from convert.guesses import NOTHING, Given
from convert.labels import write_labels
from convert.loading import Report, convert_checkpoint, load_pretrained
from convert.sources import (
    CONFIG,
    HUB,
    OPEN_CLIP_CONFIG,
    companions,
    fetch,
    find_weights,
    is_local,
)
from models.checkpoint import DESCRIPTION, local_path

RECORD = "source.json"  # where a converted checkpoint came from


def write_converted(
    source, destination, *, revision=None, dtype=None, family=None, given: Given = NOTHING
) -> tuple[Report, list[pathlib.Path]]:
    """Converts `source` into the new directory `destination`, which appears whole or not at all.

    Returns the report and the companions that were copied. Of a hub id, `source.json` there records
    the commit.

    Args:
      source, revision, dtype, family, given: as in `load_pretrained`.
      destination: must not exist.

    Raises:
      ConversionError: as `load_pretrained`.
      FileExistsError: the destination exists.
    """
    destination = local_path(destination)
    if os.path.lexists(destination):  # before hours of download
        raise FileExistsError(f"{destination} exists; choose another destination or remove it")
    path = fetch(source, revision)
    model, report = convert_checkpoint(path, dtype=dtype, family=family, given=given)
    files = companions(find_weights(path), report.layout.library)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        if given.config is not None:
            name = OPEN_CLIP_CONFIG if report.layout.library == "open_clip" else CONFIG
            files = [file for file in files if file.name != name]
            files.append(pathlib.Path(shutil.copy(local_path(given.config), folder / name)))
        written = [write_labels(report.labels, folder)] if report.labels else []
        if not is_local(source):
            written.append(_write_record(folder, source, revision, path))
        models.save(model, destination, companions=[*files, *written])
    return report, files


def _write_record(folder, source, revision, snapshot):
    """The file in `folder` that says of which commit a snapshot of the hub is."""
    commit = snapshot.name if snapshot.parent.name == "snapshots" else None  # of the hub's cache
    record = {"source": str(source).removeprefix(HUB), "revision": revision, "commit": commit}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    return folder / RECORD


def load(source, *, revision=None, dtype=None) -> nnx.Module:
    """The model at `source`, with exact attention, as in `convert.load("facebook/dinov2-large")`.

    A model of the hub is downloaded and converted once, and from then on read from the cache
    folder, without a network, at the commit that it was then.

    Args:
      source: an id on the Hugging Face hub, PyTorch files, or a directory of `models.save`.
      revision, dtype: as in `load_pretrained`.

    Raises:
      ConversionError: as `load_pretrained`, or a dtype or a revision of what is converted already.
      ValueError: as `models.load`.
    """
    if not is_local(source):
        return models.load(converted(source, revision=revision, dtype=dtype))
    if not (local_path(source) / DESCRIPTION).is_file():
        return load_pretrained(source, revision=revision, dtype=dtype)
    if (revision, dtype) != (None, None):
        raise ConversionError(f"{show(str(source))} is converted already: drop revision and dtype")
    return models.load(source)


def converted(source, *, revision=None, dtype=None) -> pathlib.Path:
    """The directory of a model of the hub in the cache folder, made when first asked for.

    Another process may make it at the same time; the first to end wins, and both have it.

    Raises:
      ConversionError: as `load_pretrained`.
    """
    name = str(source).removeprefix(HUB)
    parts = [urllib.parse.quote(x, safe="") for x in (name, revision or "main", dtype or "as-is")]
    folder = cache_folder() / "hub" / "@".join(parts)
    if not (folder / DESCRIPTION).is_file():
        print(f"{name} is converted, once, to {folder}", file=sys.stderr)
        try:
            report, _ = write_converted(f"{HUB}{name}", folder, revision=revision, dtype=dtype)
        except OSError:
            if not (folder / DESCRIPTION).is_file():
                raise
        else:
            report.warn(stacklevel=3)
    return folder


def cache_folder() -> pathlib.Path:
    """Where what was converted once is kept: `$XDG_CACHE_HOME/fna-jax` or `~/.cache/fna-jax`."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "fna-jax"
