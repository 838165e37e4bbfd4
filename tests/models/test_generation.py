"""Text that decoders write: greedy and drawn, with stop tokens, in batches, on eight devices."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from models.generation import NO_TOKEN, Sampling, _generate, generate
from tests.conftest import few
from tests.models.tiny_decoders import KINDS, prompts, run, tiny
from tests.pages import ROOT

NUM_NEW = 6
PROMPTS = prompts(length=3, padding=(0, 1))  # with what is written as long as in test_decoder.py


def write(model, tokens, real, **options):
    options = {"max_new_tokens": NUM_NEW} | options
    return np.asarray(generate(model, model.embed(tokens), real, **options))


@pytest.mark.parametrize("kind", few(KINDS, ["qwen3"]))
def test_greedy_text_is_the_likeliest_of_each_recomputation(kind):
    """All of the text read at once: each token is the likeliest behind those before it."""
    model, (tokens, real) = tiny(kind), PROMPTS
    new = write(model, tokens, real)
    whole = np.concatenate([tokens, new], axis=1)
    _, logits, _ = run(model, whole, np.pad(real, [(0, 0), (0, NUM_NEW)], constant_values=True))
    np.testing.assert_array_equal(new, np.argmax(logits, axis=-1)[:, 2:-1])
    assert len(np.unique(new)) > 2


def test_a_text_ends_with_its_first_stop_token_and_others_go_on():
    model, (tokens, real) = tiny("qwen3"), PROMPTS
    free = write(model, tokens, real)
    stop = free[0, 2]
    expected = free.copy()
    for row in expected:
        ends = np.flatnonzero(row == stop)
        row[ends[0] + 1 if len(ends) else NUM_NEW :] = NO_TOKEN
    np.testing.assert_array_equal(write(model, tokens, real, stop_tokens=(stop, 47)), expected)
    assert (expected[0, 3:] == NO_TOKEN).all()
    first = write(model, tokens, real, stop_tokens=free[:, 0].tolist())
    np.testing.assert_array_equal(first[:, 1:], NO_TOKEN)


def test_companions_and_padding_do_not_change_a_text():
    model, (tokens, real) = tiny("llama"), PROMPTS
    together = write(model, tokens, real)
    np.testing.assert_array_equal(write(model, tokens[1:, 1:], real[1:, 1:]), together[1:])
    drawn = [
        write(model, x, real[: len(x)], temperature=1.5, key=jax.random.key(3))
        for x in (tokens, tokens[:1])
    ]
    np.testing.assert_array_equal(drawn[0][:1], drawn[1])


def test_equal_keys_draw_equal_texts():
    model, (tokens, real) = tiny("llama"), PROMPTS
    draw = lambda seed: write(model, tokens, real, temperature=1.5, key=jax.random.key(seed))
    compiled = _generate._cache_size()
    np.testing.assert_array_equal(draw(0), draw(0))
    assert (draw(0) != draw(1)).any() and (draw(0) != write(model, tokens, real)).any()
    assert _generate._cache_size() <= compiled + 2  # drawn, greedy


LOGITS = np.log(np.float32([0.4, 0.3, 0.15, 0.1, 0.05]))


@pytest.mark.parametrize(
    "settings, kept",
    [
        (dict(temperature=1.0), 5),
        (dict(temperature=0.5), 5),
        (dict(temperature=1.0, top_k=2), 2),
        (dict(temperature=1.0, top_k=9), 5),
        (dict(temperature=1.0, top_p=0.75), 3),
        (dict(temperature=1.0, top_p=0.05), 1),
        (dict(temperature=0.5, top_p=0.9), 3),  # 0.55, 0.31, 0.08, 0.03, 0.01
        (dict(temperature=1.0, top_p=0.75, top_k=2), 2),
    ],
)
def test_tokens_are_drawn_with_their_probabilities(settings, kept):
    order = np.array([3, 0, 4, 1, 2])
    draws = 20_000
    logits = np.broadcast_to(LOGITS[order], (draws, 5))
    drawn = np.asarray(Sampling(**settings).pick(logits, jax.random.key(0), 1))
    expected = np.exp(LOGITS.astype(float) / settings["temperature"])
    expected[kept:] = 0
    expected = (expected / expected.sum())[order]
    found = np.bincount(drawn, minlength=5) / draws
    deviation = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(found - expected) <= 5 * deviation).all()
    # And anew at each step: as often the same token as chance has it.
    again = np.asarray(Sampling(**settings).pick(logits, jax.random.key(0), 2))
    chance = np.sum(expected**2)
    equal = np.mean(again == drawn)
    assert abs(equal - chance) <= 5 * np.sqrt(chance * (1 - chance) / draws) + 1e-12


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(max_new_tokens=0), "max_new_tokens must be at least 1, got 0"),
        (dict(temperature=-1), "temperature must be 0, or at least 1e-6 and finite, got -1"),
        (dict(temperature=1e-40), "got 1e-40"),  # logits over it are infinite
        (dict(temperature=1.0), r"draws tokens: pass key=jax\.random\.key"),
        (dict(key=jax.random.key(0)), "temperature=0 draws nothing: drop the key"),
        (dict(top_k=3), "top_k and top_p choose among tokens"),
        (dict(temperature=1.0, top_k=0, key=jax.random.key(0)), "top_k must be at least 1"),
        (dict(temperature=1.0, top_p=1.5, key=jax.random.key(0)), "top_p must be .* got 1.5"),
        (dict(max_new_tokens=63), "65 tokens, but the model has positions for 1 to 64"),
    ],
)
def test_settings_that_fit_nothing_are_refused(options, words):
    tokens, real = PROMPTS
    with pytest.raises(ValueError, match=words):
        write(tiny("llama"), tokens, real, **options)


def test_prompts_padded_on_the_right_are_refused():
    tokens, real = PROMPTS
    with pytest.raises(ValueError, match="ends in padding"):
        write(tiny("llama"), tokens, real[:, ::-1])


PROGRAM = """
import sys
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import models
from models.generation import generate
from models.image_tokens import ImageDropping
from models.landmark_cache import LandmarkCache
from models.placement import split_heads
from models.prefill import CentroidPrefill, NystromPrefill
from tests.models.tiny_decoders import prompts, tiny

assert len(jax.devices()) == 8
mesh = jax.make_mesh((2, 4), ("batch", "heads"), axis_types=(AxisType.Auto,) * 2)
rows = NamedSharding(mesh, PartitionSpec("batch"))
for kind in ("llama", "qwen2"):  # key heads that divide by the devices, and that do not
    models.save(tiny(kind), f"{sys.argv[1]}/{kind}")
    one = models.load(f"{sys.argv[1]}/{kind}")
    many = models.load(f"{sys.argv[1]}/{kind}", sharding=split_heads(mesh, "heads"))
    attention = many.blocks[0].attention
    shard = lambda x: x.addressable_shards[0].data.shape
    assert shard(attention.query.kernel[...]) == (32, 1, 8)
    assert shard(attention.key.kernel[...]) == ((32, 1, 8) if kind == "llama" else (32, 2, 8))
    assert shard(many.blocks[0].mlp.fc2.kernel[...]) == (10, 32)
    tokens, real = prompts(4, 9, (0, 4, 2, 0))
    options = dict(max_new_tokens=8, stop_tokens=(3, 5))
    inside = ImageDropping(50, "attention", block=0).inside(real, tokens > 20)
    for more in (
        {},
        dict(temperature=1.0, key=jax.random.key(0)),
        dict(prefill=CentroidPrefill("0:2", 2), dropping=inside),
        dict(prefill=NystromPrefill("1:2", 4), landmark_cache=LandmarkCache((0,), 4)),
    ):
        texts = []
        for model, place in ((one, jax.devices()[0]), (many, rows)):
            embeddings = jax.device_put(model.embed(tokens), place)
            real_there = jax.device_put(real, place)
            texts.append(generate(model, embeddings, real_there, **options, **more))
        assert texts[1].sharding.device_set == set(jax.devices())
        np.testing.assert_array_equal(*map(np.asarray, texts))
        print(kind, texts[0].tolist())
"""


@pytest.mark.slow
def test_eight_devices_write_what_one_does(tmp_path):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
