"""Names, overrides and published sizes."""

import dataclasses

import jax
import pytest
from flax import nnx

import models
from models import clip, registry
from tests.conftest import few, tiny_clip

PUBLISHED_PARAMETERS = {
    "clip-vit-b-16": 149_620_737,
    "clip-vit-b-32": 151_277_313,
    "clip-vit-l-14": 427_616_513,
    "clip-vit-l-14-336": 427_944_193,
    # Of transformers 5.23.0's classes on torch's meta device, less the mask token's, its width.
    "dinov2-vit-b-14": 86_579_712,
    "dinov2-vit-b-14-reg": 86_582_784,
    "dinov2-vit-g-14": 1_136_479_232,
    "dinov2-vit-g-14-reg": 1_136_485_376,
    "dinov2-vit-l-14": 304_367_616,
    "dinov2-vit-l-14-reg": 304_371_712,
    "dinov2-vit-s-14": 22_056_192,
    "dinov2-vit-s-14-reg": 22_057_728,
    "dinov3-vit-7b-16": 6_716_030_976,
    "dinov3-vit-b-16": 85_659_648,
    "dinov3-vit-h-plus-16": 840_591_360,
    "dinov3-vit-l-16": 303_128_576,
    "dinov3-vit-s-16": 21_596_160,
    "dinov3-vit-s-plus-16": 28_692_480,
    # Of open_clip.CLIP(**open_clip.get_model_config(name)), open_clip 3.3.0.
    "open-clip-vit-b-16": 149_620_737,
    "open-clip-vit-b-16-quickgelu": 149_620_737,
    "open-clip-vit-b-32": 151_277_313,
    "open-clip-vit-b-32-quickgelu": 151_277_313,
    "open-clip-vit-bigg-14": 2_539_567_105,
    "open-clip-vit-g-14": 1_366_678_273,
    "open-clip-vit-h-14": 986_109_441,
    "open-clip-vit-h-14-378-quickgelu": 986_714_881,
    "open-clip-vit-h-14-quickgelu": 986_109_441,
    "open-clip-vit-l-14": 427_616_513,
    "open-clip-vit-l-14-quickgelu": 427_616_513,
    # Of timm.create_model(name, num_classes=1000, or 0 for MAE), timm 1.0.31.
    "mae-vit-b-16": 85_798_656,
    "mae-vit-h-14": 630_764_800,
    "mae-vit-l-16": 303_301_632,
    "vit-b-16": 86_567_656,
    "vit-b-16-384": 86_859_496,
    "vit-b-32": 88_224_232,
    "vit-b-32-384": 88_297_192,
    "vit-b-8": 86_576_872,
    "vit-h-14": 632_045_800,
    "vit-l-16": 304_326_632,
    "vit-l-16-384": 304_715_752,
    "vit-l-32": 306_535_400,
    "vit-l-32-384": 306_632_680,
    "vit-s-16": 22_050_664,
    "vit-s-16-384": 22_196_584,
    "vit-s-32": 22_878_952,
    "vit-s-32-384": 22_915_432,
    "vit-ti-16": 5_717_416,
    "vit-ti-16-384": 5_790_376,
    # Of transformers.Qwen3VLVisionModel with the published sizes, transformers 5.23.0.
    "qwen3-vl-2b-vision": 406_957_056,
    "qwen3-vl-4b-vision": 415_347_712,
    "qwen3-vl-8b-vision": 576_388_336,
    # Of transformers.Qwen3VLForConditionalGeneration with the published sizes, transformers 5.24.0.
    "qwen3-vl-2b": 2_127_532_032,
    "qwen3-vl-4b": 4_437_815_808,
    "qwen3-vl-8b": 8_767_123_696,
    # Of transformers.SiglipModel with the published sizes, transformers 5.23.0.
    "siglip-vit-b-16-224": 203_155_970,
    "siglip-vit-b-16-256": 203_202_050,
    "siglip-vit-b-16-256-i18n": 370_626_050,
    "siglip-vit-b-16-384": 203_447_810,
    "siglip-vit-b-16-512": 203_791_874,
    "siglip-vit-l-16-256": 652_150_786,
    "siglip-vit-l-16-384": 652_478_466,
    "siglip-vit-so400m-14-224": 877_360_306,
    "siglip-vit-so400m-14-384": 877_960_498,
    "siglip-vit-so400m-16-256-i18n": 1_128_758_962,
    "siglip2-vit-b-16-224": 375_187_970,
    "siglip2-vit-b-16-256": 375_234_050,
    "siglip2-vit-b-16-384": 375_479_810,
    "siglip2-vit-b-16-512": 375_823_874,
    "siglip2-vit-b-16-naflex": 375_234_050,
    "siglip2-vit-b-32-256": 376_856_066,
    "siglip2-vit-giant-opt-16-256": 1_871_393_906,
    "siglip2-vit-giant-opt-16-384": 1_871_885_426,
    "siglip2-vit-l-16-256": 881_526_786,
    "siglip2-vit-l-16-384": 881_854_466,
    "siglip2-vit-l-16-512": 882_313_218,
    "siglip2-vit-so400m-14-224": 1_135_463_602,
    "siglip2-vit-so400m-14-384": 1_136_008_498,
    "siglip2-vit-so400m-16-256": 1_135_670_962,
    "siglip2-vit-so400m-16-384": 1_136_039_602,
    "siglip2-vit-so400m-16-512": 1_136_555_698,
    # Of timm.create_model(name, num_classes=0), timm 1.0.31.
    "siglip-vit-b-16-224-vision": 92_884_224,
    "siglip-vit-b-16-256-vision": 92_930_304,
    "siglip-vit-b-16-384-vision": 93_176_064,
    "siglip-vit-b-16-512-vision": 93_520_128,
    "siglip-vit-l-16-256-vision": 315_956_224,
    "siglip-vit-l-16-384-vision": 316_283_904,
    "siglip-vit-so400m-14-224-vision": 427_680_704,
    "siglip-vit-so400m-14-384-vision": 428_225_600,
    "siglip2-vit-b-32-256-vision": 94_552_320,
    "siglip2-vit-giant-opt-16-256-vision": 1_163_168_256,
    "siglip2-vit-giant-opt-16-384-vision": 1_163_659_776,
    "siglip2-vit-l-16-512-vision": 316_742_656,
    "siglip2-vit-so400m-16-256-vision": 427_888_064,
    "siglip2-vit-so400m-16-384-vision": 428_256_704,
    "siglip2-vit-so400m-16-512-vision": 428_772_800,
    "siglip2-vit-so400m-16-naflex": 1_135_670_962,
    # Of transformers 5.23.0's classes on torch's meta device, less the predictor's.
    "vjepa2-vit-l-16-256": 303_885_312,
    "vjepa2-vit-h-16-256": 631_648_000,
    "vjepa2-vit-g-16-256": 1_012_173_952,
    "vjepa2-vit-g-16-384": 1_012_173_952,
    "vjepa2-vit-l-16-256-ssv2": 353_399_982,
    "vjepa2-vit-l-16-256-diving48": 353_270_832,
    "vjepa2-vit-g-16-384-ssv2": 1_105_668_142,
    "vjepa2-vit-g-16-384-diving48": 1_105_490_608,
    # Of transformers 5.23.0's classes for causal language models, on torch's meta device.
    "llama-2-7b": 6_738_415_616,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.2": 7_241_732_096,
    "qwen2-0.5b": 494_032_768,
    "qwen3-0.6b": 596_049_920,
    "vicuna-7b-v1.5": 6_738_415_616,
    # Of transformers 5.24.0's classes, less what no output depends on: the last norm of the tower
    # and CLIP's last block, 12,598,272 of all 7,063,427,072 in llava-1.5-7b.
    "llava-1.5-13b": 13_338_896_384,
    "llava-1.5-7b": 7_050_828_800,
    "llava-1.6-mistral-7b": 7_554_149_376,
    "llava-1.6-vicuna-13b": 13_338_901_504,
    "llava-1.6-vicuna-7b": 7_050_832_896,
    "llava-interleave-qwen-0.5b": 893_672_352,
    "llava-onevision-qwen2-0.5b": 893_673_248,
}


def test_every_model_has_a_published_size():
    assert models.list_models() == sorted(PUBLISHED_PARAMETERS)


FIRST = [next(iter(family.variants)) for family in registry.FAMILIES.values()]


def size(module):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


@pytest.mark.parametrize("name", few(models.list_models(), FIRST))
def test_parameter_counts_are_the_published_ones(name):
    """Counted on towers of one block, which is quick: the others have the same leaves."""
    family, config = registry.published(name)
    towers = [tower for tower in ("vision", "text", "decoder") if hasattr(config, tower)]

    def one_block(of_config):
        shallow = {"encoder": {"depth": 1}} if hasattr(of_config, "encoder") else {"depth": 1}
        return shallow | ({"deepstack": (0,)} if hasattr(of_config, "deepstack") else {})

    of_towers = {tower: one_block(getattr(config, tower)) for tower in towers}
    shallow = registry.override(config, of_towers or one_block(config))
    model = registry.abstract_model(family.model, shallow)
    count = size(model)
    for tower in towers or [""]:
        of_config, of_model = getattr(config, tower, config), getattr(model, tower, model)
        if hasattr(of_config, "deepstack"):
            count += (len(of_config.deepstack) - 1) * size(of_model.deepstack_mergers[0])
        of_config = getattr(of_config, "encoder", of_config)
        of_model = getattr(of_model, "encoder", of_model)
        count += (of_config.depth - 1) * size(of_model.blocks[0])
    assert count == PUBLISHED_PARAMETERS[name]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(model))} == {"float32"}


def test_overrides_reach_nested_configs_and_leave_the_rest():
    overrides = dict(text={"encoder": {"depth": 1}}, vision={"encoder": {"depth": 1}})
    config = nnx.eval_shape(lambda: tiny_clip(**overrides)).config
    published = clip.VARIANTS["clip-vit-b-32"]
    assert config.text.encoder == dataclasses.replace(published.text.encoder, depth=1)
    assert config.text.vocab_size == published.text.vocab_size
    assert config.projection_dim == 24
    assert published.text.encoder.depth == 12


@pytest.mark.parametrize(
    "overrides, message",
    [
        (dict(projection_dims=3), "CLIPConfig has no .*'projection_dims'; .*'projection_dim'"),
        (dict(vision=dict(encoder=dict(dept=3))), "EncoderConfig has no .*'dept'; .* 'depth'"),
        (dict(vision=dict(patch_size=5)), "224 does not divide by patch_size 5"),
        (dict(vision=dict(encoder=dict(num_heads=5))), "width 768 does not divide by 5 heads"),
        (dict(text=dict(encoder=dict(activation="relu"))), "silu, got 'relu'"),
        (dict(dtype="float16"), "dtype must be one of float32, bfloat16, got 'float16'"),
        (dict(param_dtype=None), "param_dtype must be .*, got None"),
        (dict(vision=3), "VisionConfig.* got 3"),
        (dict(projection_dim="24"), "projection_dim must be .*int.*, got '24'"),
        (dict(projection_dim=dict(a=1)), "projection_dim must be .*int.*, got {'a': 1}"),
        (dict(vision=dict(patch_size="32")), "patch_size must be .*int.*, got '32'"),
        (dict(vision=dict(patch_size=0)), "patch_size must be at least 1, got 0"),
        (dict(text=dict(encoder=dict(num_heads=0))), "num_heads must be at least 1, got 0"),
        (dict(text=dict(encoder=dict(depth=-1))), "depth must be at least 1, got -1"),
    ],
)  # fmt: skip
def test_bad_overrides_raise(overrides, message):
    with pytest.raises(ValueError, match=message):
        models.create("clip-vit-b-32", rngs=nnx.Rngs(0), **overrides)


def test_a_nested_config_may_be_given_whole():
    text = dataclasses.replace(clip.VARIANTS["clip-vit-l-14"].text, context_length=9)
    assert nnx.eval_shape(lambda: tiny_clip(text=text)).config.text is text


@pytest.mark.parametrize(
    "name, hint", [("clip-vit-b-23", "clip-vit-b-32"), ("CLIP-ViT-L-14", "-l-14")]
)
def test_unknown_names_raise_with_the_nearest(name, hint):
    with pytest.raises(ValueError, match=f"unknown model {name!r}.*Known: clip-vit-b-16") as error:
        models.create(name, rngs=nnx.Rngs(0))
    assert hint in str(error.value)


def test_config_survives_a_dictionary():
    config = clip.VARIANTS["clip-vit-l-14"]
    assert registry.config_from_dict(clip.CLIPConfig, dataclasses.asdict(config)) == config


def test_family_of_a_stranger_raises():
    with pytest.raises(TypeError, match="Linear is not one of the models: clip"):
        registry.family_of(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
