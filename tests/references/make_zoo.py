"""Writes what the tests compare with: names, shapes and outputs of the original tiny models.

    python -m tests.references.make_zoo [CASE ...]

from the root of the repository, in an environment of requirements-reference.txt. A case is a folder
of `zoo/` with the config of a tiny model as its library publishes it; the weights follow from their
names (tests/zoo.py). Beside the config this writes `tensors.json` (names and shapes, as the library
saves them) and `expected.npz` (the last stages, at two sizes of images or lengths of texts).
"""

import importlib.metadata
import json
import pathlib
import sys
import tempfile

import numpy as np

from convert.files import open_tensors
from convert.layout import Source
from convert.loading import read_layout
from convert.originals import open_original, prepare_libraries
from convert.sources import find_weights, read_config
from convert.verify import name_of, random_inputs
from tests import zoo

PINNED = {  # what expected.npz was computed with
    "torch": "2.13.0+cpu",
    "transformers": "5.23.0",
    "timm": "1.0.31",
    "open_clip_torch": "3.3.0",
}
KEPT = ("tokens", "pooled", "projected", "logits", "text projected", "merged", "deepstack 0")


def save_transformers(folder, values, scratch):
    """A new model of transformers, of the class that the config names."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    getattr(transformers, values["architectures"][0])(config).save_pretrained(scratch)


def save_open_clip(folder, values, scratch):
    """A new model of open_clip."""
    import open_clip
    import safetensors.torch

    settings = dict(values["model_cfg"])
    custom = settings.pop("custom_text", False)
    model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**settings)
    safetensors.torch.save_file(model.state_dict(), scratch / "open_clip_model.safetensors")


def save_timm(values, scratch):
    """A new model of timm."""
    import safetensors.torch
    import timm

    args = {"num_classes": values["num_classes"], **values.get("model_args", {})}
    model = timm.create_model(values["architecture"], **args)
    safetensors.torch.save_file(model.state_dict(), scratch / "model.safetensors")


def save_new(folder, scratch):
    """Saves a new model of the config in `folder`, as its library does."""
    if (folder / "open_clip_config.json").is_file():
        values = json.loads((folder / "open_clip_config.json").read_text())
        save_open_clip(folder, values, scratch)
    else:
        values = json.loads((folder / "config.json").read_text())
        if "architecture" in values:
            save_timm(values, scratch)
        else:
            save_transformers(folder, values, scratch)


def computed(file) -> dict[str, np.ndarray]:
    """The last stages of a checkpoint's original, named as `zoo.expected` has them."""
    source = Source(file, read_config(file), open_tensors(file))
    layout, parsed = read_layout(file, source.tensors)
    original = open_original(layout, source)
    return {
        f"{name_of(*inputs)} {stage}": array
        for inputs in random_inputs(parsed.config)
        for stage, array in original(*inputs).items()
        if stage in KEPT
    }


def write_case(case):
    """Writes `tensors.json`, then `expected.npz` from the weights that follow from the names."""
    folder = zoo.ZOO / case
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        save_new(folder, scratch)
        tensors = open_tensors(find_weights(scratch))
        shapes = {name: list(tensors[name].shape) for name in sorted(tensors)}
        (folder / "tensors.json").write_text(json.dumps(shapes, indent=0) + "\n")
        file = find_weights(zoo.write(case, scratch / "checkpoint"))
        expected = computed(file)
    np.savez_compressed(folder / "expected.npz", **expected)
    print(case, *expected, sep=", ")


if __name__ == "__main__":
    found = {name: importlib.metadata.version(name) for name in PINNED}
    if found != PINNED:
        sys.exit(f"error: written with {PINNED}, found {found}: change PINNED to write all anew")
    prepare_libraries()
    for case in sys.argv[1:] or zoo.CASES:
        write_case(case)
