"""A model of open_clip, run stage by stage. Needs open_clip and torch."""

import functools

from convert import open_clip as open_clip_layout
from convert import timm_original
from convert.guesses import Guesses
from convert.recording import recording


def open_model(open_clip, source, state):
    """A function of pixels `[B, 3, height, width]` and token ids `[B, T]`: the stages.

    Args:
      open_clip: the library.
      source: whose config was parsed without an error.
      state: its tensors, of torch.
    """
    config = open_clip_layout.whole_config(source, Guesses(source.given))
    settings = {name: x for name, x in config["model_cfg"].items() if "custom_text" not in name}
    custom = any(name.startswith("text.") for name in source.tensors)
    model_class = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    if settings["vision_cfg"].get("timm_model_name") is not None:
        return functools.partial(_run, _with_timms_tower(model_class, settings, state))

    def run(pixels, token_ids):
        # Positions are resized when weights are loaded into a model of another size.
        vision_cfg = settings["vision_cfg"] | {"image_size": tuple(pixels.shape[2:])}
        model = model_class(**settings | {"vision_cfg": vision_cfg}).eval()
        own = {name: x for name, x in state.items() if name in model.state_dict()}
        open_clip.model.resize_pos_embed(own, model)
        model.load_state_dict(own, assign=True)
        return _run(model, pixels, token_ids)

    return run


def _with_timms_tower(model_class, settings, state):
    """A model whose tower takes images of any size, as timm has it do."""
    import timm

    model = model_class(**settings).eval()
    vision_cfg = settings["vision_cfg"]
    args = dict(img_size=vision_cfg["image_size"], num_classes=0, dynamic_img_size=True)
    model.visual.trunk = timm.create_model(vision_cfg["timm_model_name"], **args).eval()
    model.load_state_dict({name: state[name] for name in model.state_dict()}, assign=True)
    return model


def _run(model, pixels, token_ids):
    stages = {}
    tower = getattr(model.visual, "trunk", model.visual)
    if tower is not model.visual:
        pixels = timm_original.whole_patches(tower, pixels)
    with recording(tower, stages, ""):
        stages["projected"] = model.encode_image(pixels)
    text = model.text if hasattr(model, "text") else model.transformer
    with recording(text, stages, "text "):
        stages["text projected"] = model.encode_text(token_ids)
    return stages
