"""The original PyTorch model of a checkpoint, run stage by stage. Needs torch and its library.

Stages are arrays by name: "embeddings", "block 0" and so on, "tokens", "pooled", "projected" and
"logits" where a model has them; those of a text tower begin with "text ".
"""

import contextlib
import functools
import json

import numpy as np

from convert.errors import ConversionError, one_line
from convert.layout import Layout, Source


def import_torch():
    """The module; raises ConversionError with the remedy."""
    try:
        import torch
    except ImportError:
        raise ConversionError(
            "the original models need torch: pip install -r requirements-reference.txt"
        ) from None
    return torch


def original_stages(layout: Layout, source: Source, images, token_ids) -> dict[str, np.ndarray]:
    """What the original library computes of images `[B, height, width, 3]` and token_ids `[B, T]`.

    Raises:
      ConversionError: the library is not installed, or cannot read this checkpoint.
    """
    torch = import_torch()
    if (run := _LIBRARIES.get(layout.library)) is None:
        raise ConversionError(f"no installed library reads {layout}: nothing to compare with")
    pixels = torch.from_numpy(np.ascontiguousarray(np.transpose(images, (0, 3, 1, 2))))
    prepare_libraries()
    try:
        with torch.no_grad():
            stages = run(source, pixels, torch.from_numpy(np.asarray(token_ids, np.int64)))
    except ImportError as error:
        raise ConversionError(
            f"{layout.library} cannot be imported ({one_line(error)}): "
            "pip install -r requirements-reference.txt"
        ) from None
    return {name: np.asarray(value.float()) for name, value in stages.items()}


def _transformers(source, pixels, token_ids):
    import transformers

    classes = [getattr(transformers, name, None) for name in source.config.get("architectures", ())]
    model_class = next(filter(None, classes), transformers.AutoModel)
    model = model_class.from_pretrained(source.file.parent, dtype="float32").eval()
    stages = {}
    # The base_model of DINOv3 is its blocks without what embeds.
    embeds = hasattr(model, "embeddings")
    vision = model if embeds else getattr(model, "vision_model", model.base_model)
    if model.config.model_type == "vit":
        vision.pooler = None  # no part of what is converted
    keywords = _unmasking(model.config, pixels)
    with _recording(vision, stages, ""):
        output = _call_at_any_size(vision, pixels, **keywords)
    stages |= _vision_outputs(output)
    if hasattr(model, "classifier"):
        stages["logits"] = _call_at_any_size(model, pixels).logits
    if hasattr(model, "text_model"):
        stages["projected"] = _call_at_any_size(model.get_image_features, pixels).pooler_output
        with _recording(model.text_model, stages, "text "):
            stages["text projected"] = model.get_text_features(token_ids).pooler_output
    return stages


def _vision_outputs(output):
    names = {"last_hidden_state": "tokens", "pooler_output": "pooled"}
    return {name: output[key] for key, name in names.items() if output.get(key) is not None}


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


def _open_clip(source, pixels, token_ids):
    import open_clip

    settings = json.loads(json.dumps(source.config["model_cfg"]))
    native = settings["vision_cfg"]["image_size"]
    size = tuple(pixels.shape[2:])
    settings["vision_cfg"]["image_size"] = size if size != (native, native) else native
    custom = any(name.startswith("text.") for name in source.tensors)
    model_class = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    for name in ("custom_text", "force_custom_text"):
        settings.pop(name, None)
    model = model_class(**settings).eval()
    open_clip.load_checkpoint(model, str(source.file))
    stages = {}
    with _recording(model.visual, stages, ""):
        stages["projected"] = model.encode_image(pixels)
    with _recording(model.text if custom else model.transformer, stages, "text "):
        stages["text projected"] = model.encode_text(token_ids)
    return stages


def _timm(source, pixels, token_ids):
    import timm

    from convert.timm_vit import config_of

    values = config_of(source.tensors) if source.config is None else source.config
    args = {"num_classes": values["num_classes"], **values.get("model_args", {})}
    args["dynamic_img_size"] = True
    model = timm.create_model(values["architecture"], **args).eval()
    as_torch = lambda x: import_torch().from_numpy(np.asarray(x.read(), np.float32))
    model.load_state_dict({name: as_torch(source.tensors[name]) for name in model.state_dict()})
    stages = {}
    with _recording(model, stages, ""):
        stages["tokens"] = model.forward_features(pixels)
    stages["pooled"] = model.forward_head(stages["tokens"], pre_logits=True)
    if values["num_classes"]:
        stages["logits"] = model.forward_head(stages["tokens"])
    return stages


_LIBRARIES = {"transformers": _transformers, "open_clip": _open_clip, "timm": _timm}


@contextlib.contextmanager
def _recording(tower, stages, prefix):
    """Records the input of a tower's first block and the output of each, by forward hooks."""
    torch = import_torch()
    lists = [module for module in tower.modules() if isinstance(module, torch.nn.ModuleList)]
    blocks = tower.blocks if hasattr(tower, "blocks") else max(lists, key=len)

    def state(value):
        return value[0] if isinstance(value, tuple) else value

    def record_output(i):
        def hook(module, inputs, output):
            stages[f"{prefix}block {i}"] = state(output)

        return hook

    def record_input(module, inputs, keywords):
        stages[f"{prefix}embeddings"] = state(inputs) if inputs else keywords["hidden_states"]

    handles = [blocks[0].register_forward_pre_hook(record_input, with_kwargs=True)]
    handles += [block.register_forward_hook(record_output(i)) for i, block in enumerate(blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
