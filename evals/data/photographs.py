"""Photographs that ship inside packages: settings are chosen on one half, shown on the other.

Everyday scenes come first, then space, microscopes, textures and print, as many of each in both.
"""

import importlib.util
import pathlib

_SKIMAGE = "skimage/data/{}"  # those that its package holds, without a download
_SKLEARN = "sklearn/datasets/images/{}"
_MATPLOTLIB = "matplotlib/mpl-data/sample_data/{}"
HALVES = {
    "report": (
        _SKLEARN.format("china.jpg"),
        _SKIMAGE.format("coffee.png"),
        _SKIMAGE.format("chelsea.png"),
        _MATPLOTLIB.format("grace_hopper.jpg"),
        _SKIMAGE.format("motorcycle_left.png"),
        _SKIMAGE.format("coins.png"),
        _SKIMAGE.format("hubble_deep_field.jpg"),
        _SKIMAGE.format("retina.jpg"),
        _SKIMAGE.format("cell.png"),
        _SKIMAGE.format("brick.png"),
        _SKIMAGE.format("page.png"),
    ),
    "choose": (
        _SKIMAGE.format("rocket.jpg"),
        _SKLEARN.format("flower.jpg"),
        _SKIMAGE.format("camera.png"),
        _SKIMAGE.format("astronaut.png"),
        _SKIMAGE.format("clock_motion.png"),
        _SKIMAGE.format("grass.png"),
        _SKIMAGE.format("moon.png"),
        _SKIMAGE.format("microaneurysms.png"),
        _SKIMAGE.format("ihc.png"),
        _SKIMAGE.format("gravel.png"),
        _SKIMAGE.format("text.png"),
    ),
}


def photographs(half) -> list[pathlib.Path]:
    """The files of a half.

    Raises:
      ValueError: another half, or a package that is missing or has lost one.
    """
    if half not in HALVES:
        raise ValueError(f"--config.half must be one of {', '.join(HALVES)}, got {half!r}")
    return [_file(name) for name in HALVES[half]]


def _file(name):
    package, _, rest = name.partition("/")
    spec = importlib.util.find_spec(package)  # which does not import it
    folders = spec.submodule_search_locations if spec else ()
    files = (pathlib.Path(folder) / rest for folder in folders)
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise ValueError(
            f"the photograph {name} is not installed: pip install -r requirements-pretrained.txt"
        )
    return found
