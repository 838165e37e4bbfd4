"""Seeded damage to every file of a checkpoint: refused in one line, or converted."""

import json
import random
import warnings

import pytest
import tiny_clip

import models
from convert.__main__ import main


def flip(content, rng, start, stop):
    position = rng.randrange(start, stop)
    changed = content[position] ^ (1 << rng.randrange(8))
    return content[:position] + bytes([changed]) + content[position + 1 :]


def cut(content, rng, start, stop):
    return content[: rng.randrange(start, stop)]


def splice(content, rng, start, stop):
    """A piece of the region moved to another place in it."""
    a, b, c = (rng.randrange(start, stop) for _ in range(3))
    return content[:a] + content[min(b, c) : max(b, c)] + content[a:]


def digits(content, rng, start, stop):
    """One digit of the region replaced by several."""
    places = [i for i in range(start, stop) if content[i : i + 1].isdigit()]
    place = rng.choice(places)
    return content[:place] + str(rng.randrange(10**6)).encode() + content[place + 1 :]


@pytest.fixture
def check(source, tmp_path, capsys, monkeypatch):
    """Converts the source: whatever is in it, either outcome must be clean; gives the status."""
    room = tmp_path / "room"
    room.mkdir()
    # Saving what was accepted is tested elsewhere, and would take most of the time.
    monkeypatch.setattr(models, "save", lambda *_, **__: None)

    def run():
        status = main([str(source), str(room / "out")])
        out, err = capsys.readouterr()
        assert list(room.iterdir()) == []
        if status == 0:
            assert out and not err
        else:
            assert status == 1 and not out
            assert err.startswith("error: ") and len(err.splitlines()) == 1 and len(err) < 3000
        return status

    return run


def fuzz(file, check, mutate, region, seeds):
    """Statuses of the conversions, one per seed."""
    content = file.read_bytes()
    statuses = []
    for seed in seeds:
        file.write_bytes(mutate(content, random.Random(seed), *region(content)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            statuses.append(check())
    return statuses


def header(content):
    return 0, 8 + int.from_bytes(content[:8], "little")


def body(content):
    return header(content)[1], len(content)


def whole(content):
    return 0, len(content)


@pytest.mark.parametrize(
    "mutate, seeds",
    [(flip, 80), (splice, 60), (digits, 60), (cut, 30)],
    ids=["flip", "splice", "digits", "cut"],
)
def test_header(source, check, mutate, seeds):
    statuses = fuzz(source / "model.safetensors", check, mutate, header, range(seeds))
    assert 1 in statuses


@pytest.mark.parametrize(
    "mutate, seeds, expected",
    [(flip, 12, {0}), (cut, 30, {1}), (splice, 30, {0, 1})],
    ids=["flip", "cut", "splice"],
)
def test_body(source, check, mutate, seeds, expected):
    """Changed values are accepted, a changed length is not; a splice may be of no bytes."""
    assert set(fuzz(source / "model.safetensors", check, mutate, body, range(seeds))) <= expected


@pytest.mark.parametrize(
    "mutate, seeds",
    [(flip, 40), (splice, 40), (digits, 30), (cut, 30)],
    ids=["flip", "splice", "digits", "cut"],
)
def test_config(source, check, mutate, seeds):
    fuzz(source / "config.json", check, mutate, whole, range(seeds))


@pytest.mark.parametrize("seed", range(3))
def test_config_values_of_any_type(source, check, seed):
    """Fields replaced by values of other types and sizes, several at once."""
    rng = random.Random(seed)
    strange = [
        None,
        True,
        -1,
        0,
        1,
        2**70,
        1e308,
        "",
        "gelu",
        [],
        {},
        [[1]],
        {"a": 1},
        float("nan"),
    ]
    for _ in range(20):
        values = tiny_clip.shallow_config()
        for section in (values, values["text_config"], values["vision_config"]):
            section[rng.choice(sorted(section))] = rng.choice(strange)
        (source / "config.json").write_text(json.dumps(values))
        check()


def test_index(tmp_path, source, check):
    arrays, values = tiny_clip.shallow_tensors(), tiny_clip.shallow_config()
    (source / "model.safetensors").unlink()
    tiny_clip.write_shards(source, arrays, values)
    fuzz(source / "model.safetensors.index.json", check, flip, whole, range(40))
