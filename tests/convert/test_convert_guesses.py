"""What files without a config leave open: said in the report, given by who knows, never silent."""

import numpy as np
import pytest
import safetensors.numpy

import convert
import models
from convert import timm_vit
from convert.__main__ import main
from convert.errors import ConversionError
from convert.files import open_tensors
from convert.guesses import Given
from convert.layout import Source
from convert.loading import read_layout
from convert.originals import prepare_libraries
from convert.sources import find_weights
from convert.tensors import Tensor
from convert.verify import BOUND, Comparison, verify
from tests import zoo


@pytest.fixture
def dinov2(tmp_path):
    """The authors' file of a model of width 64 and 4 by 4 patches: no config."""
    file = tmp_path / "dinov2.safetensors"
    safetensors.numpy.save_file(zoo.original_dinov2("dinov2_hf"), file)
    return file


def test_every_guess_is_a_line_of_the_report(dinov2, tmp_path, capsys):
    assert main([str(dinov2), str(tmp_path / "out")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("guessed")]
    heads, grid = lines
    assert heads.startswith("guessed     heads 1: guessed from the width 64")
    assert heads.endswith("; --heads N if not")
    assert grid == (
        "guessed     patch grid 4,4: guessed from 16 positions, as a square; "
        "--patch-grid H,W if not"
    )


def test_what_is_given_comes_before_the_guess(dinov2, tmp_path, capsys):
    options = ["--heads", "4", "--patch-grid", "2,8"]
    assert main([str(dinov2), str(tmp_path / "out"), *options]) == 0
    out = capsys.readouterr().out
    assert "given       heads 4\n" in out
    assert "given       patch grid 2,8\n" in out and "guessed" not in out
    config = models.load(tmp_path / "out").config
    assert config.encoder.num_heads == 4
    assert config.image_width == 4 * config.image_size == 8 * config.patch_size


def test_loading_warns_of_each_guess_and_takes_what_is_given(dinov2):
    with pytest.warns(UserWarning) as warned:
        guessed = convert.load_pretrained(dinov2)
    assert [str(w.message).split(":")[0] for w in warned] == ["heads 1", "patch grid 4,4"]
    given = convert.load_pretrained(dinov2, heads=2, patch_grid=(4, 4))  # and does not warn
    assert (guessed.config.encoder.num_heads, given.config.encoder.num_heads) == (1, 2)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--heads", "5"], "width 64 does not divide by 5 heads; --heads N"),
        (["--heads", "0"], "heads must be a number from 1 on, got 0"),
        (["--heads", "x"], "--heads"),
        (["--patch-grid", "2,4"], "2 by 4 patches does not have 16 positions"),
        (["--patch-grid", "3,-3"], "patch_grid must be patches down and across"),
        (["--patch-grid", "9"], "patch_grid must be patches down and across"),
        (["--patch-grid", "a,b"], "--patch-grid"),
        (["--pool", "max"], "--pool"),
        (["--pool", "avg"], "pool was given as 'avg', but nothing leaves it open"),
        (["--text-heads", "2"], "text_heads was given as 2, but nothing leaves it open"),
    ],
)
def test_what_does_not_fit_is_refused(dinov2, refused, options, words):
    assert words in refused(dinov2, *options)


@pytest.mark.parametrize("given", [dict(heads=2.0), dict(heads=True), dict(patch_grid=[3, 3])])
def test_values_of_other_types_are_refused(given):
    with pytest.raises(ConversionError, match="must be"):
        Given(**given)


@pytest.mark.parametrize("case", zoo.CASES)
def test_where_the_config_says_it_nothing_is_guessed_and_nothing_can_be_given(
    case, tmp_path, refused
):
    folder = zoo.write(case, tmp_path / "source")
    file = find_weights(folder)
    assert read_layout(file, open_tensors(file))[1].guesses == ()
    message = refused(folder, "--heads", "2")
    assert "heads was given as 2" in message and "with a config: drop --heads N" in message


def test_the_tower_and_the_pooling_of_timms_names(tmp_path):
    tensors = {
        "cls_token": (1, 1, 192),
        "pos_embed": (1, 37, 192),
        "patch_embed.proj.weight": (192, 3, 16, 16),
        "blocks.0.attn.qkv.weight": (576, 192),
        "norm.weight": (192,),
    }
    headers = {k: Tensor(shape, "float32", None) for k, shape in tensors.items()}

    def parse(**given):
        source = Source(tmp_path / "x", None, headers, Given(**given))
        return timm_vit.parse(source)

    guesses = parse().guesses
    assert [(guess.name, guess.value) for guess in guesses] == [
        ("heads", 3),
        ("patch_grid", (6, 6)),
        ("pool", "token"),
    ]
    config, _, guesses = parse(heads=12, patch_grid=(4, 9), pool="avg")
    assert all(guess.reason is None for guess in guesses)
    assert config.encoder.num_heads == 12
    assert (config.image_size, config.image_width) == (64, 144)
    assert (config.pool, config.norm) == ("avg", "tokens")


@pytest.mark.parametrize("error, status", [(0.0, 0), (1.0, 1)])
def test_verify_says_that_it_shares_the_guess(dinov2, monkeypatch, capsys, error, status):
    def compare(path, *, given, **_):
        assert given == Given(patch_grid=(4, 4))
        return [Comparison("32×32", "tokens", error, 1.0)]

    monkeypatch.setattr("convert.__main__.verify", compare)
    assert main(["verify", str(dinov2), "--patch-grid", "4,4"]) == status
    out = capsys.readouterr().out
    assert "heads 1: guessed from the width" in out and "built with the same guess" in out
    assert "patch grid" not in out


@pytest.mark.reference
@pytest.mark.parametrize("grid", [(6, 6), (3, 12)])
def test_a_vit_of_other_heads_than_usual_computes_what_timm_does(tmp_path, grid):
    torch = pytest.importorskip("torch")
    prepare_libraries()
    timm = pytest.importorskip("timm")
    size = (16 * grid[0], 16 * grid[1])
    original = timm.create_model("vit_tiny_patch16_224", img_size=size, num_classes=0, num_heads=12)
    shapes = original.eval().state_dict()
    arrays = {name: zoo.random_weight(name, tuple(x.shape)) for name, x in shapes.items()}
    original.load_state_dict({name: torch.from_numpy(x) for name, x in arrays.items()})
    safetensors.numpy.save_file(arrays, tmp_path / "vit.safetensors")
    images = zoo.random_weight("images", (1, *size, 3))
    with torch.no_grad():
        expected = original(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    given = dict(heads=12, patch_grid=grid, pool="token")
    model = convert.load_pretrained(tmp_path / "vit.safetensors", **given)
    assert np.max(np.abs(model(images).pooled - expected)) < 1e-5 * np.max(np.abs(expected))
    comparisons = verify(tmp_path / "vit.safetensors", given=Given(**given))
    assert (
        max(comparison.error for comparison in comparisons) < BOUND / 5
    )  # measured: 1.5e-5, twelve blocks
