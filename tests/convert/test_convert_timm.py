"""timm's DINOv2, DINOv3 and SigLIP: names and arguments, no config, and what is refused."""

import dataclasses
import inspect
import pathlib

import numpy as np
import pytest
import safetensors.numpy

import convert
from benchmarks.published import layouts_of
from convert import timm_dinov2, timm_dinov3, timm_siglip
from convert.errors import ConversionError
from convert.families import find_layout
from convert.guesses import Given
from convert.layout import Source
from convert.loading import convert_checkpoint
from convert.originals import prepare_libraries
from convert.sources import find_weights
from convert.verify import BOUND, verify
from models import dinov2, dinov3, siglip_vision
from models.registry import override
from tests import zoo

DINOV2 = ["dinov2_timm", "dinov2_registers_timm"]
DINOV3 = ["dinov3_timm", "dinov3_gated_timm"]


def parse(module, **values):
    values = {"num_classes": 0} | values
    return module.parse(Source(pathlib.Path("x"), values, {}))


@pytest.mark.parametrize("size", ["small", "base", "large", "giant"])
@pytest.mark.parametrize("registers", ["", "_reg4"])
def test_names_of_dinov2_mean_the_published_models(size, registers):
    name = f"dinov2-vit-{size[0]}-14{registers.replace('_reg4', '-reg')}"
    expected = override(dinov2.VARIANTS[name], {"position_resize": "bicubic_antialias"})
    for ending in ("", ".lvd142m"):
        config, unknown, guesses = parse(
            timm_dinov2, architecture=f"vit_{size}_patch14{registers}_dinov2{ending}"
        )
        assert (config, unknown, guesses) == (expected, [], ())


@pytest.mark.parametrize(
    "timms, ours",
    {
        "small": "s",
        "small_plus": "s-plus",
        "base": "b",
        "large": "l",
        "huge_plus": "h-plus",
        "7b": "7b",
    }.items(),
)
@pytest.mark.parametrize("biases", ["", "_qkvb"])
def test_names_of_dinov3_mean_the_published_models(timms, ours, biases):
    """Those without "qkvb" have no biases of queries and values."""
    changes = {"image_size": 256, "encoder": {"biases": "qv" if biases else ""}}
    expected = override(dinov3.VARIANTS[f"dinov3-vit-{ours}-16"], changes)
    for ending in ("", ".lvd1689m"):
        config, unknown, guesses = parse(
            timm_dinov3, architecture=f"vit_{timms}_patch16_dinov3{biases}{ending}"
        )
        assert (config, unknown, guesses) == (expected, [], ())


@pytest.mark.parametrize("name", siglip_vision.VARIANTS)
def test_names_of_siglip_mean_the_published_towers(name):
    _, (_, values) = layouts_of(siglip_vision.VARIANTS[name])
    exact = "-b-16-" in name or "-so400m-14-" in name or name.startswith("siglip-vit-l-16-")
    changes = {"activation": "gelu"} if exact else {}  # as timm builds them
    changes = {"position_resize": "bicubic_antialias", "encoder": changes}
    for ending in ("", ".v2_webli"):
        config, unknown, _ = parse(timm_siglip, architecture=values["architecture"] + ending)
        assert (config, unknown) == (override(siglip_vision.VARIANTS[name], changes), [])


@pytest.mark.parametrize("case", [*DINOV2, *DINOV3])
def test_a_dino_of_timm_needs_no_config(case, tmp_path):
    published, report = convert_checkpoint(zoo.write(case, tmp_path / "published"))
    file = tmp_path / "last.safetensors"
    safetensors.numpy.save_file(zoo.tensors(case), file)
    heads = published.config.encoder.num_heads
    given = {"patch_grid": (4, 4)} if case in DINOV2 else {}
    model = convert.load_pretrained(file, heads=heads, **given)
    assert report.layout.library == "timm"
    size = published.config.image_size  # of DINOv3 it is nominal
    assert dataclasses.replace(model.config, image_size=size) == published.config
    zoo.assert_same_leaves(model, published)


def test_positions_of_patches_alone_are_of_another_model(tmp_path):
    tensors = zoo.tensors("dinov2_timm")
    tensors["pos_embed"] = tensors["pos_embed"][:, 1:].copy()
    safetensors.numpy.save_file(tensors, tmp_path / "last.safetensors")
    with pytest.raises(ConversionError, match=r"16 positions.* DeiT III.*--config FILE"):
        convert.load_pretrained(tmp_path / "last.safetensors")


def test_what_timm_leaves_out_is_zero(tmp_path):
    model = convert.load_pretrained(zoo.write("dinov2_registers_timm", tmp_path / "registers"))
    assert not np.any(model.positions[0]) and np.all(np.any(model.positions[1:], axis=1))
    classifier = convert.load_pretrained(zoo.write("dinov2_timm", tmp_path / "classifier"))
    of_class_token, of_mean_patch = np.split(np.asarray(classifier.head.kernel[...]), 2)
    np.testing.assert_array_equal(of_class_token, zoo.tensors("dinov2_timm")["head.weight"].T)
    assert not np.any(of_mean_patch)


DINOV2_CONFIG = {"architecture": "vit_small_patch14_dinov2"}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"architecture": "vit_small_patch16_dinov2"}, ["'vit_small_patch16_dinov2'", "reg4"]),
        ({"architecture": "vit_small_patch14_dinov2_fast"}, ["such as vit_small_patch14_dinov2"]),
        ({"global_pool": "avg"}, ["global_pool must be 'token'"]),
        ({"model_args": {"global_pool": "avg"}}, ["global_pool must be 'token'"]),
        ({"model_args": {"init_values": None}}, ["init_values must be a number"]),
        ({"model_args": {"no_embed_class": True}}, ["no_embed_class must be False"]),
        ({"model_args": {"reg_tokens": 4, "no_embed_class": False}}, ["no_embed_class must be Tr"]),
        ({"model_args": {"class_token": False}}, ["class_token must be True"]),
        ({"model_args": {"act_layer": "relu"}}, ["act_layer must be None"]),
        ({"model_args": {"img_size": 500}}, ["image_size 500", "patch_size 14"]),
        ({"model_args": {"norm_eps": 1e-5}}, ["'model_args.norm_eps' is unknown"]),
        ({"num_classes": None}, ["num_classes", "None"]),
    ],
)
def test_other_models_than_dinov2_are_refused(change, words):
    with pytest.raises(ValueError) as error:
        parse(timm_dinov2, **DINOV2_CONFIG | change)
    for word in words:
        assert word in str(error.value)


DINOV3_CONFIG = {"architecture": "vit_small_patch16_dinov3"}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"architecture": "vit_small_patch14_dinov3"}, ["'vit_small_patch14_dinov3'", "qkvb"]),
        ({"num_classes": 10}, ["num_classes must be 0, got 10"]),
        ({"model_args": {"use_abs_pos_emb": True}}, ["use_abs_pos_emb must be False"]),
        ({"model_args": {"rope_type": "cat"}}, ["rope_type must be 'dinov3'"]),
        ({"model_args": {"init_values": None}}, ["init_values must be a number"]),
        ({"model_args": {"num_reg_tokens": 0}}, ["num_reg_tokens must be an integer in 1"]),
        ({"model_args": {"qkv_fused": False}}, ["qkv_fused must be True"]),
        ({"model_args": {"scale_mlp": True}}, ["scale_mlp must be False"]),
        ({"model_args": {"rope_interleaved": True}}, ["'model_args.rope_interleaved' is unknown"]),
    ],
)
def test_other_models_than_dinov3_are_refused(change, words):
    with pytest.raises(ValueError) as error:
        parse(timm_dinov3, **DINOV3_CONFIG | change)
    for word in words:
        assert word in str(error.value)


SIGLIP_CONFIG = {"architecture": "vit_base_patch16_siglip_224"}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"architecture": "vit_base_patch16_siglip_gap_224"}, ["pools by attention", "known here"]),
        ({"architecture": "vit_tiny_patch16_siglip_224"}, ["vit_so400m_patch14_siglip_384"]),
        ({"global_pool": "avg"}, ["global_pool must be 'map'"]),
        ({"model_args": {"global_pool": "avg"}}, ["global_pool must be 'map'"]),
        ({"model_args": {"class_token": True}}, ["class_token must be False"]),
        ({"model_args": {"act_layer": "relu"}}, ["act_layer must be one of gelu, gelu_tanh"]),
        ({"model_args": {"patch_size": 300}}, ["image_size 224 is less than patch_size 300"]),
        ({"model_args": {"qkv_bias": False}}, ["qkv_bias must be True"]),
    ],
)
def test_other_models_than_siglip_are_refused(change, words):
    with pytest.raises(ValueError) as error:
        parse(timm_siglip, **SIGLIP_CONFIG | change)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("case", [*DINOV2, "siglip_timm", "vit_timm"])
@pytest.mark.parametrize(
    "architecture, family",
    [
        ("vit_small_patch14_dinov2", "dinov2"),
        ("vit_small_patch16_dinov3", "dinov3"),
        ("vit_base_patch16_siglip_224", "siglip_vision"),
        ("vit_small_patch16_224", "vit"),
        ("deit_small_patch16_224", "vit"),
    ],
)
def test_the_name_of_the_architecture_tells_the_family(case, architecture, family):
    """Whatever the tensors are: they are compared with what the name says."""
    assert find_layout({"architecture": architecture}, zoo.tensors(case)).family == family


@pytest.mark.parametrize(
    "architecture, words",
    [
        ("eva02_base_patch14_448", "a layer norm inside its MLPs"),
        ("aimv2_large_patch14_224", "RMS norms"),
        ("convnext_base", "of no family that is known"),
    ],
)
def test_other_architectures_are_refused_by_name(architecture, words):
    with pytest.raises(ConversionError, match=f"'{architecture}' .*{words}"):
        find_layout({"architecture": architecture}, {})


def test_names_that_might_be_of_another_family_are_not_taken():
    names = zoo.tensors("dinov2_timm").keys()
    with pytest.raises(ConversionError, match=r"cannot be told .* --config FILE"):
        find_layout(None, names - {"cls_token"})  # with LayerScale, but pooling otherwise
    assert str(find_layout(None, {*names, "mask_token"})) == "dinov2 (original)"
    assert str(find_layout(None, names)) == "dinov2 (timm)"


@pytest.fixture(scope="module")
def timm():
    pytest.importorskip("torch")
    prepare_libraries()
    return pytest.importorskip("timm")


@pytest.mark.reference
@pytest.mark.parametrize("module", [timm_dinov2, timm_dinov3, timm_siglip])
def test_every_name_that_is_accepted_means_what_timm_builds(timm, module):
    import torch

    kind = module.LAYOUT.describes
    names = [x for x in timm.list_models() if kind({"architecture": x}) and "_gap_" not in x]
    assert len(names) > 7
    for name in sorted(names):
        config = parse(module, architecture=name).config
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0)
        state, encoder = model.state_dict(), config.encoder
        assert model.blocks[0].attn.num_heads == encoder.num_heads, name
        gelus = {"gelu": torch.nn.GELU, "gelu_pytorch_tanh": timm.layers.GELUTanh}
        if encoder.activation in gelus:
            assert type(model.blocks[0].mlp.act) is gelus[encoder.activation], name
        assert {m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)} == {
            encoder.layer_norm_epsilon
        }
        assert model.patch_embed.img_size == (config.image_size,) * 2
        (table,) = module.tables(config)
        assert state.keys() == {row.source for row in table.rows}, name
        assert state["blocks.0.mlp.fc2.weight"].shape == (encoder.width, encoder.mlp_dim)


@pytest.mark.reference
@pytest.mark.parametrize("case", [*DINOV2, *DINOV3])
def test_a_file_alone_computes_what_timm_does(timm, tmp_path, case):
    file = find_weights(zoo.write(case, tmp_path / "source"))
    heads = convert.load_pretrained(file).config.encoder.num_heads
    (file.parent / "config.json").unlink()
    comparisons = verify(file, given=Given(heads=heads))
    assert max(comparison.error for comparison in comparisons) < BOUND / 10  # 9.5e-7 measured


@pytest.mark.reference
def test_all_arguments_of_timms_eva_are_known(timm):
    """Written out as DINOv3 has them, they change nothing."""
    parameters = inspect.signature(timm.models.Eva).parameters.values()
    values = {x.name: x.default for x in parameters if x.name not in ("device", "dtype")}
    plain = {name: x for name, x in values.items() if not callable(x)}  # JSON holds no classes
    own = dict(img_size=256, embed_dim=384, num_heads=6, num_classes=0, qkv_bias=False)
    own |= dict(num_reg_tokens=4, use_abs_pos_emb=False, use_rot_pos_emb=True, rope_type="dinov3")
    own |= dict(rope_temperature=100.0, rope_rotate_half=True, init_values=1e-5, use_fc_norm=False)
    written = parse(timm_dinov3, **DINOV3_CONFIG, model_args=plain | own)
    assert written == parse(timm_dinov3, **DINOV3_CONFIG)
