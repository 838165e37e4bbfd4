"""Where a checkpoint lies: a local directory or file, or a repository of the Hugging Face hub."""

import json
import os
import pathlib

import huggingface_hub

from convert.errors import ConversionError, one_line, show
from models.checkpoint import DESCRIPTION, local_path

HUB = "hf:"  # in front of a hub id
CONFIG = "config.json"
OPEN_CLIP_CONFIG = "open_clip_config.json"
LABELS = "labels.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "spiece.model")
_PREPROCESSINGS = (
    *("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"),
    CONFIG,
)
# Of language models: how a dialogue is written down, and which tokens end an answer.
_DIALOGUES = ("chat_template.jinja", "chat_template.json", "generation_config.json")
_COMPANIONS = (*_TOKENIZERS, *_PREPROCESSINGS, *_DIALOGUES, OPEN_CLIP_CONFIG)
# In order of preference: files that cannot hold code first.
_SAFE_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
)
_PICKLED_WEIGHTS = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
# What peft and diffusers write beside, or in place of, the weights of a model.
_ADAPTERS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",
)
MERGE = (
    "--adapter FOLDER merges peft's LoRA into the weights given; others merge into theirs with "
    "peft's merge_and_unload, whose save_pretrained writes what can be converted"
)
WEIGHTS = _SAFE_WEIGHTS + _PICKLED_WEIGHTS
_SAFE_PATTERNS = [*_COMPANIONS, _ADAPTERS[0], "model*.safetensors", *_SAFE_WEIGHTS[1:]]
_PICKLE_PATTERNS = ["pytorch_model*.bin", *_PICKLED_WEIGHTS[1:]]


def is_local(source) -> bool:
    """Whether a source is a path that exists here, and so no id on the hub.

    Raises:
      ConversionError: an address such as gs://bucket/model.
    """
    try:
        return not str(source).startswith(HUB) and _exists(local_path(source))
    except ValueError as error:
        raise ConversionError(str(error)) from None


def fetch(source, revision=None) -> pathlib.Path:
    """The local directory or file of a checkpoint, downloaded if `source` is not a local path.

    Of a hub repository only the config, the companions and the weights are downloaded; pickled
    weights only where there are no others.

    Args:
      source: a directory, a file of weights, or a hub id such as "openai/clip-vit-base-patch32",
        which no local path comes before if it is written "hf:openai/clip-vit-base-patch32".
      revision: branch, tag or commit of a hub repository.

    Raises:
      ConversionError: neither a local path nor a repository that can be downloaded, an address
        such as gs://bucket/model, or a revision of a local path.
    """
    if is_local(source):
        path = local_path(source)
        if revision is not None:
            raise ConversionError(
                f"revision {show(revision)} selects among versions on the hub, but "
                f"{show(str(path))} is a local path: drop the revision"
            )
        return path
    source = str(source).removeprefix(HUB)
    folder = _download(source, revision, _SAFE_PATTERNS)
    if _weights_in(folder) is None:
        folder = _download(source, revision, _PICKLE_PATTERNS)
    return folder


def companions(weights, library) -> list[pathlib.Path]:
    """The files beside a file of weights that tell how its library reads texts and images."""
    preprocessings = (OPEN_CLIP_CONFIG,) if library == "open_clip" else _PREPROCESSINGS
    names = (*_TOKENIZERS, *_DIALOGUES, *preprocessings)
    files = (weights.parent / name for name in names)
    return [file for file in files if file.is_file()]


def find_weights(path) -> pathlib.Path:
    """The file of weights, or the index of its shards, of a checkpoint's directory or file.

    Raises:
      ConversionError: a directory without any, or what was converted before, or an adapter.
    """
    file = path if path.is_file() else _weights_in(path) or adapter_in(path)
    if file is None and (path / DESCRIPTION).is_file():
        raise ConversionError(
            f"{show(str(path))} is converted already: models.load reads it, and so does whatever "
            "takes a model here"
        )
    if file is None:
        raise ConversionError(
            f"{show(str(path))} holds none of {', '.join(WEIGHTS)}: give the file of weights itself"
        )
    if file.name in _ADAPTERS:
        raise ConversionError(
            f"{show(str(file))} is of an adapter (LoRA or another of peft's), which only changes "
            f"the weights of another model: {MERGE}"
        )
    return file


def adapter_in(folder) -> pathlib.Path | None:
    """The first file of an adapter in a folder, if there is one."""
    return next((folder / name for name in _ADAPTERS if (folder / name).is_file()), None)


def read_config(weights, given=None) -> dict | None:
    """The config beside a file of weights, or the file given; None where there is none.

    Raises:
      ConversionError: a file that is not there or not a JSON object.
    """
    if given is not None:
        return read_json_object(local_path(given))
    names = [CONFIG, OPEN_CLIP_CONFIG]
    if weights.name.startswith("open_clip_"):  # some repositories hold the layouts of two libraries
        names.reverse()
    files = (weights.parent / name for name in names)
    file = next((file for file in files if file.is_file()), None)
    return None if file is None else read_json_object(file)


def read_json(file):
    """What a JSON file holds; raises ConversionError if it is damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConversionError(
            f"{show(str(file))} cannot be read as JSON: {one_line(error)}"
        ) from None


def read_json_object(file) -> dict:
    """A JSON file that holds an object; raises ConversionError for anything else."""
    values = read_json(file)
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
            source, revision=revision, allow_patterns=patterns
        )
    except Exception as error:  # of the network, of the hub, of the cache: many types, one cause
        at = f" at revision {show(revision)}" if revision is not None else ""
        raise ConversionError(
            f"no local path {show(source)} exists, and it cannot be downloaded from the "
            f"Hugging Face hub{at}: {one_line(error)}"
        ) from error
    return pathlib.Path(folder)
