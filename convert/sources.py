"""Where a checkpoint lies: a local directory or file, or a repository of the Hugging Face hub."""

import json
import os
import pathlib

import huggingface_hub

from convert.errors import ConversionError, one_line, show

CONFIG = "config.json"
COMPANIONS = ("tokenizer.json", "preprocessor_config.json", "tokenizer_config.json")
# In order of preference: files that cannot hold code first.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_SAFE_PATTERNS = [CONFIG, *COMPANIONS, "model*.safetensors", "model.safetensors.index.json"]
_PICKLE_PATTERNS = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


def fetch(source, revision=None) -> pathlib.Path:
    """The local directory or file of a checkpoint, downloaded if `source` is not a local path.

    Of a hub repository only the config, the companions and the weights are downloaded; pickled
    weights only where there are no others.

    Args:
      source: a directory, a file of weights, or a hub id such as "openai/clip-vit-base-patch32".
      revision: branch, tag or commit of a hub repository.

    Raises:
      ConversionError: neither a local path nor a repository that can be downloaded, or a revision
        of a local path.
    """
    path = pathlib.Path(source).expanduser()
    if _exists(path):
        if revision is not None:
            raise ConversionError(
                f"revision {show(revision)} selects among versions on the hub, but "
                f"{show(str(path))} is a local path: drop the revision"
            )
        return path
    folder = _download(source, revision, _SAFE_PATTERNS)
    if _weights_in(folder) is None:
        folder = _download(source, revision, _PICKLE_PATTERNS)
    return folder


def find_weights(path) -> pathlib.Path:
    """The file of weights, or the index of its shards, of a checkpoint's directory or file.

    Raises:
      ConversionError: a directory without any.
    """
    if path.is_file():
        return path
    if (file := _weights_in(path)) is not None:
        return file
    raise ConversionError(
        f"{show(str(path))} holds none of {', '.join(WEIGHTS)}: "
        "give the file of weights itself, with config.json beside it"
    )


def folder_of(path) -> pathlib.Path:
    """The directory in which a checkpoint's config and companions lie."""
    return path if path.is_dir() else path.parent


def read_config(path) -> dict:
    """The `config.json` of a checkpoint's directory, or beside its file of weights.

    Raises:
      ConversionError: no such file, or one that is not a JSON object.
    """
    file = folder_of(path) / CONFIG
    if not file.is_file():
        raise ConversionError(
            f"{show(str(file))} does not exist: "
            "weights can be read only with the config.json that they were published with"
        )
    return read_json_object(file)


def read_json_object(file) -> dict:
    """A JSON file that holds an object; raises ConversionError for anything else."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConversionError(
            f"{show(str(file))} cannot be read as JSON: {one_line(error)}"
        ) from None
    if not isinstance(values, dict):
        raise ConversionError(f"{show(str(file))} must hold an object, got {show(values)}")
    return values


def _weights_in(folder):
    files = (folder / name for name in WEIGHTS)
    return next((file for file in files if file.is_file()), None)


def _exists(path):
    try:
        return os.path.exists(path)
    except ValueError:  # a null byte
        return False


def _download(source, revision, patterns):
    try:
        folder = huggingface_hub.snapshot_download(
            str(source), revision=revision, allow_patterns=patterns
        )
    except Exception as error:  # of the network, of the hub, of the cache: many types, one cause
        at = f" at revision {show(revision)}" if revision is not None else ""
        raise ConversionError(
            f"no local path {show(str(source))} exists, and it cannot be downloaded from the "
            f"Hugging Face hub{at}: {one_line(error)}"
        ) from error
    return pathlib.Path(folder)
