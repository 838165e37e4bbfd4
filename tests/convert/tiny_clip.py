"""The golden tiny CLIP as raw material: its tensors and config, changed and written anew."""

import json
import pathlib

import numpy as np
import safetensors.numpy

REFERENCE = pathlib.Path(__file__).parents[1] / "references" / "clip_tiny"
VISION_IDS = "vision_model.embeddings.position_ids"
TEXT_IDS = "text_model.embeddings.position_ids"


def tensors() -> dict[str, np.ndarray]:
    """As transformers 4.51.3 wrote them."""
    return safetensors.numpy.load_file(REFERENCE / "model.safetensors")


def position_ids() -> dict[str, np.ndarray]:
    """The buffers of versions before 4.31."""
    return {VISION_IDS: np.arange(65)[None], TEXT_IDS: np.arange(16)[None]}


def shallow_tensors() -> dict[str, np.ndarray]:
    """One block in each tower: quick to convert."""
    deeper = [f".layers.{i}." for i in (1, 2, 3)]
    return {name: x for name, x in tensors().items() if not any(part in name for part in deeper)}


def config() -> dict:
    return json.loads((REFERENCE / "config.json").read_text())


def shallow_config() -> dict:
    values = config()
    for tower in ("text_config", "vision_config"):
        values[tower]["num_hidden_layers"] = 1
    return values


def write(folder, arrays, values) -> pathlib.Path:
    """A checkpoint of one safetensors file."""
    folder.mkdir(exist_ok=True)
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def write_shards(folder, arrays, values, count=3) -> pathlib.Path:
    """A checkpoint of several files and their index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    weight_map = {}
    for i in range(count):
        shard = {name: arrays[name] for name in sorted(arrays)[i::count]}
        file = f"model-{i + 1:05}-of-{count:05}.safetensors"
        safetensors.numpy.save_file(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
