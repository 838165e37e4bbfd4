import dataclasses
import itertools
import json

import pytest

from convert.sources import WEIGHTS, find_weights
from models.inputs.preprocessing import Preprocessor, load_preprocessor

HALF = (0.5, 0.5, 0.5)
STATISTICS = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
CLIP = Preprocessor(
    (32, 32), (32, 32), mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28), on_white=True
)
OPENAI = STATISTICS | {
    "crop_size": {"height": 32, "width": 32},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_processor_type": "CLIPImageProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 32},
}
OPEN_CLIP = {
    "model_cfg": {"vision_cfg": {"image_size": 32}},
    "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]},
}
TIMM = {
    "architecture": "vit_base_patch16_224",
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "crop_mode": "center",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    },
}
TRANSFORMERS_FILE = "preprocessor_config.json"
OPEN_CLIP_FILE = "open_clip_config.json"


def write(folder, **files):
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


def load_transformers(folder, values):
    return load_preprocessor(write(folder, preprocessor_config=values))


def test_the_bare_model_config_of_open_clip_has_the_librarys_preprocessing(tmp_path):
    bare, whole = tmp_path / "bare", tmp_path / "whole"
    for folder, values in ((bare, OPEN_CLIP["model_cfg"]), (whole, {**OPEN_CLIP})):
        values.pop("preprocess_cfg", None)
        folder.mkdir()
        write(folder, open_clip_config=values)
    assert load_preprocessor(bare) == load_preprocessor(whole)


@pytest.mark.parametrize(
    ("size", "name", "resize", "fit"),
    [
        ({"shortest_edge": 224}, "CLIPImageProcessor", (224, 224), "cover"),
        ({"height": 224, "width": 160}, "ViTImageProcessorFast", (224, 160), "fill"),
        ({"shortest_edge": 224, "longest_edge": None}, "BitImageProcessor", (224, 224), "cover"),
        (224, "CLIPFeatureExtractor", (224, 224), "cover"),
        (224, "ViTFeatureExtractor", (224, 224), "fill"),
        (224, "DINOv3ViTImageProcessorFast", (224, 224), "fill"),
    ],
)
def test_sizes_as_transformers_writes_them(tmp_path, size, name, resize, fit):
    key = "feature_extractor_type" if "Feature" in name else "image_processor_type"
    preprocess = load_transformers(tmp_path, STATISTICS | {"size": size, key: name})
    assert (preprocess.resize, preprocess.fit) == (resize, fit)
    assert preprocess.levels == ("DINOv3" not in name)


@pytest.mark.parametrize(
    ("model_type", "crop", "resample"),
    [
        ("clip", (224, 224), 3),
        ("dinov2", (224, 224), 3),
        ("dinov2_with_registers", (224, 224), 3),
        ("vit_mae", None, 2),
        ("siglip", None, 3),
    ],
)
def test_what_the_file_leaves_out_is_by_the_model(tmp_path, model_type, crop, resample):
    write(tmp_path, config={"model_type": model_type})
    preprocess = load_transformers(tmp_path, {})
    assert preprocess.resize == (224, 224)
    assert (preprocess.crop, preprocess.resample) == (crop, resample)


def test_the_smallest_file_without_a_class(tmp_path):
    preprocess = load_transformers(tmp_path, STATISTICS | {"size": {"height": 32, "width": 32}})
    assert preprocess == dataclasses.replace(CLIP, crop=None, fit="fill", on_white=False)


@pytest.mark.parametrize(("do_pad", "name"), [(False, "Llava"), (True, "Llava"), (True, "CLIP")])
def test_padding_to_a_square_is_of_llava_alone(tmp_path, do_pad, name):
    values = OPENAI | {"do_pad": do_pad, "image_processor_type": f"{name}ImageProcessor"}
    if name == "CLIP":
        refused(tmp_path, "do_pad", preprocessor_config=values)
    else:
        expected = dataclasses.replace(CLIP, squared=do_pad)
        assert load_transformers(tmp_path, values) == expected


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("LlavaNextImageProcessor", {"shortest_edge": 32}),
        ("LlavaNextImageProcessorFast", {"height": 32, "width": 32}),
        ("LlavaOnevisionImageProcessor", {"height": 32, "width": 32}),
    ],
)
def test_the_base_of_tiled_images_is_squeezed_to_a_square(tmp_path, name, size):
    values = OPENAI | {"do_pad": True, "image_processor_type": name, "size": size}
    tiled = dataclasses.replace(CLIP, crop=None, fit="fill")
    assert load_transformers(tmp_path, values) == tiled
    for field, value in (("crop_size", 31), ("size", {"height": 32, "width": 31})):
        refused(tmp_path, field, preprocessor_config=values | {field: value})
    refused(tmp_path, "size", preprocessor_config=values | {"do_resize": False})


def test_steps_that_are_off(tmp_path):
    off = {"do_resize": False, "do_center_crop": None, "do_normalize": False, "size": None}
    zero, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    assert load_transformers(tmp_path, OPENAI | off) == Preprocessor(
        None, None, mean=zero, std=one, fit="fill", on_white=True
    )


@pytest.mark.parametrize(
    ("mode", "fit"), [("shortest", "cover"), ("longest", "contain"), ("squash", "fill")]
)
def test_open_clip(tmp_path, mode, fit):
    values = json.loads(json.dumps(OPEN_CLIP))
    values["preprocess_cfg"] |= {"resize_mode": mode, "size": 99, "interpolation": "bilinear"}
    assert load_preprocessor(write(tmp_path, open_clip_config=values)) == dataclasses.replace(
        CLIP, fit=fit, resample=2, library="open_clip", on_white=False
    )


@pytest.mark.parametrize("flat", [False, True])
def test_timm(tmp_path, flat):
    values = TIMM["pretrained_cfg"] | {"architecture": "x"} if flat else TIMM
    assert load_preprocessor(write(tmp_path, config=values)) == Preprocessor(
        (248, 248), (224, 224), mean=HALF, std=HALF, library="timm"
    )


def test_which_file_is_read(tmp_path):
    weights = tmp_path / "open_clip_model.safetensors"
    weights.touch()
    write(tmp_path, open_clip_config=OPEN_CLIP)
    assert load_preprocessor(tmp_path).library == "open_clip"
    (tmp_path / "model.safetensors").touch()
    write(tmp_path, config=TIMM)
    assert load_preprocessor(tmp_path).library == "timm"
    write(tmp_path, preprocessor_config=OPENAI, processor_config={"processor_class": "x"})
    assert load_preprocessor(tmp_path) == CLIP
    write(tmp_path, processor_config={"image_processor": OPENAI | {"resample": 2}})
    assert load_preprocessor(tmp_path).resample == 2
    assert load_preprocessor(weights).library == "open_clip"


@pytest.mark.parametrize("names", [*itertools.combinations(WEIGHTS, 2)], ids=" and ".join)
def test_the_file_is_of_the_library_whose_weights_would_be_converted(tmp_path, names):
    write(tmp_path, open_clip_config=OPEN_CLIP, preprocessor_config=OPENAI)
    for name in names:
        (tmp_path / name).touch()
    of_open_clip = find_weights(tmp_path).name.startswith("open_clip_")
    library = "open_clip" if of_open_clip else "transformers"
    assert load_preprocessor(tmp_path).library == library


def refused(folder, field, **files):
    with pytest.raises(ValueError, match=rf"{next(iter(files))}\.json cannot be used.*{field}"):
        load_preprocessor(write(folder, **files))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_mean", [0.5]),
        ("image_mean", [0.5, float("nan"), 0.5]),
        ("image_std", [0.5, 0.0, 0.5]),
        ("size", {"height": 3}),
        ("size", {"longest_edge": 3}),
        ("size", {"shortest_edge": 3, "longest_edge": 4}),
        ("size", {"shortest_edge": "224"}),
        ("size", 0),
        ("size", True),
        ("crop_size", {"shortest_edge": 3}),
        ("do_rescale", False),
        ("do_pad", True),
        ("rescale_factor", 1 / 127.5),
        ("resample", 0),
        ("resample", None),
        ("image_processor_type", "BeitImageProcessor"),
    ],
)
def test_what_is_not_supported_of_transformers_is_refused(tmp_path, field, value):
    refused(tmp_path, field, preprocessor_config=OPENAI | {field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_mean", [0.5, 10**400, 0.5]),
        ("image_std", None),
        ("size", None),
        ("image_processor_type", 3),
    ],
)
def test_values_of_another_type_are_refused(tmp_path, field, value):
    refused(tmp_path, "", preprocessor_config=OPENAI | {field: value})


def test_an_integer_size_that_may_mean_either_is_refused(tmp_path):
    refused(tmp_path, "image_processor_type", preprocessor_config=STATISTICS | {"size": 32})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resize_mode", "stretch"),
        ("interpolation", "lanczos"),
        ("mode", "L"),
        ("mean", [0.5]),
        ("fill_color", 114),
    ],
)
def test_what_is_not_supported_of_open_clip_is_refused(tmp_path, field, value):
    settings = {"resize_mode": "longest", field: value}
    refused(tmp_path, field, open_clip_config=OPEN_CLIP | {"preprocess_cfg": settings})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop_mode", "border"),
        ("crop_pct", 0),
        ("crop_pct", 2),
        ("input_size", [1, 224, 224]),
        ("input_size", [3, 224, 320]),
        ("interpolation", "random"),
        ("std", [1, -1, 1]),
    ],
)
def test_what_is_not_supported_of_timm_is_refused(tmp_path, field, value):
    settings = TIMM["pretrained_cfg"] | {field: value}
    refused(tmp_path, field, config=TIMM | {"pretrained_cfg": settings})


def test_a_shorter_side_of_two_lengths_is_refused(tmp_path):
    refused(
        tmp_path,
        "image_size",
        open_clip_config={"model_cfg": {"vision_cfg": {"image_size": [32, 48]}}},
    )


def test_videos_have_a_file_of_their_own(tmp_path):
    """It comes after that of images; by default 256 pixels of 292 are left."""
    write(tmp_path, video_preprocessor_config={"video_processor_type": "VJEPA2VideoProcessor"})
    preprocess = load_preprocessor(tmp_path)
    assert (preprocess.resize, preprocess.crop) == ((292, 292), (256, 256))
    assert preprocess.resample == 2 and preprocess.mean == (0.485, 0.456, 0.406)
    write(tmp_path, preprocessor_config=OPENAI)
    assert load_preprocessor(tmp_path) == CLIP


@pytest.mark.parametrize("name", [TRANSFORMERS_FILE, OPEN_CLIP_FILE])
@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 100_000, '"a"', "null"])
def test_damaged_file_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="cannot be used"):
        load_preprocessor(tmp_path)


@pytest.mark.parametrize("files", [{}, {"config": {"model_type": "clip"}}])
def test_missing_file_is_named(tmp_path, files):
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json"):
        load_preprocessor(write(tmp_path, **files))
