"""Embeddings on disk: computed once for all metrics, written in parts, checked when read."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from evals.data.notices import say
from evals.running.processes import broadcast
from evals.running.workdir import ROOT, environment, write_atomically
from models.registry import vision_tower

_SOURCES = (  # of embeddings
    "fna_jax",
    "models",
    "evals/running/embed.py",
    "evals/running/devices.py",
)
_DEVICE = ("device", "jax", "flax")  # of the environment: other numbers, and other times


@dataclasses.dataclass(frozen=True)
class Cache:
    """A folder of embeddings, for one run or shared between some.

    Attributes:
      folder: made if need be.
    """

    folder: pathlib.Path
    _known: dict = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def of_images(self, backbone, images, *, rng=None, **settings) -> "Entry":
        """The entry of a view of a model, of images, and of what else decides on their embeddings.

        Args:
          backbone: an `evals.running.pretrained.Backbone`.
          images: M of what `evals.data.read_image` takes.
          rng: a random key, or None.
          **settings: to be told apart by their `repr`.
        """
        tower = vision_tower(backbone.model)
        return self._entry(
            backbone,
            preprocess=repr(backbone.preprocess),
            attention=repr((tower.fna, tower.interventions, tower.reduction)),
            rng=None if rng is None else repr((rng.dtype, jax.random.key_data(rng).tolist())),
            data=self._once(images, data_digest),
            **{name: repr(value) for name, value in settings.items()},
        )

    def of_texts(self, backbone, token_ids) -> "Entry":
        """The entry of a model's text tower and of token ids, int `[L, T]`."""
        return self._entry(backbone, data=data_digest([token_ids]), output="texts")

    def _entry(self, backbone, **parts):
        state = nnx.state(backbone.model, nnx.Param)
        parts |= {"weights": self._once(jax.tree.leaves(state), lambda _: backbone.fingerprint())}
        parts |= {name: environment()[name] for name in _DEVICE}
        parts |= {"precision": jax.config.jax_default_matmul_precision, "code": _code_digest()}
        key = json.dumps(parts, sort_keys=True)
        return Entry(self.folder / hashlib.sha256(key.encode()).hexdigest()[:40], key)

    def _once(self, objects, digest):
        """`digest(objects)`, kept for as long as these very objects come again."""
        identity = tuple(map(id, objects)) if isinstance(objects, list) else id(objects)
        if identity not in self._known:
            self._known[identity] = objects, digest(objects)  # the objects, so that no id is reused
        return self._known[identity][1]


@dataclasses.dataclass(frozen=True)
class Entry:
    """The embeddings of one key, in numbered parts.

    Attributes:
      folder: of the parts.
      key: json of what decides on the numbers.
    """

    folder: pathlib.Path
    key: str

    def read(self, number):
        """The arrays of a part by name; None if there is no such part, or it is not whole.

        Of several processes the first one reads, and gives to the others.
        """
        return broadcast(self._read(number) if jax.process_index() == 0 else None)

    def _read(self, number):
        file = self._file(number)
        try:
            with safetensors.safe_open(file, framework="numpy") as stored:
                told = stored.metadata()
                arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            if told != self._metadata(number, arrays):
                raise ValueError("its content is not what was written for these embeddings")
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever a damaged or foreign file brings about
            say(f"{file} is damaged ({error}); its embeddings are computed again")
            return None
        return arrays

    def write(self, number, arrays) -> None:
        """Keeps the arrays of a part, by name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        content = safetensors.numpy.save(arrays, self._metadata(number, arrays))
        write_atomically(self._file(number), content)

    def _file(self, number):
        return self.folder / f"{number:06d}.safetensors"

    def _metadata(self, number, arrays):
        digest = hashlib.sha256(f"{number} {self.key}".encode())
        for name in sorted(arrays):
            digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
            digest.update(np.ascontiguousarray(arrays[name]).view(np.uint8))
        return {"key": self.key, "sha256": digest.hexdigest()}


def open_cache(config, workdir) -> Cache | None:
    """The cache that `config.cache` names: a folder; None for the run's own; "" for no cache."""
    if config.get("cache") == "":
        return None
    return Cache(pathlib.Path(config.get("cache") or pathlib.Path(workdir) / "embeddings"))


def data_digest(items) -> str:
    """A hash of what tells data apart: paths, sizes and times of files; the bytes of arrays."""
    digest = hashlib.sha256()
    for item in items:
        if isinstance(item, np.ndarray):
            digest.update(f"{item.dtype} {item.shape}".encode())
            digest.update(np.ascontiguousarray(item).view(np.uint8))
        elif hasattr(item, "open_image"):
            digest.update(f"{item.identity}\0".encode("utf-8", "surrogateescape"))
        else:
            path = os.path.abspath(item)
            try:
                stat = os.stat(path)
                digest.update(f"{stat.st_size} {stat.st_mtime_ns} ".encode())
            except OSError:  # the reader says what is wrong with it
                digest.update(b"unreadable ")
            digest.update(os.fsencode(path) + b"\0")
    return digest.hexdigest()


@functools.cache
def _code_digest():
    digest = hashlib.sha256()
    for source in (ROOT / name for name in _SOURCES):
        for file in sorted(source.rglob("*.py")) or [source]:
            digest.update(file.read_bytes())
    return digest.hexdigest()
