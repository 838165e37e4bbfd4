"""All layouts that can be converted, and which of them a checkpoint has."""

from convert import (
    clip,
    dinov2,
    dinov3,
    dinov3_original,
    hf_decoder,
    hf_vit,
    llava,
    npz_siglip,
    npz_vit,
    onnx_dinov2,
    open_clip,
    open_clip_siglip,
    qwen_vision,
    qwen_vl,
    siglip,
    timm_dinov2,
    timm_dinov3,
    timm_siglip,
    timm_vit,
    vjepa2,
)
from convert.errors import ConversionError, show
from convert.layout import Layout
from convert.timm_fields import UNREAD

LAYOUTS: tuple[Layout, ...] = (
    clip.LAYOUT,
    open_clip.LAYOUT,
    dinov2.LAYOUT,
    dinov2.ORIGINAL,
    timm_dinov2.LAYOUT,
    dinov3.LAYOUT,
    dinov3_original.LAYOUT,
    timm_dinov3.LAYOUT,
    siglip.LAYOUT,
    open_clip_siglip.LAYOUT,
    siglip.VISION_LAYOUT,
    timm_siglip.LAYOUT,
    npz_siglip.LAYOUT,
    hf_vit.LAYOUT,
    timm_vit.LAYOUT,
    npz_vit.LAYOUT,
    hf_decoder.LAYOUT,
    llava.LAYOUT,
    qwen_vision.LAYOUT,
    qwen_vl.LAYOUT,
    vjepa2.LAYOUT,
)
ONNX_LAYOUTS: tuple[Layout, ...] = (onnx_dinov2.LAYOUT,)
FAMILIES = tuple(dict.fromkeys(layout.family for layout in LAYOUTS))

_WHICH = "--family NAME says which, or --config FILE, the config.json that they were published with"
_NONE = (
    "If they are of one of these under other names, --config FILE, the config.json that they were "
    "published with, tells which names are missing"
)
_SAFETENSORS = "Get the weights as safetensors, with their config.json: other models are read so"


def find_layout(values: dict | None, names, family=None, *, among=LAYOUTS) -> Layout:
    """The layout of a checkpoint.

    Args:
      values: its config, or None where there is none.
      names: of its tensors.
      family: to consider only this one, whatever the config calls itself.
      among: `LAYOUTS`, or `ONNX_LAYOUTS` for an ONNX file.

    Raises:
      ConversionError: none or several; the message lists what was considered.
    """
    layouts = considered(values, family, among=among)
    if len(layouts) > 1 or among is ONNX_LAYOUTS:
        layouts = [layout for layout in layouts if layout.has_keys(names)]
    if len(layouts) != 1:
        fit = f"several fit: {', '.join(map(str, layouts))}"
        none = f"none fits: {', '.join(map(str, among))}"
        raise ConversionError(
            f"the family cannot be told from the names of the tensors; {fit if layouts else none}. "
            + (_SAFETENSORS if among is ONNX_LAYOUTS else _WHICH if layouts else _NONE)
        )
    if values is None and layouts[0].needs_config:
        raise ConversionError(
            f"the names of the tensors are those of {layouts[0]}, whose weights can be read only "
            "with the config.json that they were published with: put it beside them, or "
            "say where it is with --config FILE"
        )
    return layouts[0]


def considered(values: dict | None, family=None, *, among=LAYOUTS) -> list[Layout]:
    """The layouts that a checkpoint may have by its config, or all; errors as for `find_layout`."""
    if family is not None and family not in FAMILIES:
        raise ConversionError(f"family must be one of {', '.join(FAMILIES)}, got {show(family)}")
    layouts = [layout for layout in among if family in (None, layout.family)]
    if values is None:
        return layouts
    _refuse_relatives(values, layouts)
    described = [layout for layout in layouts if layout.describes(values)]
    if not described and family is None:
        raise _not_described(values)
    return described or layouts


def _refuse_relatives(values, layouts):
    model_type = values.get("model_type")
    for layout in layouts:
        if isinstance(model_type, str) and model_type in layout.refused:
            raise ConversionError(
                f"model_type {model_type!r} is not supported: {layout.refused[model_type]}"
            )


def _not_described(values):
    """The error for a config of no family: names what it says of itself, and what is known."""
    for beginning, why in UNREAD.items():
        if str(values.get("architecture")).startswith(beginning):
            return ConversionError(
                f"architecture {show(values['architecture'])} is not supported: {why}"
            )
    for field in ("model_type", "architecture"):
        if field in values:
            return ConversionError(
                f"{field} {show(values[field])} is of no family that is known: "
                f"{', '.join(map(str, LAYOUTS))}; --family forces one"
            )
    return ConversionError(
        "the config names neither a model_type nor an architecture; known are "
        f"{', '.join(map(str, LAYOUTS))}; --family forces one"
    )
