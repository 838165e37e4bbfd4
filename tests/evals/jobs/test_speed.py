"""What `--config speed.py` tells, and its advice."""

import json

import pytest

from configs.speed import get_config
from evals.jobs.speed import advice, break_even, fewest_blocks, speed_report
from evals.jobs.tuned import write_tuned
from fna_jax import FNAConfig
from models.registry import override, published


def layer(tokens, **speedups):
    return {"tokens": tokens, "speedup": speedups}


def test_break_even_lies_after_the_last_size_that_does_not_gain():
    layers = [layer(65, a=1.2, b=0.5), layer(257, a=0.9, b=0.8), layer(577, a=1.4, b=0.9)]
    assert break_even(layers, "a") == (257, 577)
    assert break_even(layers, "b") == (577, None)
    assert break_even(layers[2:], "a") == (None, 577)
    assert break_even([layer(65, b=1.0), *layers[2:]], "a") == (None, 577)  # not timed at 65


@pytest.mark.parametrize("gain, says", [(1.31, "S = 8 makes this model 1.31"), (1.05, "Don't: at")])
def test_advice_follows_the_best_speedup(gain, says):
    arms = {"exact": {"speedup": 1.0}, "no attention": {"speedup": 1.5}}
    arms |= {"FNA, S = 4": {"speedup": 0.7, "counted_speedup": 1.3}}
    arms |= {"FNA, S = 8": {"speedup": gain, "counted_speedup": 1.2}}
    text = advice({"num_tokens": 1025, "attention_share": 1 / 3, "arms": arms})
    assert says in text and "at 1,025 tokens attention takes 33 % of the time" in text


def test_advice_says_when_no_setting_ran():
    record = {"num_tokens": 5, "attention_share": 0.1, "arms": {"exact": {"speedup": 1.0}}}
    assert "No FNA setting fits into the memory" in advice(record)


@pytest.mark.parametrize(
    "name, depth", [("llava-1.5-7b", 1), ("qwen3-vl-2b", 3), ("vit-b-16", None)]
)
def test_of_a_language_model_as_few_blocks_are_made_as_there_can_be(name, depth):
    config = published(name)[1]
    shallow = override(config, fewest_blocks(config))
    assert (shallow.decoder.depth if depth else None) == depth


@pytest.mark.slow
def test_a_report_has_a_row_for_every_arm_and_size(small_model, tmp_path):
    config = get_config()
    config.model, config.grids, config.repeats = str(small_model), (2, 9), 1
    config.image_size, config.dtype = (32, 64), "bfloat16"
    config.fna.num_landmarks = (4, 900)
    config.fna.tuned = str(tmp_path / "tune.json")
    write_tuned(config.fna.tuned, [FNAConfig("0", 8)], 2, {})
    text = speed_report(config, tmp_path)
    record = json.loads((tmp_path / "speed.json").read_text())
    assert record["num_tokens"] == 33 and record["dtype"] == "bfloat16"
    assert list(record["arms"]) == [
        "exact",
        "FNA, farthest point, S = 4",
        "centroid, farthest point, S = 4",
        "tuned",
        "no attention",
    ]  # 900 is too many
    assert [layer["tokens"] for layer in record["layers"]] == [5, 82]
    for said in (
        "| exact | ",
        "| FNA, farthest point, S = 4 | ",
        "| tuned | ",
        "| 82 tokens | ",
        "One layer breaks even with",
    ):
        assert said in text
    assert text.count(record["advice"]) == 1


@pytest.mark.parametrize(
    "field, value, says",
    [
        ("repeats", 0, "repeats must be at least 1"),
        ("image_size", (-8, 8), "height and width"),
        ("image_size", (60, 64), "nearest that do: 56 or 64"),
        ("grids", (), "grids must be"),
        ("dtype", "int8", "dtype must be one of"),
        ("fna.num_landmarks", (900,), "none is below the 65 tokens"),
        ("fna.layers", "1:9", "blocks 0 to 1"),
    ],
)
def test_a_bad_setting_is_named(small_model, tmp_path, field, value, says):
    config = get_config()
    config.model = str(small_model)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=says):
        speed_report(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_language_model_is_counted(tmp_path):
    config = get_config()
    config.model, config.num_tokens = "vicuna-7b-v1.5", 30_000
    text = speed_report(config, tmp_path)
    advice = json.loads((tmp_path / "speed.json").read_text())["advice"]
    assert advice in text and "attention is 38 % of the arithmetic of reading 30,000" in advice
