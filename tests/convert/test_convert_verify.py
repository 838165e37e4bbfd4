"""`python -m convert verify` with a stand-in for the original; the live tests use the real ones."""

import numpy as np
import pytest

import convert
import convert.verify
import models
from convert.__main__ import main
from tests import zoo


@pytest.fixture
def source(tmp_path):
    return zoo.write("clip_hf", tmp_path / "source")


@pytest.fixture
def original(source, monkeypatch):
    """Lets the original be the converted model itself, with a change to its stages."""
    model = convert.load_pretrained(source)

    def stand_in(change):
        def stages(images, token_ids):
            out = convert.verify.stages(model, images, token_ids)
            change(out)
            return out

        monkeypatch.setattr(convert.verify, "open_original", lambda layout, source: stages)

    return stand_in


def test_every_stage_is_printed_at_both_sizes(source, original, capsys):
    original(lambda stages: None)
    assert main(["verify", str(source)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for stage in ("embeddings", "block 1", "pooled", "projected", "text block 0"):
        for size in ("32×32", "48×24"):
            assert any(line.split()[:1] == [size] and stage in line for line in out.splitlines())
    assert "the same within 0.0e+00 of the largest value (the bound is 1e-04)" in out


@pytest.mark.parametrize("wrong", [lambda x: 1.001 * x, lambda x: x * np.nan], ids=["off", "nan"])
def test_above_the_bound_the_status_is_one_and_the_first_stage_named(
    source, original, capsys, wrong
):
    def change(stages):
        for name in ("block 1", "projected"):
            stages[name] = wrong(stages[name])

    original(change)
    assert main(["verify", str(source)]) == 1
    out, err = capsys.readouterr()
    assert "block 1" in out
    assert err.startswith("error: 4 of ") and "'block 1'" in err and len(err.splitlines()) == 1


@pytest.mark.slow
def test_a_converted_directory_is_compared_instead(source, original, tmp_path, capsys):
    original(lambda stages: None)
    model = convert.load_pretrained(source)
    models.save(model, tmp_path / "same")
    assert main(["verify", str(source), "--against", str(tmp_path / "same")]) == 0
    kernel = model.vision.encoder.blocks[1].mlp.fc1.kernel
    kernel[...] = kernel[...].at[0, 0].add(1)
    models.save(model, tmp_path / "other")
    assert main(["verify", str(source), "--against", str(tmp_path / "other")]) == 1
    assert "'block 1'" in capsys.readouterr().err
    assert main(["verify", str(source), "--against", str(tmp_path / "none")]) == 1
    assert "holds no model.json" in capsys.readouterr().err


def test_a_stage_of_another_shape_is_an_error(source, original, capsys):
    original(lambda stages: stages.update(pooled=stages["pooled"][:, 1:]))
    assert main(["verify", str(source)]) == 1
    assert "error: pooled is (2, 32), but (2, 31) in the original" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["verify"], ["verify", "a", "b"], ["verify", "/nowhere"]])
def test_wrong_arguments(capsys, argv):
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and len(err.splitlines()) == 1
