"""Which family a checkpoint is of: from its config, from its tensors, or forced."""

import json

import pytest

import convert
from convert.families import FAMILIES, LAYOUTS, find_layout
from convert.files import open_tensors
from convert.loading import read_layout
from convert.sources import find_weights
from convert.verify import BOUND, verify
from tests import zoo


@pytest.fixture
def folder(tmp_path):
    """Writes a case; gives its folder."""
    return lambda case: zoo.write(case, tmp_path / "source")


def config_of(folder):
    (file,) = (folder / name for name in zoo.CONFIGS if (folder / name).is_file())
    return file


def layout_of(folder, family=None):
    file = find_weights(folder)
    return read_layout(file, open_tensors(file), family)[0]


def parsed(folder):
    file = find_weights(folder)
    return read_layout(file, open_tensors(file))[1]


@pytest.mark.parametrize("case", zoo.CASES)
def test_the_tensors_alone_tell_the_layout(folder, case):
    folder = folder(case)
    expected, names = layout_of(folder), zoo.tensors(case)
    assert [layout for layout in LAYOUTS if layout.has_keys(names)] == [expected]
    if expected.needs_config:
        with pytest.raises(convert.ConversionError, match=r"only with the config\.json") as error:
            find_layout(None, names)
        assert str(expected) in str(error.value)
    else:
        assert find_layout(None, names) is expected


def change(file, **fields):
    values = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: x for name, x in values.items() if x is not None}))


SIDES = {"image_size", "patch_size", "img_size"}


def write_sides_twice(file):
    """A config with a list of two for every size of something square."""

    def twice(values):
        for name, value in values.items():
            if name in SIDES and isinstance(value, int):
                values[name] = [value, value]
            elif isinstance(value, dict):
                twice(value)
        return values

    before = file.read_text()
    file.write_text(json.dumps(twice(json.loads(before))))
    assert json.loads(before) != json.loads(file.read_text())


@pytest.mark.parametrize("case", [case for case in zoo.CASES if case not in zoo.LANGUAGE])
def test_sides_may_be_written_twice(folder, case):
    folder = folder(case)
    expected = parsed(folder)
    write_sides_twice(config_of(folder))
    assert parsed(folder) == expected


@pytest.mark.reference
@pytest.mark.parametrize("case", ["clip_hf", "dinov3_hf", "siglip_hf", "vit_hf", "vit_mae_hf"])
def test_sides_written_twice_can_be_verified(folder, case):
    pytest.importorskip("transformers")
    folder = folder(case)
    write_sides_twice(config_of(folder))
    assert max(comparison.error for comparison in verify(folder)) < BOUND / 10


@pytest.mark.parametrize("case", ["vit_hf", "dinov2_hf", "dinov3_hf"])
@pytest.mark.parametrize("sides", [[32, 64], [32], [32, 32, 32], [32, "32"], [True, True], []])
def test_other_lists_of_sides_are_refused(folder, refused, case, sides):
    folder = folder(case)
    change(config_of(folder), image_size=sides)
    assert "image_size must be" in refused(folder) and f"got {sides}" in refused(folder)


@pytest.mark.parametrize("model_type", [None, "my_clip"])
def test_a_family_can_be_forced(folder, refused, model_type):
    folder = folder("clip_hf")
    expected = convert.load_pretrained(folder).config
    change(config_of(folder), model_type=model_type)
    message = refused(folder)
    assert "--family" in message and all(family in message for family in FAMILIES)
    assert convert.load_pretrained(folder, family="clip").config == expected


def test_the_wrong_family_is_refused_by_its_tensors(folder, refused):
    folder = folder("dinov3_hf")
    refused(folder, "--family", "dinov2")
    with pytest.raises(convert.ConversionError, match=r"family must be one of .* got 'dino'"):
        convert.load_pretrained(folder, family="dino")


def test_tensors_of_several_families():
    names = {"visual.conv1.weight", "vision_model.head.probe", "logit_scale"}
    with pytest.raises(convert.ConversionError, match=r"; several fit: clip \(open_clip\), siglip"):
        find_layout(None, names)


@pytest.mark.parametrize("family", [None, "vit"])
def test_tensors_of_no_family(family):
    with pytest.raises(convert.ConversionError, match=r"cannot be told .* none fits: clip"):
        find_layout(None, {"weight", "bias"}, family)


@pytest.mark.parametrize(
    "case, model_type, word",
    [
        ("siglip_hf", "siglip_text_model", "the whole SiglipModel"),
        ("dinov3_hf", "dinov3_convnext", "no attention"),
        ("vit_hf", "deit", "distillation"),
    ],
)
def test_relatives_are_refused_by_name(folder, refused, case, model_type, word):
    folder = folder(case)
    change(config_of(folder), model_type=model_type)
    message = refused(folder)
    assert model_type in message and word in message


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"num_channels": 4}, "num_channels must be 3, got 4"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads must be absent"),
        ({"quantization_config": {"bits": 4}}, "quantization_config must be absent"),
        ({"is_decoder": True}, "is_decoder must be absent"),
        ({"qk_norm": True}, "qk_norm must be absent or False or None, got True"),
        ({"use_mean_pooling": True}, "use_mean_pooling must be absent"),
        ({"attn_implementation": "someone/kernels"}, "attn_implementation must be absent"),
        ({"_attn_implementation": "someone/kernels"}, "_attn_implementation must be absent"),
        ({"layer_norm_eps": "tiny"}, "layer_norm_eps must be a number"),
        ({"hidden_act": "swish"}, "hidden_act must be one of"),
    ],
)
@pytest.mark.parametrize("case", ["dinov2_hf", "dinov3_hf", "vit_hf"])
def test_fields_that_change_the_computation_are_refused(folder, refused, case, fields, words):
    folder = folder(case)
    change(config_of(folder), **fields)
    assert words in refused(folder)


@pytest.mark.parametrize("section", ["text_config", "vision_config"])
@pytest.mark.parametrize("case", ["clip_hf", "siglip_hf"])
def test_fields_of_towers_that_change_the_computation_are_refused(folder, refused, case, section):
    folder = folder(case)
    values = json.loads(config_of(folder).read_text())[section]
    change(config_of(folder), **{section: values | {"qk_norm": True}})
    assert f"{section}.qk_norm must be absent" in refused(folder)


@pytest.mark.parametrize("word", ["eager", "sdpa", "flash_attention_2"])
def test_how_attention_is_implemented_does_not_matter(folder, word):
    folder = folder("dinov3_hf")
    expected = convert.load_pretrained(folder).config
    change(config_of(folder), attn_implementation=word, _attn_implementation=word)
    assert convert.load_pretrained(folder).config == expected


@pytest.mark.parametrize("case", zoo.CASES)
def test_fields_that_nobody_knows_are_listed(folder, case):
    folder = folder(case)
    change(config_of(folder), new_in_transformers_6=1)
    with pytest.warns(UserWarning, match=r"json\.new_in_transformers_6"):
        convert.load_pretrained(folder)
