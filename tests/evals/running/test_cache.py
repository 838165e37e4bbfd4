"""Embeddings on disk: what tells them apart, damage, and runs that are killed."""

import dataclasses
import json
import os
import pathlib
import random
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from flax import nnx

from evals.data.notices import say
from evals.running import embed
from evals.running.cache import Cache, Entry
from evals.running.embed import Embedder
from evals.running.pretrained import open_pretrained
from fna_jax import FNAConfig, Masking

ROOT = pathlib.Path(__file__).parents[3]
FPS, RANDOM = FNAConfig((1,), 8), FNAConfig((1,), 8, method="random")
IMAGES = np.random.default_rng(0).integers(0, 256, (11, 64, 64, 3), dtype=np.uint8)


@pytest.fixture
def backbone(small_model):
    return open_pretrained(str(small_model))


@pytest.fixture
def counted(monkeypatch):
    """What was computed: the name of the function of every `data_parallel`."""
    names, real = [], embed.data_parallel
    monkeypatch.setattr(
        embed, "data_parallel", lambda f, model: names.append(f.__name__) or real(f, model)
    )
    return names


def files(folder):
    return sorted(pathlib.Path(folder).rglob("*.safetensors"))


def test_embeddings_are_computed_once_and_are_the_same(backbone, counted, tmp_path, monkeypatch):
    plain = Embedder(3).images(backbone, IMAGES)
    monkeypatch.setattr(embed, "_PART", 6)
    for _ in range(2):
        embedder = Embedder(3, cache=Cache(tmp_path))
        found = embedder.images(backbone, IMAGES)
        np.testing.assert_array_equal(found.embeddings, plain.embeddings)
        np.testing.assert_array_equal(found.rows, plain.rows)
        assert found.images_per_second > 0 and found.num_unreadable == 0
        # The image tower's attention is no part of what a text is.
        texts = embedder.texts(backbone.with_attention(FPS), ["a one", "a two"])
    assert counted == ["_embedding", "_embedding", "_encode_texts"]
    np.testing.assert_array_equal(texts, Embedder(3).texts(backbone, ["a one", "a two"]))
    assert [len(list(folder.iterdir())) for folder in sorted(tmp_path.iterdir())] in (
        [1, 2],
        [2, 1],
    )


@pytest.mark.parametrize("fault", ["header", "body", "cut", "empty", "other", "other_part", "text"])
def test_a_damaged_part_is_computed_again(backbone, tmp_path, monkeypatch, capsys, fault):
    monkeypatch.setattr(embed, "_PART", 6)
    say.cache_clear()
    embedder = Embedder(3, cache=Cache(tmp_path))
    right = embedder.images(backbone, IMAGES)
    first, second = files(tmp_path)
    content = second.read_bytes()
    if fault == "header":
        content = content.replace(b"embeddings", b"embeddingz", 1)
    elif fault == "body":
        content = content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]
    elif fault in ("cut", "empty"):
        content = content[: -9 if fault == "cut" else 0]
    elif fault == "other":
        other = Cache(tmp_path / "other")
        Embedder(3, cache=other).images(backbone, IMAGES[::-1])
        content = files(tmp_path / "other")[1].read_bytes()
    else:
        content = first.read_bytes() if fault == "other_part" else b'{"embeddings": []}'
    second.write_bytes(content)
    again = embedder.images(backbone, IMAGES)
    np.testing.assert_array_equal(again.embeddings, right.embeddings)
    said = capsys.readouterr().err
    assert said.count("is damaged") == 1 and str(second) in said
    assert embedder.images(backbone, IMAGES).images_per_second == again.images_per_second


def test_no_flipped_bit_goes_unnoticed(tmp_path):
    entry = Entry(tmp_path, '{"a": 1}')
    arrays = {"rows": np.arange(3), "embeddings": np.ones((3, 2), np.float32)}
    entry.write(0, arrays)
    (file,) = files(tmp_path)
    content = file.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        file.write_bytes(damaged)
        found = entry.read(0)
        assert found is None or all((found[name] == arrays[name]).all() for name in arrays)
        assert found is None or set(found) == set(arrays)


def test_whatever_decides_on_an_embedding_changes_the_key(backbone, tmp_path):
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file in files:
        file.write_bytes(b"1234")
    view = backbone.with_interventions
    model = nnx.clone(backbone.model)
    model.logit_scale[...] += 1
    smaller = dataclasses.replace(backbone.preprocess, mean=(0.1, 0.2, 0.3))
    settings = dict(output="embedding", batch_size=4, rng=None)

    def key(view=backbone, images=files, **others):
        return Cache(tmp_path).of_images(view, images, **settings | others).key

    assert key() == key()
    different = [
        key(),
        key(backbone.with_attention(FPS)),
        key(backbone.with_attention(RANDOM), rng=jax.random.key(0)),
        key(backbone.with_attention(RANDOM), rng=jax.random.key(1)),
        key(view({1: Masking("X->T", "sink")})),
        key(dataclasses.replace(backbone, model=model)),
        key(dataclasses.replace(backbone, preprocess=smaller)),
        key(output="pooled"),
        key(batch_size=5),
        key(images=files[:1]),
        key(images=files[::-1]),
        key(images=IMAGES),
        key(images=IMAGES[:, :32]),
        Cache(tmp_path).of_texts(backbone, np.ones((2, 3), np.int32)).key,
        Cache(tmp_path).of_texts(backbone, np.ones((3, 2), np.int32)).key,
    ]
    with jax.default_matmul_precision("bfloat16"):
        different.append(key())
    files[0].write_bytes(b"12345")
    different.append(key())
    os.utime(files[0], ns=(0, 0))
    different.append(key())
    assert len(set(different)) == len(different)


# Embeds many images in many parts, with landmarks that every batch draws anew.
PROGRAM = """
import hashlib, json, pathlib, sys
import jax, numpy as np
from evals.running import embed
from evals.running.cache import Cache
from evals.running.pretrained import open_pretrained
from fna_jax import FNAConfig

model, folder = sys.argv[1:]
embed._PART = 8
images = np.random.default_rng(0).integers(0, 256, (203, 64, 64, 3), dtype=np.uint8)
view = open_pretrained(model).with_attention(FNAConfig((1,), 8, method="random"))
embedder = embed.Embedder(4, cache=Cache(pathlib.Path(folder)))
print("ready", flush=True)
found = embedder.images(view, images, rng=jax.random.key(0))
print(found.rows.tolist() == [*range(203)], hashlib.sha256(found.embeddings).hexdigest())
"""


@pytest.mark.slow
def test_embeddings_survive_kills_at_any_time(small_model, tmp_path):
    kills = int(os.environ.get("KILLS", "4"))  # KILLS=50 pytest -k survive_kills

    def start(folder):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(small_model), str(folder)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout.readline() == "ready\n"
        return process

    expected, _ = start(tmp_path / "undisturbed").communicate()
    assert expected.startswith("True ") and len(files(tmp_path / "undisturbed")) == 26
    chance, runs, progress = random.Random(0), 0, []
    while len(progress) < kills:
        folder = tmp_path / f"run{runs}"
        process = start(folder)
        target = len(files(folder)) + chance.randint(0, 8)
        while process.poll() is None and len(files(folder)) < target:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.02))
        if process.poll() is None:
            process.kill()
            progress.append(len(files(folder)))
            process.communicate()
        else:
            assert process.communicate()[0] == expected
            runs += 1
    assert start(tmp_path / f"run{runs}").communicate()[0] == expected
    print(json.dumps({"kills": kills, "runs": runs + 1, "parts of 26 when killed": progress}))
