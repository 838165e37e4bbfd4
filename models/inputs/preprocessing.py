"""The preprocessing of a checkpoint from the file that it was published with."""

import json
import math
import pathlib
import re

from PIL import Image

from .naflex_images import PatchBudget
from .preprocessor import Preprocessor
from .qwen_images import FRAMES, PixelBudget

_OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_OPEN_CLIP_CONFIG = "open_clip_config.json"
_WEIGHTS = (  # as the converters choose among several
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def load_preprocessor(path) -> Preprocessor:
    """The preprocessing of a checkpoint, by the file of the library that its weights are for.

    That is the first of `processor_config.json`, `preprocessor_config.json` and, for videos,
    `video_preprocessor_config.json` of transformers, `config.json` of timm and
    `open_clip_config.json`; the last comes first for weights whose name begins with `open_clip_`:
    the given file's or, of a directory, those that would be converted.

    Args:
      path: the checkpoint's directory, or its file of weights.

    Raises:
      FileNotFoundError: none of these files is there.
      ValueError: a file that is damaged or asks for what is not supported.
    """
    path = pathlib.Path(path)
    folder, weights = (path.parent, [path.name]) if path.is_file() else (path, _WEIGHTS)
    found = next((name for name in weights if (folder / name).is_file()), "")
    names = list(_READERS)
    if found.startswith("open_clip_"):
        names = [_OPEN_CLIP_CONFIG, *names]
    for file in (folder / name for name in names):
        if file.is_file() and (preprocessor := read_with(_READERS[file.name], file)) is not None:
            return preprocessor
    raise FileNotFoundError(
        f"{folder} says nothing of preprocessing in any of {', '.join(_READERS)}: copy the one "
        "that was published with the checkpoint there"
    )


def read_with(reader, file):
    """What a reader makes of the JSON in a file and of its folder.

    Raises:
      ValueError: the file is damaged or asks for what is not supported.
    """
    try:
        return reader(_read(file), file.parent)
    except _ERRORS as error:  # hostile JSON raises all of these
        raise ValueError(f"{file} cannot be used: {error!r}") from None


def _read(file):
    return json.loads(file.read_text(encoding="utf-8"))


def _class(statistics, size, resample=3, **fields):
    mean, std = statistics
    return {"image_mean": mean, "image_std": std, "size": size, "resample": resample} | fields


# What the classes of transformers do where the file says nothing.
_CROPPED = _class(
    _OPENAI, {"shortest_edge": 224}, do_center_crop=True, crop_size=224, do_convert_rgb=True
)
_CLASSES = {
    "CLIP": _CROPPED,
    "Bit": _CROPPED,
    "Siglip": _class(_HALF, [224, 224], do_convert_rgb=True),
    "Siglip2": _class(_HALF, None, 2, patch_size=16, max_num_patches=256),
    "Llava": _CROPPED,
    "LlavaNext": _CROPPED,
    "LlavaOnevision": _class(_OPENAI, [384, 384], do_convert_rgb=True),
    "ViT": _class(_HALF, [224, 224], resample=2),
    "DeiT": _class(_HALF, [256, 256], do_center_crop=True, crop_size=224),
    "DINOv3ViT": _class(_IMAGENET, [224, 224], resample=2),
    "VJEPA2": _class(
        _IMAGENET, {"shortest_edge": 292}, resample=2, do_center_crop=True, crop_size=256
    ),
    "Qwen2VL": _class(  # of Qwen3-VL, too
        _OPENAI,
        {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},
        do_convert_rgb=True,
        patch_size=14,
        merge_size=2,
        temporal_patch_size=FRAMES,
    ),
}
_INTEGER_IS_SQUARE = ("ViT", "DeiT", "DINOv3ViT")  # for the others it is the shorter side
_CLASS_OF_MODEL_TYPE = {
    "clip": "CLIP",
    "dinov2": "Bit",
    "dinov2_with_registers": "Bit",
    "dinov3_vit": "DINOv3ViT",
    "siglip": "Siglip",
    "siglip_vision_model": "Siglip",
    "siglip2": "Siglip2",
    "vit": "ViT",
    "vit_mae": "ViT",
    "vjepa2": "VJEPA2",
    "llava": "Llava",
    "llava_next": "LlavaNext",
    "llava_onevision": "LlavaOnevision",
    "qwen3_vl": "Qwen2VL",
    "qwen3_vl_vision": "Qwen2VL",
}
_TILED = ("LlavaNext", "LlavaOnevision")  # what is read of them is how their base tile is made
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")


def _from_processor(values, folder):
    """As transformers 5 writes it for models of images and text."""
    if "image_processor" not in values:
        return None
    return from_preprocessor(values["image_processor"], folder)


def from_preprocessor(values, folder):
    """By the object that transformers writes for an image processor."""
    name = _class_of(values, folder)
    values = {"resample": 3} | _CLASSES.get(name, {}) | values
    known = _STEPS + ("do_pad",) * (name in ("Llava", *_TILED))
    for step in filter(re.compile("do_").match, values):
        _expect(step in known or not values[step], step, values[step])
    _expect(values.get("do_rescale", True), "do_rescale", False)
    _expect(values["resample"] in (1, 2, 3), "resample", values["resample"])
    factor = values.get("rescale_factor", 1 / 255)
    _expect(math.isclose(factor, 1 / 255, rel_tol=1e-6), "rescale_factor", factor)
    resizes = values.get("do_resize", True)
    budget = _BUDGETS[name](values) if name in _BUDGETS and resizes else None
    resize, fit = (
        _size_and_fit(values["size"], name) if resizes and budget is None else (None, "fill")
    )
    crop = _pair("crop_size", values["crop_size"]) if values.get("do_center_crop") else None
    if name in _TILED:
        _expect(resize is not None and resize[0] == resize[1], "size", values["size"])
        _expect(crop in (None, resize), "crop_size", crop)
        crop, fit = None, "fill"
    normalised = values.get("do_normalize", True)
    return Preprocessor(
        resize=resize,
        crop=crop,
        mean=_channels("image_mean", values["image_mean"]) if normalised else (0.0, 0.0, 0.0),
        std=_scales("image_std", values["image_std"]) if normalised else (1.0, 1.0, 1.0),
        resample=int(values["resample"]),
        fit=fit,
        levels=name != "DINOv3ViT",  # which scales to 0..1 before it resizes
        on_white=bool(values.get("do_convert_rgb")),
        squared=name == "Llava" and bool(values.get("do_pad")),
        budget=budget,
    )


def _patch_budget(values):
    """Of SigLIP 2's NaFlex."""
    sizes = [values[name] for name in ("patch_size", "max_num_patches")]
    _expect(all(type(size) is int for size in sizes), "patch_size and max_num_patches", sizes)
    return PatchBudget(*sizes)


def _pixel_budget(values):
    """Of Qwen-VL, whose file says pixels where it says edges."""
    frames = values["temporal_patch_size"]
    _expect(frames == FRAMES, "temporal_patch_size", frames)
    _expect(isinstance(values["size"], dict), "size", values["size"])
    bounds = []
    for edge, older in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")):
        pixels = values["size"].get(edge) if values.get(older) is None else values[older]
        _expect(type(pixels) is int, f"size.{edge}", pixels)
        bounds.append(pixels)
    for name in ("patch_size", "merge_size"):
        _expect(type(values[name]) is int, name, values[name])
    return PixelBudget(values["patch_size"] * values["merge_size"], *bounds)


_BUDGETS = {"Qwen2VL": _pixel_budget, "Siglip2": _patch_budget}


def _class_of(values, folder):
    """A key of `_CLASSES`; None for a file that names no class and lies beside no config."""
    for field in ("image_processor_type", "feature_extractor_type", "video_processor_type"):
        if field in values:
            name = re.sub("(Image|Video)Processor(Fast|Pil)?$|FeatureExtractor$", "", values[field])
            _expect(name in _CLASSES, field, values[field])
            return name
    if not (config := folder / "config.json").is_file():
        return None
    return _one_of("model_type", _read(config).get("model_type"), _CLASS_OF_MODEL_TYPE)


def _size_and_fit(size, name):
    if isinstance(size, dict):
        size = {key: side for key, side in size.items() if side is not None}
        if size.keys() == {"shortest_edge"}:
            return _pair("size", size["shortest_edge"]), "cover"
    if isinstance(size, int):
        _expect(name is not None, "an integer size without image_processor_type", size)
        return _pair("size", size), "fill" if name in _INTEGER_IS_SQUARE else "cover"
    return _pair("size", size), "fill"


def _from_timm(values, folder):
    if "architecture" not in values:  # the config of another library
        return None
    defaults = {
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "crop_mode": "center",
        "mean": _IMAGENET[0],
        "std": _IMAGENET[1],
    }
    values = _over(defaults, values.get("pretrained_cfg", values))  # older files are flat
    channels, *size = values["input_size"]
    crop = _pair("input_size", size)
    fit = _one_of("crop_mode", values["crop_mode"], {"center": "cover", "squash": "fill"})
    _expect(channels == 3 and _fits(crop, fit), "input_size", values["input_size"])
    _expect(0 < values["crop_pct"] <= 1, "crop_pct", values["crop_pct"])
    filters = {filter.name.lower(): filter for filter in Image.Resampling}
    return Preprocessor(
        resize=tuple(int(side / values["crop_pct"]) for side in crop),
        crop=crop,
        mean=_channels("mean", values["mean"]),
        std=_scales("std", values["std"]),
        resample=_one_of("interpolation", values["interpolation"], filters),
        fit=fit,
        library="timm",
    )


def _from_open_clip(values, folder):
    defaults = {
        "mode": "RGB",
        "mean": _OPENAI[0],
        "std": _OPENAI[1],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    # The size is the model's, whatever the preprocessing says.
    model = values.get("model_cfg", values)  # or only that, as open_clip keeps it by name
    size = _pair("image_size", model["vision_cfg"].get("image_size", 224))
    values = _over(defaults, values.get("preprocess_cfg", {}))
    fits = {"shortest": "cover", "longest": "contain", "squash": "fill"}
    fit = _one_of("resize_mode", values["resize_mode"], fits)
    _expect(_fits(size, fit), "image_size", size)
    _expect(values["mode"] == "RGB", "mode", values["mode"])
    _expect(fit != "contain" or values["fill_color"] == 0, "fill_color", values["fill_color"])
    filters = {"bicubic": 3, "bilinear": 2, "random": 3}  # random in training only
    return Preprocessor(
        resize=size,
        crop=size,
        mean=_channels("mean", values["mean"]),
        std=_scales("std", values["std"]),
        resample=_one_of("interpolation", values["interpolation"], filters),
        fit=fit,
        library="open_clip",
    )


_READERS = {
    "processor_config.json": _from_processor,
    "preprocessor_config.json": from_preprocessor,
    "video_preprocessor_config.json": from_preprocessor,
    "config.json": _from_timm,
    _OPEN_CLIP_CONFIG: _from_open_clip,
}


def _over(defaults, values):
    return defaults | {name: value for name, value in values.items() if value is not None}


def _expect(supported, field, value):
    if not supported:
        raise ValueError(f"{field} {value!r} is not supported")


def _one_of(field, value, known):
    _expect(isinstance(value, str) and value in known, field, value)
    return known[value]


def _pair(field, size):
    """Height and width in pixels of an integer, a pair, or a dictionary of the two."""
    sides = size
    if isinstance(size, dict):
        _expect(size.keys() == {"height", "width"}, field, size)
        sides = [size["height"], size["width"]]
    elif isinstance(size, int):
        sides = [size, size]
    _expect(len(sides) == 2 and all(type(side) is int and side > 0 for side in sides), field, size)
    return tuple(sides)


def _fits(size, fit):
    return fit != "cover" or size[0] == size[1]


def _channels(field, values):
    _expect(len(values) == 3 and all(map(math.isfinite, values)), field, values)
    return tuple(map(float, values))


def _scales(field, values):
    _expect(all(value > 0 for value in values), field, values)
    return _channels(field, values)
