"""Sentences that say a class in words, with `{}` for its name."""

import os
import pathlib

from evals.data.texts import read_lines

DEFAULT_TEMPLATES = ("a photo of a {}.",)

# The 80 that CLIP's authors published for ImageNet (Radford et al., arXiv 2103.00020).
IMAGENET_TEMPLATES = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)


def read_templates(setting) -> tuple[str, ...]:
    """The templates that a config asks for.

    Args:
      setting: None for `DEFAULT_TEMPLATES`, or a tuple of templates; or, alone or as the only one
        of a tuple, "imagenet" or a text file with a template per line.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a template without a place for the name, or none; a file that is not UTF-8.
    """
    if setting is None:
        return DEFAULT_TEMPLATES
    setting = (setting,) if isinstance(setting, str) else tuple(setting)
    if len(setting) == 1 and "{}" not in setting[0]:
        setting = _named(setting[0])
    check_templates(setting)
    return setting


def _named(name):
    if name == "imagenet":
        return IMAGENET_TEMPLATES
    file = pathlib.Path(os.path.expanduser(name))
    if not file.is_file():
        raise FileNotFoundError(
            f"--config.templates: {name!r} is no file, and no template without {{}} where the "
            "class name goes; give 'imagenet', a text file with a template per line, or templates"
        )
    return tuple(read_lines(file))


def check_templates(templates) -> None:
    """Raises ValueError for a template without a place for the name, or none."""
    if unnamed := [template for template in templates if "{}" not in template]:
        raise ValueError(f"a template needs {{}} where the class name goes, got {unnamed[0]!r}")
    if not templates:
        raise ValueError("zero-shot classification needs at least one template")
