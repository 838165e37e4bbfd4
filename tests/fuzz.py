"""Damages the files of every layout's tiny checkpoint, and watches the command line.

    python -m tests.fuzz [--rounds 100] [--output results/fuzz.csv]

Whatever a file holds, converting it must end in one of two ways: refused in one line with exit
status 1, or converted, and then from the tensors that the family needs, no other. Nothing may be
left behind. Every outcome follows from the seeds.
"""

import argparse
import collections
import contextlib
import functools
import io
import json
import pathlib
import random
import shutil
import tempfile
import unittest.mock
import warnings

import numpy as np
import safetensors.numpy
import tqdm

import models.registry
from benchmarks.rows import write_rows
from convert.__main__ import main as convert
from convert.loading import convert_checkpoint
from convert.sources import find_weights
from evals.running.workdir import ROOT
from tests import zoo

SAVED_ONE_IN = 10  # of the models that are converted: saving takes most of the time
_abstract_model = functools.cache(models.registry.abstract_model)


# Damage to bytes: (content, rng, region's start and stop) to content.


def flip(content, rng, start, stop):
    """One bit."""
    position = rng.randrange(start, stop)
    changed = content[position] ^ (1 << rng.randrange(8))
    return content[:position] + bytes([changed]) + content[position + 1 :]


def cut(content, rng, start, stop):
    """The end missing."""
    return content[: rng.randrange(start, stop)]


def splice(content, rng, start, stop):
    """A piece of the region copied to another place in it."""
    a, b, c = (rng.randrange(start, stop) for _ in range(3))
    return content[:a] + content[min(b, c) : max(b, c)] + content[a:]


def digits(content, rng, start, stop):
    """One digit replaced by several."""
    places = [i for i in range(start, stop) if content[i : i + 1].isdigit()]
    place = rng.choice(places)
    return content[:place] + str(rng.randrange(10**6)).encode() + content[place + 1 :]


def header(content):
    """The region of safetensors' JSON, with the eight bytes of its length."""
    return 0, 8 + int.from_bytes(content[:8], "little")


def body(content):
    """The region of safetensors' numbers."""
    return header(content)[1], len(content)


def whole(content):
    """All of a file."""
    return 0, len(content)


# Damage to tensors: (tensors by name, those that the model needs, rng), changed in place.


def drop(arrays, needed, rng):
    """One missing."""
    del arrays[rng.choice(needed)]


def add(arrays, needed, rng):
    """One too many."""
    arrays[rng.choice(needed) + rng.choice(["x", ".weight", " "])] = np.zeros(3, np.float32)


def transpose(arrays, needed, rng):
    """One that is not square: of square ones no file tells."""
    name = rng.choice([name for name in needed if arrays[name].T.shape != arrays[name].shape])
    arrays[name] = np.ascontiguousarray(arrays[name].T)


def grow(arrays, needed, rng):
    """One twice as long."""
    name = rng.choice(needed)
    arrays[name] = np.concatenate([np.atleast_1d(arrays[name])] * 2)


def swap(arrays, needed, rng):
    """Two of different shapes under each other's names."""
    a = rng.choice(needed)
    b = rng.choice([name for name in needed if arrays[name].shape != arrays[a].shape])
    arrays[a], arrays[b] = arrays[b], arrays[a]


def integers(arrays, needed, rng):
    """One of another dtype."""
    name = rng.choice(needed)
    arrays[name] = arrays[name].astype(np.int32)


STRANGE = (
    *(None, True, -1, 0, 1, 7, 2**70, 1e308, float("nan")),
    *("", "gelu", "silu", [], {}, [[1]], {"a": 1}),
    *([8, 8], [8, 16], ["a", "b", "c"], {"0": "a"}),
)


def strange_values(values, rng):
    """A few fields of a config, nested ones too, replaced by values of other types and sizes."""
    for section in [values, *(value for value in values.values() if isinstance(value, dict))]:
        if section and rng.random() < 0.7:
            section[rng.choice(sorted(section))] = rng.choice(STRANGE)


BYTES = {
    "header": (header, (flip, splice, digits, cut)),
    "body": (body, (flip, cut, splice)),
    "config": (whole, (flip, splice, digits, cut)),
    "index": (whole, (flip, splice, cut)),
}
TENSORS = (drop, add, transpose, grow, swap, integers)


class Checkpoint:
    """A case's checkpoint in a folder, damaged and mended again."""

    def __init__(self, case, folder):
        self.folder = zoo.write(case, folder / "source")
        self.room = folder / "room"
        self.room.mkdir()
        self.count = 0
        self.weights = find_weights(self.folder)
        self.config = next(
            self.folder / name for name in zoo.CONFIGS if (self.folder / name).is_file()
        )
        self.arrays = zoo.tensors(case)
        ignored = convert_checkpoint(self.folder)[1].ignored
        self.needed = sorted(self.arrays.keys() - ignored.keys())
        self.index: pathlib.Path | None = None

    def shard(self):
        """Two files and their index in place of one file."""
        weight_map = {}
        for i in range(2):
            part = {name: self.arrays[name] for name in sorted(self.arrays)[i::2]}
            file = self.weights.with_stem(f"{self.weights.stem}-{i}")
            safetensors.numpy.save_file(part, file)
            weight_map |= dict.fromkeys(part, file.name)
        self.weights.unlink()
        self.index = self.weights.with_name(f"{self.weights.name}.index.json")
        self.index.write_text(json.dumps({"weight_map": weight_map}))

    def damage_bytes(self, where, mutate, rng) -> int:
        """The exit status after damage to the bytes of one region."""
        files = {"config": self.config, "header": self.weights, "body": self.weights}
        file = files.get(where, self.index)
        content = file.read_bytes()
        region = BYTES[where][0]
        file.write_bytes(mutate(content, rng, *region(content)))
        try:
            return self.convert(same_tensors=where not in ("config", "index"))
        finally:
            file.write_bytes(content)

    def damage_tensors(self, mutate, rng) -> int:
        """The exit status after well-formed tensors were changed."""
        content = self.weights.read_bytes()
        arrays = dict(self.arrays)
        mutate(arrays, self.needed, rng)
        safetensors.numpy.save_file(arrays, self.weights)
        try:
            return self.convert()
        finally:
            self.weights.write_bytes(content)

    def damage_config(self, rng) -> int:
        """The exit status after values of the config were replaced."""
        content = self.config.read_text()
        values = json.loads(content)
        strange_values(values, rng)
        self.config.write_text(json.dumps(values))
        try:
            return self.convert(same_tensors=False)
        finally:
            self.config.write_text(content)

    def convert(self, *, same_tensors=True) -> int:
        """The exit status; raises AssertionError if the end is not a clean one."""
        out, err = io.StringIO(), io.StringIO()
        self.count += 1
        saves = self.count % SAVED_ONE_IN == 0
        save = models.save if saves else lambda *_, **__: None
        with (
            unittest.mock.patch.object(models, "save", save),
            # Models of one config have the same shapes.
            unittest.mock.patch.object(models.registry, "abstract_model", _abstract_model),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("error")
            status = convert([str(self.folder), str(self.room / "out")])
        out, err = out.getvalue(), err.getvalue()
        left = [path.name for path in self.room.iterdir()]
        assert left == (["out"] if saves and status == 0 else [])
        shutil.rmtree(self.room / "out", ignore_errors=True)
        if status == 1:
            assert not out and err.startswith("error: ")
            assert len(err.splitlines()) == 1 and len(err) < 3000, err
            return 1
        assert status == 0 and out and not err
        if same_tensors:
            found = safetensors.numpy.load_file(self.weights)
            for name in self.needed:
                assert found[name].shape == self.arrays[name].shape
        return 0


def campaign(case, folder, rounds):
    """Pairs of the kind of damage and the exit status, `rounds` of each kind."""
    checkpoint = Checkpoint(case, folder)
    assert checkpoint.convert() == 0
    for mutate in TENSORS:
        for seed in range(rounds):
            status = checkpoint.damage_tensors(mutate, random.Random(seed))
            yield f"tensors {mutate.__name__}", status
    for seed in range(rounds):
        yield "config values", checkpoint.damage_config(random.Random(seed))
    for where, (_, mutations) in BYTES.items():
        if where == "index":
            if checkpoint.weights.name != "model.safetensors":
                return  # open_clip writes no shards
            checkpoint.shard()
        for mutate in mutations:
            for seed in range(rounds):
                status = checkpoint.damage_bytes(where, mutate, random.Random(seed))
                yield f"{where} {mutate.__name__}", status


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--rounds", type=int, default=40, help="per case and kind of damage")
    parser.add_argument("--output", default=str(ROOT / "results" / "fuzz.csv"))
    arguments = parser.parse_args(argv)
    rows = []
    for case in tqdm.tqdm(zoo.CASES, unit="case"):
        counts = collections.defaultdict(collections.Counter)
        with tempfile.TemporaryDirectory() as folder:
            for kind, status in campaign(case, pathlib.Path(folder), arguments.rounds):
                counts[kind][status] += 1
        rows += [
            {"case": case, "damage": kind, "refused": count[1], "converted": count[0]}
            for kind, count in counts.items()
        ]
    write_rows(arguments.output, rows)
    total = sum(row["refused"] + row["converted"] for row in rows)
    print(
        f"{total} damaged checkpoints, {sum(row['refused'] for row in rows)} refused, none unclean"
    )


if __name__ == "__main__":
    main()
