"""Which model families there are, and their configs to and from plain dictionaries."""

import dataclasses
import difflib
import typing

import jax
from flax import nnx

from . import (
    clip,
    decoder,
    dinov2,
    dinov3,
    llava,
    llava_variants,
    plain_vit,
    qwen_vision,
    qwen_vl,
    siglip,
    siglip_vision,
    vjepa2,
)
from .vit import VisionTower


@dataclasses.dataclass(frozen=True)
class Family:
    """A model class, the class of its config, and its named configs."""

    model: type[nnx.Module]
    config: type
    variants: dict[str, typing.Any]


FAMILIES = {
    "clip": Family(clip.CLIP, clip.CLIPConfig, clip.VARIANTS),
    "decoder": Family(decoder.Decoder, decoder.DecoderConfig, decoder.VARIANTS),
    "dinov2": Family(dinov2.DINOv2, dinov2.DINOv2Config, dinov2.VARIANTS),
    "dinov3": Family(dinov3.DINOv3, dinov3.DINOv3Config, dinov3.VARIANTS),
    "llava": Family(llava.LLaVA, llava.LLaVAConfig, llava_variants.VARIANTS),
    "qwen3_vl": Family(qwen_vl.QwenVL, qwen_vl.QwenVLConfig, qwen_vl.VARIANTS),
    "qwen3_vl_vision": Family(
        qwen_vision.QwenVision, qwen_vision.QwenVisionConfig, qwen_vision.VARIANTS
    ),
    "siglip": Family(siglip.SigLIP, siglip.SigLIPConfig, siglip.VARIANTS),
    "siglip_vision": Family(
        siglip_vision.SigLIPVisionModel,
        siglip_vision.SigLIPVisionModelConfig,
        siglip_vision.VARIANTS,
    ),
    "vit": Family(plain_vit.ViT, plain_vit.ViTConfig, plain_vit.VARIANTS),
    "vjepa2": Family(vjepa2.VJEPA2, vjepa2.VJEPA2Config, vjepa2.VARIANTS),
}


def list_models() -> list[str]:
    """Names that `create` knows."""
    return sorted(name for family in FAMILIES.values() for name in family.variants)


def create(name, *, rngs, **overrides) -> nnx.Module:
    """A model with random weights.

    Args:
      name: one of `list_models()`.
      rngs: an `nnx.Rngs`.
      **overrides: fields of the config to replace; for a nested config a dictionary of its fields,
        as in `create("clip-vit-b-32", rngs=nnx.Rngs(0), vision={"encoder": {"depth": 4}})`.

    Raises:
      ValueError: an unknown name or field, with the nearest known one, or a bad value.
    """
    family, config = published(name)
    return family.model(override(config, overrides), rngs=rngs)


def published(name) -> tuple[Family, typing.Any]:
    """The family and the config of a model that `create` knows.

    Raises:
      ValueError: an unknown name, with the nearest known one.
    """
    for family in FAMILIES.values():
        if name in family.variants:
            return family, family.variants[name]
    raise ValueError(f"unknown model {name!r}{did_you_mean(name, list_models())}")


class _NoRandomness:
    """Stands in for `nnx.Rngs` where only shapes are asked for.

    A counter that is traced makes each use dearer than the one before: minutes for deep models.
    """

    def params(self):
        return jax.random.key(0)


def abstract_model(model_class, config) -> nnx.Module:
    """A model whose leaves are shapes and dtypes without memory."""
    return nnx.eval_shape(lambda: model_class(config, rngs=_NoRandomness()))


def family_of(model) -> str:
    """The name of a model's family; raises TypeError for a model that is not from this zoo."""
    for name, family in FAMILIES.items():
        if type(model) is family.model:
            return name
    raise TypeError(f"{type(model).__name__} is not one of the models: {', '.join(FAMILIES)}")


def vision_tower(model) -> VisionTower:
    """The vision tower of a model, which may be all of it.

    Raises:
      TypeError: a model that is not from this zoo.
      ValueError: a language model, which has none.
    """
    family_of(model)
    vision_config(model.config)
    return getattr(model, "vision", model)


def has_vision(config) -> bool:
    """Whether a model of this config has a vision tower."""
    return hasattr(config, "vision") or hasattr(config, "patch_size")


def vision_config(config):
    """Of a model's config the part for the vision tower, with `patch_size` and `encoder`.

    Raises:
      ValueError: that of a language model, which has none.
    """
    if not has_vision(config):
        raise ValueError(
            f"a model of {type(config).__name__} reads text alone and has no vision tower: take "
            "one that reads images"
        )
    return getattr(config, "vision", config)


def override(config, changes: dict):
    """`config` with some fields replaced; a dictionary changes fields of a nested config."""
    hints = typing.get_type_hints(type(config))
    _refuse_unknown(changes, hints, config)
    fields = {
        name: override(getattr(config, name), change)
        if isinstance(change, dict) and dataclasses.is_dataclass(hints[name])
        else _of_type(hints[name], change, f"{type(config).__name__}.{name}")
        for name, change in changes.items()
    }
    return dataclasses.replace(config, **fields)


def config_from_dict(config_class, values: dict):
    """The inverse of `dataclasses.asdict`, strict: every field known, of its type, and present
    unless it has a default.

    Raises:
      ValueError: an unknown or missing field, or a value of another type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{config_class.__name__} must be an object, got {values!r}")
    hints = typing.get_type_hints(config_class)
    _refuse_unknown(values, hints, config_class)
    required = [f.name for f in dataclasses.fields(config_class) if f.default is f.default_factory]
    if missing := [name for name in required if name not in values]:
        raise ValueError(f"{config_class.__name__} lacks {', '.join(missing)}")
    fields = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            fields[name] = config_from_dict(hints[name], value)
        else:
            fields[name] = _of_type(hints[name], value, f"{config_class.__name__}.{name}")
    return config_class(**fields)


def _of_type(hint, value, name):
    """`value` if it is of the type; True and False are no integers here, and lists are tuples."""
    if typing.get_origin(hint) is tuple:
        return _tuple_of(hint, value, name)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{name} must be {getattr(hint, '__name__', hint)}, got {value!r}")
    return value


def _tuple_of(hint, value, name):
    """A tuple of the types, as in `tuple[int, int]` or `tuple[int, ...]`, of a list or a tuple."""
    hints = typing.get_args(hint)
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} must be a list, got {value!r}")
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(value)
    if len(hints) != len(value):
        raise ValueError(f"{name} must be a list of {len(hints)}, got {value!r}")
    return tuple(_of_type(*pair, name) for pair in zip(hints, value))


def did_you_mean(name, choices) -> str:
    """A clause to end an error message with: the nearest choice, and all of them."""
    near = difflib.get_close_matches(str(name), [str(choice) for choice in choices], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{hint} Known: {', '.join(map(str, choices))}"


def _refuse_unknown(values, known, config):
    for name in values:
        if name not in known:
            owner = config.__name__ if isinstance(config, type) else type(config).__name__
            raise ValueError(f"{owner} has no field {name!r}{did_you_mean(name, list(known))}")
