"""The original PyTorch model of a checkpoint, run stage by stage. Needs torch and its library.

Stages are arrays by name: "embeddings", "block 0" and so on, "tokens", "pooled", "projected" and
"logits" where a model has them; those of a text tower begin with "text ". The models are built here
from classes named here: nothing that a checkpoint says chooses code.
"""

import contextlib
import functools
import importlib
import math
from collections.abc import Callable

import numpy as np

from convert import (
    naflex_original,
    npz_original,
    open_clip_original,
    qwen_original,
    qwen_vision,
    timm_original,
    vjepa2_original,
)
from convert.errors import ConversionError, one_line, show
from convert.layout import Layout, Source
from convert.llava_inputs import size_of_image
from convert.recording import recording
from models.inputs.naflex_images import pack_patches
from models.inputs.tiles import best_resolution

# Of transformers by model_type: the model, and the one with a classifier.
_CLASSES = {
    "clip": ("CLIPModel", None),
    "dinov2": ("Dinov2Model", "Dinov2ForImageClassification"),
    "dinov2_with_registers": (
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersForImageClassification",
    ),
    "dinov3_vit": ("DINOv3ViTModel", None),
    "siglip": ("SiglipModel", None),
    "siglip_vision_model": ("SiglipVisionModel", None),
    "siglip2": ("Siglip2Model", None),
    "vit": ("ViTModel", "ViTForImageClassification"),
    "vit_mae": ("ViTMAEModel", None),
    "llama": ("LlamaForCausalLM", None),
    "mistral": ("MistralForCausalLM", None),
    "qwen2": ("Qwen2ForCausalLM", None),
    "qwen3": ("Qwen3ForCausalLM", None),
    "llava": ("LlavaForConditionalGeneration", None),
    "llava_next": ("LlavaNextForConditionalGeneration", None),
    "llava_onevision": ("LlavaOnevisionForConditionalGeneration", None),
    "qwen3_vl": ("Qwen3VLForConditionalGeneration", None),
}
# Fields with which a config asks transformers for other code than its own.
_NOT_PASSED_ON = ("auto_map", "attn_implementation", "_attn_implementation", "quantization_config")


def open_original(layout: Layout, source: Source) -> Callable[..., dict[str, np.ndarray]]:
    """A function of images `[B, height, width, 3]` and token_ids `[B, T]`: the original's stages.

    Of a language model the images are None, of a model of videos `[B, F, height, width, 3]`.

    Args:
      layout: of the source.
      source: whose config was parsed without an error.

    Raises:
      ConversionError: the library is not installed, or fails on this checkpoint; so does the
        function that is returned.
    """
    torch = import_torch()
    of_tower = layout is qwen_vision.LAYOUT  # of the whole model's files, too
    open_model = _qwen_tower if of_tower else _LIBRARIES.get(layout.library)
    if open_model is None:
        raise ConversionError(f"no installed library reads {layout}: nothing to compare with")
    prepare_libraries()
    try:
        library = importlib.import_module(_READ_BY.get(layout.library, layout.library))
    except ImportError as error:
        raise ConversionError(
            f"{layout.library} cannot be imported ({one_line(error)}): "
            "pip install -r requirements-reference.txt"
        ) from None
    with _failures_named(layout.library):
        run = open_model(library, source)

    def stages(images, token_ids):
        pixels = None
        if images is not None:
            pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, -3)))
        token_ids = torch.from_numpy(np.asarray(token_ids, np.int64))
        with _failures_named(layout.library), torch.no_grad():
            found = run(pixels, token_ids)
        return {name: np.asarray(value.float()) for name, value in found.items()}

    return stages


def import_torch():
    """The module; raises ConversionError with the remedy."""
    try:
        import torch
    except ImportError:
        raise ConversionError(
            "the original models need torch: pip install -r requirements-reference.txt"
        ) from None
    return torch


@contextlib.contextmanager
def _failures_named(library):
    try:
        yield
    except ConversionError:
        raise
    except Exception as error:  # whatever a library raises on a config or tensors not its own
        raise ConversionError(
            f"{library} fails on this checkpoint: {type(error).__name__}: {show(one_line(error))}"
        ) from error


def _qwen_tower(transformers, source):
    of_tower = source._replace(tensors=qwen_original.tower_tensors(source.tensors))
    state, options = _state_dict(of_tower), dict(attn_implementation="eager")
    tower = qwen_original.open_tower(transformers, source.config, state, **options)
    return functools.partial(_run_qwen_tower, tower)


def _transformers(transformers, source):
    model_type = source.config.get("model_type")
    if model_type == "vjepa2":
        run = vjepa2_original.open_at_sizes(
            transformers, source.config, _state_dict(source), attn_implementation="eager"
        )
        return lambda pixels, token_ids: run(pixels)
    if model_type not in _CLASSES:
        raise ConversionError(f"model_type {show(model_type)} is none that verify knows")
    plain, with_classifier = _CLASSES[model_type]
    has_classifier = with_classifier is not None and "classifier.weight" in source.tensors
    model_class = getattr(transformers, with_classifier if has_classifier else plain)
    values = {name: x for name, x in source.config.items() if name not in _NOT_PASSED_ON}
    values = _with_squares_once(values)
    model = model_class.from_pretrained(
        None,
        config=model_class.config_class.from_dict(values),
        state_dict=_state_dict(source),
        attn_implementation="eager",
    ).eval()
    return functools.partial(_run_transformers, model)


def _with_squares_once(values):
    """A config in which one number stands for two equal ones, which not all models take."""
    once = {}
    for name, value in values.items():
        if isinstance(value, dict):
            value = _with_squares_once(value)
        elif name in ("image_size", "patch_size") and isinstance(value, list):
            value = value[0]
        once[name] = value
    return once


def _state_dict(source):
    torch = import_torch()
    return {
        name: torch.from_numpy(np.array(tensor.read(), np.float32))
        for name, tensor in source.tensors.items()
    }


def _run_transformers(model, pixels, token_ids):
    if pixels is None:
        return _run_language_model(model, token_ids)
    if hasattr(model.config, "vision_feature_layer"):
        return _run_llava(model, pixels, token_ids)
    if model.config.model_type == qwen_vision.WHOLE:
        return _run_qwen(model, pixels, token_ids)
    if model.config.model_type == "siglip2":
        return _run_naflex(model, pixels, token_ids)
    # The base_model of DINOv3 is its blocks without what embeds.
    embeds = hasattr(model, "embeddings")
    vision = model if embeds else getattr(model, "vision_model", model.base_model)
    if model.config.model_type == "vit":
        vision.pooler = None  # no part of what is converted
    stages = {}
    with recording(vision, stages, ""):
        output = _call_at_any_size(vision, pixels, **_unmasking(model.config, pixels))
    for key, stage in (("last_hidden_state", "tokens"), ("pooler_output", "pooled")):
        if output.get(key) is not None:
            stages[stage] = output[key]
    if hasattr(model, "classifier"):
        stages["logits"] = _call_at_any_size(model, pixels).logits
    if hasattr(model, "text_model"):
        stages["projected"] = _call_at_any_size(model.get_image_features, pixels).pooler_output
        with recording(model.text_model, stages, "text "):
            stages["text projected"] = model.get_text_features(token_ids).pooler_output
    return stages


def _run_naflex(model, pixels, token_ids):
    images = _channels_last(pixels)
    patch_size = model.config.vision_config.patch_size
    grid = [side // patch_size for side in images.shape[1:3]]
    patches = pack_patches(images, patch_size=patch_size, num_patches=math.prod(grid))
    stages = naflex_original.run(model, patches)
    with recording(model.text_model, stages, "text "):
        stages["text projected"] = model.get_text_features(token_ids).pooler_output
    return stages


def _run_qwen_tower(tower, pixels, token_ids):
    del token_ids
    (stages,) = qwen_original.run_tower(tower, [_channels_last(pixels)])
    return stages


def _run_qwen(model, pixels, token_ids):
    stages = _run_qwen_tower(model.model.visual, pixels, token_ids)
    inputs = qwen_original.inputs_of(model.config, token_ids, [*_channels_last(pixels)])
    with recording(model.model.language_model, stages, "text "):
        stages["logits"] = model(input_ids=token_ids, **inputs).logits
    return stages


def _channels_last(pixels):
    """Of pixels `[B, 3, height, width]` the images, in numpy."""
    return np.transpose(pixels.numpy(), (0, 2, 3, 1))


def _run_language_model(model, token_ids):
    stages = {}
    with recording(model.model, stages, ""):
        stages["tokens"] = model.model(input_ids=token_ids, use_cache=False).last_hidden_state
    return stages | {"logits": model.lm_head(stages["tokens"])}


def _run_llava(model, pixels, token_ids):
    """The tower at any size, and all of it where the images have the size of its tiles."""
    stages, config = {}, model.config
    tower = model.model.vision_tower
    tower = getattr(tower, "vision_model", tower)
    with recording(tower, stages, ""):
        _call_at_any_size(tower, pixels)
    depth, layer = len(stages) - 1, config.vision_feature_layer
    stages["tokens"] = stages[f"block {layer - 1 if layer > 0 else depth + layer}"]
    side = config.vision_config.image_size
    if tuple(pixels.shape[2:]) != (side, side):
        return stages
    images = {"pixel_values": pixels}
    if hasattr(config, "image_grid_pinpoints"):
        size = size_of_image(side)
        resolution = best_resolution(size, config.image_grid_pinpoints)
        num_tiles = 1 + math.prod(length // side for length in resolution)
        tiles = pixels[:, None].expand(-1, num_tiles, -1, -1, -1)
        sizes = import_torch().tensor([size] * len(pixels))
        images = {"pixel_values": tiles, "image_sizes": sizes}
    with recording(model.model.language_model, stages, "text "):
        stages["logits"] = model(input_ids=token_ids, **images).logits
    return stages


def _call_at_any_size(function, pixels, **keywords):
    """Calls a vision model; some resize their learned positions only when asked to."""
    try:
        return function(pixel_values=pixels, interpolate_pos_encoding=True, **keywords)
    except TypeError:
        return function(pixel_values=pixels, **keywords)


def _unmasking(config, pixels):
    """Keywords with which MAE, which drops patches and shuffles the others, keeps all in order."""
    if config.model_type != "vit_mae":
        return {}
    config.mask_ratio = 0.0
    num_patches = (pixels.shape[2] // config.patch_size) * (pixels.shape[3] // config.patch_size)
    return {"noise": import_torch().arange(num_patches).float().expand(len(pixels), -1)}


def _open_clip(open_clip, source):
    return open_clip_original.open_model(open_clip, source, _state_dict(source))


def _timm(timm, source):
    return timm_original.open_model(timm, source, _state_dict(source))


def _vision_transformer(timm, source):
    def run(pixels, token_ids):
        model = npz_original.open_vit(timm, source, tuple(pixels.shape[2:]))
        return timm_original.run(model, pixels)

    return run


def _big_vision(timm, source):
    text = npz_original.open_text_tower(source)

    def run(pixels, token_ids):
        tower = npz_original.open_image_tower(timm, source, tuple(pixels.shape[2:]))
        stages = timm_original.run(tower, pixels)
        stages["projected"] = stages["pooled"]
        with recording(text, stages, "text "):
            stages["text projected"] = text(token_ids).pooler_output
        return stages

    return run


_LIBRARIES = {
    "transformers": _transformers,
    "open_clip": _open_clip,
    "timm": _timm,
    "vision_transformer": _vision_transformer,
    "big_vision": _big_vision,
}
_READ_BY = {"vision_transformer": "timm", "big_vision": "timm"}  # of JAX's, what reads their files


@functools.cache
def prepare_libraries():
    """Lets the libraries be imported beside a CPU build of torch; the cache keeps what it declares.

    PyPI's torchvision is built for CUDA: beside a torch without it the compiled operators do not
    load, and their registrations fail on import. The libraries need only its Python parts.
    """
    torch = import_torch()
    library = torch.library.Library("torchvision", "DEF")
    if torch.version.cuda is None:
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor x) -> Tensor")
    return library
