"""ViT: what timm's names and arguments say, files without a config, and what is refused."""

import inspect
import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from convert import hf_vit, timm_vit
from convert.errors import ConversionError
from convert.families import LAYOUTS, find_layout
from convert.layout import Source
from convert.loading import convert_checkpoint
from convert.table import name_problems
from convert.tensors import Tensor
from convert.verify import BOUND, verify
from models.plain_vit import VARIANTS
from tests import zoo


def headers(shapes):
    """Tensors of these shapes, of which nothing can be read."""
    return {name: Tensor(tuple(shape), "float32", None) for name, shape in shapes.items()}


def parse_timm(config, shapes=()):
    return timm_vit.parse(Source(pathlib.Path("x"), config, headers(dict(shapes))))


def keyless_shapes(config):
    """Shapes of the tensors that tell a config, without one beside them."""
    width, patch = config.encoder.width, config.patch_size
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + (config.image_size // patch) ** 2, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "blocks.0.attn.qkv.weight": (3 * width, width),
    }
    return shapes | ({"head.weight": (config.num_classes, width)} if config.num_classes else {})


@pytest.mark.parametrize("name", VARIANTS)
def test_published_models_are_told_from_tensors_alone(name):
    shapes = keyless_shapes(VARIANTS[name])
    assert find_layout(None, shapes) is timm_vit.LAYOUT
    config, unknown, guesses = parse_timm(None, shapes)
    assert (config, unknown) == (VARIANTS[name], [])
    assert [guess.name for guess in guesses] == ["heads", "patch_grid", "pool"]


def test_a_model_that_norms_the_mean_is_told_from_its_tensors():
    shapes = keyless_shapes(VARIANTS["vit-b-16"]) | {"fc_norm.weight": (768,)}
    config = parse_timm(None, shapes).config
    assert (config.pool, config.norm, config.class_token) == ("avg", "pooled", True)


@pytest.mark.parametrize("case", zoo.CASES)
def test_names_of_tensors_fit_one_layout(case):
    names = zoo.tensors(case)
    assert len([layout for layout in LAYOUTS if layout.has_keys(names)]) == 1


def test_the_decoder_of_mae_is_listed():
    (table,) = timm_vit.tables(VARIANTS["mae-vit-b-16"])
    own = [row.source for row in table.rows]
    blocks = tuple(f"blocks.{i}." for i in range(8))
    decoder = [f"decoder_{name}" for name in own if name.startswith(blocks)]
    decoder += ["decoder_embed.weight", "decoder_norm.bias", "decoder_pred.weight", "mask_token"]
    assert name_problems(table, own + decoder) == ([], [])
    assert name_problems(table, [*own, "decoder_blocks.12.norm1.bias"])[1]


IN_MEMORY = {
    "encoder.layer": "layers",
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


@pytest.mark.parametrize("case", ["vit_hf", "vit_hf_bare", "vit_mae_hf"])
def test_the_names_that_transformers_5_has_in_memory_are_read(case, tmp_path):
    published = convert_checkpoint(zoo.write(case, tmp_path / "published"))[0]
    folder = zoo.write(case, tmp_path / "memory")
    renamed = zoo.renamed(zoo.tensors(case), IN_MEMORY)  # of the decoder, too
    safetensors.numpy.save_file(renamed, folder / "model.safetensors")
    model, report = convert_checkpoint(folder)
    assert all(name.startswith(("decoder", "vit.pooler", "pooler")) for name in report.ignored)
    zoo.assert_same_leaves(model, published)


def test_both_names_of_the_decoder_in_transformers_are_listed():
    tables = hf_vit.tables(VARIANTS["mae-vit-b-16"])
    for blocks in ("decoder_layers.7", "decoder_encoder.layer.7"):
        assert f"decoder.{blocks}.attention.attention.key.bias" in tables[0].ignored


ARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
SMALL = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "model_args": ARGS}


@pytest.mark.parametrize(
    "args, pool, norm",
    [
        ({}, "token", "tokens"),
        ({"global_pool": "avg"}, "avg", "pooled"),
        ({"global_pool": "avg", "fc_norm": False}, "avg", "tokens"),
        ({"global_pool": "avg", "fc_norm": None, "class_token": False}, "avg", "pooled"),
        ({"fc_norm": True}, "token", "pooled"),
        ({"qkv_bias": False, "drop_path_rate": 0.1, "img_size": [32, 32]}, "token", "tokens"),
    ],
)
def test_arguments_of_timm(args, pool, norm):
    config, unknown, guesses = parse_timm(SMALL | {"model_args": ARGS | args})
    assert guesses == ()
    assert (config.pool, config.norm, config.image_size) == (pool, norm, 32)
    assert config.class_token == args.get("class_token", True)
    assert config.encoder.biases == ("qkv" if args.get("qkv_bias", True) else "")
    assert not unknown


def test_an_image_of_timm_need_not_be_square():
    config = parse_timm(SMALL | {"model_args": ARGS | {"img_size": [32, 48]}}).config
    assert (config.image_size, config.image_width) == (32, 48)


OLD_NAMES = {
    "vit_base_patch16_224_in21k": "vit_base_patch16_224",
    "vit_huge_patch14_224_in21k": "vit_huge_patch14_224",
    "vit_small_patch16_224_augreg_in21k": "vit_small_patch16_224",
    "vit_small_patch8_224_dino": "vit_small_patch8_224",
    "vit_base_patch32_224_sam": "vit_base_patch32_224",
    "vit_base_patch16_224_miil_in21k": "vit_base_patch16_224_miil",
    "vit_deit_base_patch16_224": "deit_base_patch16_224",
    "vit_base_patch16_224.augreg2_in21k_ft_in1k": "vit_base_patch16_224",
}


@pytest.mark.parametrize("old", OLD_NAMES)
def test_old_names_of_timm_mean_what_they_meant(old):
    old, new = ({"architecture": x, "num_classes": 7} for x in (old, OLD_NAMES[old]))
    assert timm_vit.NAMES.today(old["architecture"]) == new["architecture"]
    assert parse_timm(old) == parse_timm(new)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"architecture": "vit_base_patch32_224_clip_laion2b"}, ["among the names", "plain"]),
        ({"architecture": "vit_deit_base_distilled_patch16_224"}, ["plain ViT"]),
        ({"architecture": "vit_base_patch16_clip_224"}, ["'vit_base_patch16_clip_224'", "plain"]),
        ({"architecture": "vit_small_patch14_reg4_dinov2"}, ["plain ViT", "Hugging Face"]),
        ({"architecture": "deit_base_distilled_patch16_224"}, ["plain ViT"]),
        ({"architecture": "vit_base_patch16_18x2_224"}, ["plain ViT"]),
        ({"architecture": "vit_relpos_base_patch16_224"}, ["plain ViT"]),
        ({"architecture": ["vit"]}, ["['vit']"]),
        ({"num_classes": None}, ["num_classes", "None"]),
        ({"global_pool": "avg"}, ["global_pool must be 'token'", "'avg'"]),
        ({"model_args": {"global_pool": "map"}}, ["global_pool", "'map'"]),
        ({"model_args": {"num_classes": 4}}, ["num_classes must be 3"]),
        ({"model_args": {"reg_tokens": 4}}, ["reg_tokens must be 0"]),
        ({"model_args": {"init_values": 1e-5}}, ["init_values must be None"]),
        ({"model_args": {"no_embed_class": True}}, ["no_embed_class must be False"]),
        ({"model_args": {"class_token": False}}, ["needs class_token"]),
        ({"model_args": {"img_size": [32, 44]}}, ["image_width 44", "patch_size 16"]),
        ({"model_args": {"img_size": [32, 32, 32]}}, ["img_size", "[32, 32, 32]"]),
        ({"model_args": {"img_size": [32, 0]}}, ["img_size", "[32, 0]"]),
        ({"model_args": {"patch_size": [8, 4]}}, ["patch_size", "square", "[8, 4]"]),
        ({"model_args": {"norm_eps": 1e-5}}, ["'model_args.norm_eps' is unknown"]),
        ({"model_args": {"a": 1, "b": 2}}, ["2 problems: 'model_args.a'", "'model_args.b'"]),
    ],
)  # fmt: skip
def test_other_models_of_timm_are_refused(change, words):
    with pytest.raises(ValueError) as error:
        parse_timm(SMALL | change)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"patch_embed.proj.weight": (32, 3, 8, 8)}, "width 32 with a class token .* config.json"),
        ({"cls_token": None}, "width 192 without a class token .* config.json"),
        ({"pos_embed": (197, 192)}, "pos_embed is missing, or not of 3 axes"),
        ({"pos_embed": (1, 0, 192)}, "img_size must be an integer in 1"),
        ({"pos_embed": (1, 129, 192)}, "11 by 11 .* 128 positions; --patch-grid H,W"),
        ({"head.weight": ()}, "head.weight is missing, or not of 2 axes"),
    ],
)
def test_tensors_that_leave_the_model_open_are_refused(change, message):
    shapes = keyless_shapes(VARIANTS["vit-ti-16"]) | change
    with pytest.raises(ConversionError, match=message):
        parse_timm(None, {name: shape for name, shape in shapes.items() if shape is not None})


@pytest.mark.parametrize("model_type", ["deit", "vit_msn", "vit_hybrid"])
def test_relatives_in_transformers_are_refused(model_type):
    with pytest.raises(ConversionError, match=f"'{model_type}' is not supported: .+"):
        find_layout({"model_type": model_type}, zoo.tensors("vit_hf_bare"))


def test_the_pooler_and_the_decoder_are_reported_as_ignored(tmp_path):
    for case, word in (("vit_hf_bare", "pooler.dense"), ("vit_mae_hf", "decoder.")):
        _, report = convert_checkpoint(zoo.write(case, tmp_path / case))
        assert report.ignored and all(name.startswith(word) for name in report.ignored)


def test_each_ignored_tensor_has_its_own_reason():
    ignored = hf_vit.tables(VARIANTS["mae-vit-b-16"])[1].ignored
    assert "masked patches" in ignored["embeddings.mask_token"]
    assert "MAE's decoder" in ignored["decoder.mask_token"]
    assert "ViTForMaskedImageModeling" in ignored["decoder.0.bias"]


@pytest.fixture(scope="module")
def timm():
    pytest.importorskip("torch")
    from convert.originals import prepare_libraries

    prepare_libraries()
    return pytest.importorskip("timm")


@pytest.mark.reference
def test_every_name_that_is_accepted_means_what_timm_builds(timm):
    import torch

    found = 0
    for name in timm.list_models(["vit_*", "deit*"]):
        try:
            config = parse_timm({"architecture": name, "num_classes": 0}).config
        except ConversionError:
            continue
        found += 1
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0)
        block = model.blocks[0]
        assert block.attn.num_heads == config.encoder.num_heads, name
        assert isinstance(block.mlp.act, torch.nn.GELU) and block.mlp.act.approximate == "none"
        epsilons = {m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)}
        assert epsilons == {config.encoder.layer_norm_epsilon}
        assert model.patch_embed.img_size == (config.image_size,) * 2
        assert model.global_pool == config.pool
        (table,) = timm_vit.tables(config)
        assert model.state_dict().keys() == {row.source for row in table.rows}, name
        assert model.state_dict()["blocks.0.mlp.fc1.weight"].shape[0] == config.encoder.mlp_dim
    assert found > 20


@pytest.mark.reference
def test_the_names_that_timm_deprecates_are_read_as_those_that_replace_them(timm):
    from timm.models._registry import _deprecated_models

    def read(architecture):
        try:
            return parse_timm({"architecture": architecture, "num_classes": 0}).config
        except ConversionError:
            return None

    names = {k: x.partition(".")[0] for k, x in _deprecated_models.items() if k[:4] == "vit_"}
    assert [old for old, new in names.items() if read(old) != read(new)] == []
    assert sum(read(old) is not None for old in names) > 10


@pytest.mark.reference
def test_all_arguments_of_timm_are_known(timm):
    parameters = inspect.signature(timm.models.VisionTransformer).parameters.values()
    values = {x.name: x.default for x in parameters if x.name not in ("device", "dtype")}
    plain = {name: x for name, x in values.items() if not callable(x)}  # JSON holds no classes
    config, unknown, _ = parse_timm(SMALL | {"num_classes": 1000, "model_args": plain})
    assert config.encoder.depth == 12 and not unknown


@pytest.mark.reference
@pytest.mark.parametrize(
    "args",
    [
        {"global_pool": "avg"},
        {"global_pool": "avg", "fc_norm": False},
        {"fc_norm": True},
        {"qkv_bias": False},
        {"img_size": [16, 72]},
    ],
    ids=str,
)
def test_arguments_compute_what_timm_does(timm, tmp_path, args):
    values = SMALL | {"model_args": ARGS | args}
    shapes = timm.create_model(SMALL["architecture"], num_classes=3, **ARGS | args).state_dict()
    arrays = {name: zoo.random_weight(name, tuple(x.shape)) for name, x in shapes.items()}
    (tmp_path / "config.json").write_text(json.dumps(values))
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    assert max(comparison.error for comparison in verify(tmp_path)) < BOUND / 10


@pytest.mark.reference
def test_a_file_of_mae_alone_computes_what_timm_does(timm, tmp_path):
    import torch

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0)
    state = model.state_dict() | {"mask_token": torch.zeros(1, 1, 8)}
    torch.save({"model": state, "epoch": 800}, tmp_path / "mae.pth")
    assert max(comparison.error for comparison in verify(tmp_path / "mae.pth")) < BOUND / 10
    _, report = convert_checkpoint(tmp_path / "mae.pth")
    assert list(report.ignored) == ["mask_token"]
    assert report.num_parameters == sum(np.prod(x.shape) for x in model.parameters())
