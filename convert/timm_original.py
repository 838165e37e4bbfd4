"""A model of timm, run stage by stage. Needs timm and torch."""

from convert import timm_dinov2, timm_dinov3, timm_siglip, timm_vit
from convert.guesses import Guesses
from convert.recording import recording

_MODULES = (timm_dinov2, timm_dinov3, timm_siglip, timm_vit)


def open_model(timm, source, state):
    """A function of pixels `[B, 3, height, width]`, and token ids without use: the stages.

    Args:
      timm: the library.
      source: whose config was parsed without an error.
      state: its tensors, of torch.
    """
    (module,) = (x for x in _MODULES if x.LAYOUT.has_keys(source.tensors))
    values = source.config
    if values is None:
        values = module.config_of(source.tensors, Guesses(source.given))
    args = values.get("model_args", {}) | {"num_classes": values["num_classes"]}
    architecture = module.NAMES.today(values["architecture"])
    model = timm.create_model(architecture, **args, dynamic_img_size=True).eval()
    model.load_state_dict({name: state[name] for name in model.state_dict()}, assign=True)
    pools = module is not timm_dinov3
    return lambda pixels, token_ids: run(model, whole_patches(model, pixels), pools)


def run(model, pixels, pools=True):
    """The stages; `pools` tells whether timm pools as the model here does."""
    stages = {}
    with recording(model, stages, ""):
        stages["tokens"] = model.forward_features(pixels)
    if pools:
        stages["pooled"] = model.forward_head(stages["tokens"], pre_logits=True)
    if model.num_classes:
        stages["logits"] = model.forward_head(stages["tokens"])
    return stages


def whole_patches(model, pixels):
    """Without the pixels beyond the last whole patch, which its convolution does not see.

    timm refuses them in a model that takes images of any size.
    """
    sides = zip(pixels.shape[2:], model.patch_embed.patch_size)
    height, width = (side // patch * patch for side, patch in sides)
    return pixels[:, :, :height, :width]
