"""SigLIP in open_clip's layout: what a config must say, and live models."""

import copy
import json

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx, traverse_util

import convert
from benchmarks.published import random_tensors
from convert import open_clip_siglip, timm_siglip
from convert.errors import ConversionError
from convert.families import find_layout
from convert.layout import Source
from convert.loading import convert_checkpoint
from convert.originals import prepare_libraries
from convert.verify import BOUND, verify

TOWER = (40, 2, 4, 2.5)  # instead of timm's width, blocks, heads and MLP ratio
CONFIG = {
    "model_cfg": {
        "embed_dim": 40,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 32,
            "timm_model_name": "vit_base_patch16_siglip_224",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": 8,
            "vocab_size": 99,
            "hf_tokenizer_name": "timm/ViT-B-16-SigLIP2",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": 24,
            "heads": 3,
            "layers": 2,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-06},
            "act_kwargs": {"approximate": "tanh"},
        },
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}


@pytest.fixture(autouse=True)
def tiny_tower(monkeypatch):
    """open_clip gives timm's towers no sizes: the name stands for one that is tiny."""
    monkeypatch.setitem(timm_siglip._SIZES, "base", TOWER)


def parse(change=lambda model: None):
    values = copy.deepcopy(CONFIG)
    change(values["model_cfg"])
    return open_clip_siglip.parse(Source(None, values, {}))


def write(folder):
    """The checkpoint of the config, with random numbers."""
    config = parse().config
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG))
    tensors = random_tensors(open_clip_siglip.LAYOUT, config)
    safetensors.numpy.save_file(tensors, folder / "open_clip_model.safetensors")
    return tensors


def test_a_config_is_read():
    config, unknown, guesses = parse()
    assert (unknown, guesses) == ([], ())
    vision, text = config.vision, config.text
    assert (vision.image_size, vision.patch_size) == (32, 16)
    assert vision.position_resize == "bicubic_antialias" and text.cleaning == "canonicalize"
    assert (vision.encoder.activation, text.encoder.activation) == ("gelu", "gelu_pytorch_tanh")
    assert (text.encoder.layer_norm_epsilon, text.encoder.width) == (1e-6, 24)


def test_every_tensor_fills_its_leaf(tmp_path):
    write(tmp_path)
    (table,) = open_clip_siglip.tables(parse().config)
    file = tmp_path / "open_clip_model.safetensors"
    numbers = {row.source: i for i, row in enumerate(table.rows)}
    marked = {k: np.full_like(x, numbers[k]) for k, x in safetensors.numpy.load_file(file).items()}
    safetensors.numpy.save_file(marked, file)
    model, report = convert_checkpoint(tmp_path)
    assert str(report.layout) == "siglip (open_clip)" and not report.ignored
    leaves = traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(model)))
    leaves = {".".join(map(str, path)): leaf for path, leaf in leaves.items()}
    assert leaves.keys() == {row.target for row in table.rows}
    for row in table.rows:
        np.testing.assert_array_equal(leaves[row.target], numbers[row.source])


def test_the_tensors_alone_tell_the_layout_but_not_the_model(tmp_path):
    with pytest.raises(ConversionError, match=r"siglip \(open_clip\).*--config FILE"):
        find_layout(None, write(tmp_path))


def test_the_bare_model_config_is_read(tmp_path):
    tensors = write(tmp_path)
    assert find_layout(CONFIG["model_cfg"], tensors) is open_clip_siglip.LAYOUT
    (tmp_path / "open_clip_config.json").write_text(json.dumps(CONFIG["model_cfg"]))
    assert convert.load_pretrained(tmp_path).config == parse().config


def drop(section, field):
    return lambda model: (model[section] if section else model).pop(field)


def change(section, **fields):
    return lambda model: (model[section] if section else model).update(fields)


@pytest.mark.parametrize(
    "change, words",
    [
        (change("", embed_dim=24), "embed_dim must be 40, the width of the tower"),
        (change("", quick_gelu=True), "quick_gelu must be False"),
        (change("", init_logit_bias=None), "init_logit_bias must be a number"),
        (drop("", "init_logit_bias"), "model_cfg lacks init_logit_bias"),
        (drop("vision_cfg", "timm_model_name"), "architecture None is not among the names"),
        (change("vision_cfg", timm_model_name="vit_base_patch16_siglip_gap_224"), "known here"),
        (change("vision_cfg", timm_proj="linear"), "timm_proj must be 'none', got 'linear'"),
        (drop("vision_cfg", "timm_pool"), "vision_cfg lacks timm_pool, which must be 'map'"),
        (change("vision_cfg", image_size=8), "image_size 8 is less than patch_size 16"),
        (drop("text_cfg", "pool_type"), "text_cfg lacks pool_type, which must be 'last'"),
        (change("text_cfg", no_causal_mask=False), "no_causal_mask must be True"),
        (change("text_cfg", proj_type="none"), "proj_type must be 'linear'"),
        (change("text_cfg", hf_model_name="nllb"), "hf_model_name must be None"),
        (change("text_cfg", act_kwargs={"approximate": "erf"}), "approximate must be one of none"),
        (change("text_cfg", act_kwargs={"inplace": True}), "'act_kwargs.inplace' is unknown"),
        (change("text_cfg", norm_kwargs={"eps": 0}), "eps must be a number between 0 and 1"),
        (change("text_cfg", flux=1), "'text_cfg.flux' is unknown"),
    ],
)
def test_what_is_no_siglip_is_refused(change, words):
    with pytest.raises(ValueError) as error:
        parse(change)
    assert words in str(error.value)


@pytest.fixture
def open_clip():
    pytest.importorskip("torch")
    prepare_libraries()
    return pytest.importorskip("open_clip")


@pytest.mark.reference
def test_every_stage_agrees_live(open_clip, monkeypatch, tmp_path):
    import timm

    width, depth, num_heads, ratio = TOWER

    def tiny(pretrained=False, img_size=224, **options):
        options = {name: x for name, x in options.items() if name in ("dynamic_img_size",)}
        return timm.models.VisionTransformer(
            img_size=img_size,
            embed_dim=width,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=ratio,
            class_token=False,
            global_pool="map",
            num_classes=0,
            **options,
        )

    name = CONFIG["model_cfg"]["vision_cfg"]["timm_model_name"]
    monkeypatch.setitem(timm.models._registry._model_entrypoints, name, tiny)
    write(tmp_path)
    comparisons = verify(tmp_path)
    assert {"block 1", "projected", "text block 1", "text projected"} <= {
        comparison.stage for comparison in comparisons
    }
    assert max(comparison.error for comparison in comparisons) < BOUND / 10  # 6.1e-7 measured


@pytest.mark.reference
def test_every_siglip_of_open_clip_is_read(open_clip, monkeypatch):
    import torch

    monkeypatch.setitem(timm_siglip._SIZES, "base", (768, 12, 12, 4.0))
    names = [name for name in open_clip.list_models() if "SigLIP" in name]
    assert len(names) > 20
    for name in names:
        values = open_clip.get_model_config(name)
        source = Source(None, values, {})
        if values["text_cfg"].get("proj_type") == "none":  # So400m i18n projects no texts
            with pytest.raises(ConversionError):
                open_clip_siglip.parse(source)
            continue
        config, unknown, _ = open_clip_siglip.parse(source)
        del values["custom_text"]
        with torch.device("meta"):
            state = open_clip.CustomTextCLIP(**values).state_dict()
        (table,) = open_clip_siglip.tables(config)
        assert state.keys() == {row.source for row in table.rows} and not unknown, name
        text = state["text.transformer.resblocks.0.mlp.c_fc.weight"]
        assert text.shape == (config.text.encoder.mlp_dim, config.text.encoder.width)
