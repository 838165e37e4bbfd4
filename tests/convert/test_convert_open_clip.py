"""CLIP in open_clip's layout: which GELU, OpenAI's own files, and towers of other kinds."""

import dataclasses
import inspect
import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import convert
import models
from convert import clip, open_clip
from convert.__main__ import main
from convert.files import open_tensors
from convert.guesses import Given
from convert.loading import convert_checkpoint, read_layout
from convert.originals import prepare_libraries
from convert.sources import find_weights
from models.clip import CLIP, VARIANTS
from models.registry import abstract_model, override
from tests import zoo

CASE = "clip_open_clip"
WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"
SIZES = {name: np.array(1, np.int64) for name in ("input_resolution", "context_length")}


@pytest.fixture
def source(tmp_path):
    return zoo.write(CASE, tmp_path / "source")


def change_config(folder, change):
    values = json.loads((folder / CONFIG).read_text())
    change(values["model_cfg"])
    (folder / CONFIG).write_text(json.dumps(values))


def parsed(folder):
    file = find_weights(folder)
    return read_layout(file, open_tensors(file))[1]


@pytest.mark.parametrize("quick, activation", [(True, "quick_gelu"), (False, "gelu")])
def test_the_config_decides_the_activation(source, quick, activation):
    change_config(source, lambda model: model.update(quick_gelu=quick))
    config = convert.load_pretrained(source).config
    assert config.vision.encoder.activation == config.text.encoder.activation == activation


@pytest.mark.parametrize("name", ["vit_base_patch32_clip_224.openai", "openai"])
def test_exact_gelu_for_weights_of_openai_is_a_contradiction(tmp_path, refused, name):
    folder = zoo.write(CASE, tmp_path / name)
    assert "quick_gelu true" in refused(folder)
    change_config(folder, lambda model: model.update(quick_gelu=True))
    assert convert.load_pretrained(folder).config.vision.encoder.activation == "quick_gelu"


def test_tensors_that_only_openai_writes_tell_as_much(source, refused):
    safetensors.numpy.save_file(zoo.tensors(CASE) | SIZES, source / WEIGHTS)
    assert "quick_gelu true" in refused(source)


@pytest.fixture
def of_openai(tmp_path):
    """A file with OpenAI's names and sizes, without config; and the config that it has."""
    config = override(
        VARIANTS["open-clip-vit-b-32-quickgelu"],
        {
            "projection_dim": 24,
            "vision": {"image_size": 32, "patch_size": 8, "encoder": _small(128, 2)},
            "text": {"vocab_size": 99, "context_length": 16, "encoder": _small(64, 1)},
        },
    )
    table, _ = open_clip.tables(config)
    abstract = abstract_model(CLIP, config)
    leaf = lambda path: _follow(abstract, path).shape
    arrays = {
        row.source: zoo.random_weight(row.source, row.transform.source_shape(leaf(row.target)))
        for row in table.rows
    }
    half = {name: x.astype(np.float16) for name, x in arrays.items()}
    arrays = half | SIZES | {"vocab_size": np.array(99, np.int64)}
    file = tmp_path / "ViT-B-32.safetensors"
    safetensors.numpy.save_file(arrays, file)
    return file, config


def _small(width, num_heads):
    return {"width": width, "depth": 2, "num_heads": num_heads, "mlp_dim": 4 * width}


def _follow(module, path):
    for name in path.split("."):
        module = module[int(name)] if name.isdigit() else getattr(module, name)
    return module


def test_a_file_of_openai_needs_no_config(of_openai):
    file, config = of_openai
    model, report = convert_checkpoint(file)
    assert model.config == config and model.config.text.cleaning == "lower"
    assert [(guess.name, guess.value) for guess in report.guesses] == [
        ("heads", 2),
        ("text_heads", 1),
    ]
    given = Given(heads=4, text_heads=8)
    config = read_layout(file, open_tensors(file), given=given)[1].config
    assert (config.vision.encoder.num_heads, config.text.encoder.num_heads) == (4, 8)
    assert report.ignored.keys() == {"input_resolution", "context_length", "vocab_size"}


def test_without_its_sizes_nothing_tells_the_activation(of_openai, refused):
    file, _ = of_openai
    arrays = safetensors.numpy.load_file(file)
    del arrays["vocab_size"]
    safetensors.numpy.save_file(arrays, file)
    assert "quick from exact GELU" in refused(file)


@pytest.mark.parametrize("damage", ["visual.conv1.weight", "token_embedding.weight"])
def test_a_file_of_openai_that_lacks_what_gives_its_sizes(of_openai, refused, damage):
    file, _ = of_openai
    arrays = safetensors.numpy.load_file(file)
    arrays[damage] = arrays[damage].ravel()
    safetensors.numpy.save_file(arrays, file)
    assert damage in refused(file)


def tokenizer_of(**kwargs):
    return lambda model: model["text_cfg"].update(tokenizer_kwargs=kwargs)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda m: m["vision_cfg"].update(timm_model_name="convnext_base"), "timm_model_name"),
        (lambda m: m["vision_cfg"].update(attentional_pool=True), "attentional_pool"),
        (lambda m: m["vision_cfg"].update(pool_type="avg"), "pool_type must be 'tok'"),
        (lambda m: m["text_cfg"].update(hf_model_name="roberta-base"), "hf_model_name"),
        (lambda m: m["text_cfg"].update(no_causal_mask=True), "no_causal_mask"),
        (lambda m: m.update(multimodal_cfg={"width": 1}), "multimodal_cfg"),
        (lambda m: m.update(init_logit_bias=-10), "init_logit_bias"),
        (lambda m: m.update(quick_gelu="no"), "quick_gelu must be true or false"),
        (lambda m: m["vision_cfg"].update(head_width=7), "head_width 7"),
        (lambda m: m["vision_cfg"].update(layers=[3, 4, 6, 3]), "layers must be an integer"),
        (lambda m: m["vision_cfg"].update(mlp_ratio="4"), "mlp_ratio must be a number"),
        (lambda m: m.update(vision_cfg=None), "problems"),
        (lambda m: m.pop("embed_dim"), "model_cfg lacks embed_dim"),
        (lambda m: m.update(flux=1), "'model_cfg.flux' is unknown"),
        (lambda m: m["vision_cfg"].update(input_patchnorm=True), "'vision_cfg.input_patchnorm' is"),
        (lambda m: m["vision_cfg"].update(image_size=[32, 48]), "image_size must be of something"),
        (lambda m: m["text_cfg"].update(tokenizer_mode="clips"), "tokenizer_mode must be None"),
        (tokenizer_of(clean="upper"), "clean must be one of whitespace, lower, canonicalize"),
        (tokenizer_of(strip_sep_token=True), "strip_sep_token must be False"),
        (tokenizer_of(vocab_file="x"), "'tokenizer_kwargs.vocab_file' is unknown"),
        (lambda m: m["text_cfg"].update({"two\nlines": 1}), "'text_cfg.two"),
    ],
)
def test_other_towers_are_refused_by_name(source, refused, change, words):
    change_config(source, change)
    assert words in refused(source)


@pytest.mark.parametrize("file", [CONFIG, "config.json"])
def test_the_bare_model_config_of_open_clip_is_read(source, file):
    expected = parsed(source)
    values = json.loads((source / CONFIG).read_text())["model_cfg"]
    (source / CONFIG).unlink()
    (source / file).write_text(json.dumps(values))
    assert parsed(source) == expected and expected.unknown_fields == []
    (source / file).write_text(json.dumps(values | {"flux": 1}))
    with pytest.raises(convert.ConversionError, match=r"'model_cfg\.flux' is unknown"):
        convert.load_pretrained(source)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(quick_gelu=None),
        lambda m: m["vision_cfg"].update(image_size=[32, 32]),
        lambda m: m["vision_cfg"].update(patch_size=[8, 8]),
        lambda m: m["text_cfg"].update(tokenizer_kwargs=None),
    ],
)
def test_what_open_clip_reads_as_the_same_is_the_same(source, change):
    expected = parsed(source)
    change_config(source, change)
    assert parsed(source) == expected


@pytest.mark.parametrize(
    "text_cfg, cleaning",
    [
        ({}, "lower"),
        ({"hf_tokenizer_name": None}, "lower"),
        ({"hf_tokenizer_name": "bert-base-uncased"}, "whitespace"),
        ({"tokenizer_kwargs": {"clean": "canonicalize"}}, "canonicalize"),
    ],
)
def test_the_config_decides_the_cleaning_of_texts(source, text_cfg, cleaning):
    change_config(source, lambda model: model["text_cfg"].update(text_cfg))
    assert parsed(source).config.text.cleaning == cleaning


def test_the_cleaning_of_texts_survives_conversion(source, tmp_path):
    change_config(source, tokenizer_of(clean="canonicalize"))
    assert main([str(source), str(tmp_path / "out")]) == 0
    assert models.load(tmp_path / "out").config.text.cleaning == "canonicalize"


def test_texts_of_hugging_faces_layout_are_not_cleaned(tmp_path):
    assert parsed(zoo.write("clip_hf", tmp_path / "hf")).config.text.cleaning == "none"


@pytest.mark.reference
def test_the_cleanings_by_default_are_those_of_open_clip():
    prepare_libraries()
    tokenizer = pytest.importorskip("open_clip.tokenizer")
    for name, expected in (("SimpleTokenizer", "lower"), ("HFTokenizer", "whitespace")):
        parameters = inspect.signature(getattr(tokenizer, name).__init__).parameters
        assert parameters["clean"].default == expected
        assert parameters.keys() >= {"clean"}
    simple = inspect.signature(tokenizer.SimpleTokenizer.__init__).parameters
    assert simple["reduction_mask"].default == ""


def test_unknown_fields_are_listed_and_not_used(source, tmp_path, capsys):
    values = json.loads((source / CONFIG).read_text())
    (source / CONFIG).write_text(json.dumps(values | {"flux": 1}))
    with pytest.warns(UserWarning, match="open_clip_config.json.flux"):
        convert.load_pretrained(source)
    assert main([str(source), str(tmp_path / "out")]) == 0
    assert "field 'open_clip_config.json.flux' is unknown" in capsys.readouterr().out


@pytest.mark.reference
def test_all_fields_of_open_clip_are_known(source):
    """Written out with the values of the library, they change nothing."""
    prepare_libraries()
    library = pytest.importorskip("open_clip.model")
    expected = convert.load_pretrained(source).config

    def write_out(model):
        for name, section in (
            ("vision_cfg", library.CLIPVisionCfg),
            ("text_cfg", library.CLIPTextCfg),
        ):
            model[name] = dataclasses.asdict(section(**model[name]))
        signature = inspect.signature(library.CLIP).parameters.values()
        defaults = {x.name: x.default for x in signature if x.default is not x.empty}
        model |= {k: float(v) if k == "init_logit_scale" else v for k, v in defaults.items()}

    change_config(source, write_out)
    assert convert.load_pretrained(source).config == expected


def test_two_layouts_in_one_folder_are_not_mixed_up(source):
    """As LAION's repositories: a file's config is that of its own library."""
    other = zoo.write("clip_hf", source.parent / "other")
    for file in other.iterdir():
        file.rename(source / file.name)
    assert convert_checkpoint(source)[1].layout is clip.LAYOUT
    assert convert_checkpoint(source / WEIGHTS)[1].layout is open_clip.LAYOUT


def test_bfloat16_files_stay_bfloat16(source):
    arrays = {name: x.astype(ml_dtypes.bfloat16) for name, x in zoo.tensors(CASE).items()}
    safetensors.numpy.save_file(arrays, source / WEIGHTS)
    config = convert.load_pretrained(source).config
    assert (config.dtype, config.param_dtype) == ("bfloat16", "bfloat16")
    assert dataclasses.replace(config, dtype="float32", param_dtype="float32") == (
        convert.load_pretrained(zoo.write(CASE, source.parent / "exact")).config
    )
