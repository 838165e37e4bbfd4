"""Tiny checkpoints of every layout: config and names as published, weights made from the names."""

import json
import pathlib
import shutil
import zlib

import numpy as np
import safetensors.numpy
from flax import nnx

from convert.verify import name_of, random_inputs, stages
from tests.conftest import rel_max_error

ZOO = pathlib.Path(__file__).parent / "references" / "zoo"
CASES = sorted(folder.name for folder in ZOO.iterdir())
LANGUAGE = {"llama_hf", "mistral_hf", "qwen2_hf", "qwen3_hf"}  # which read no images
EVERYDAY = (  # beside which the others are further spellings, and tried by -m slow
    *("clip_hf", "clip_open_clip", "dinov2_registers_hf", "dinov3_hf", "siglip_hf"),
    *("vit_timm_gap", "llava_hf", "qwen3_hf", "qwen3_vl_hf", "vjepa2_classifier_hf"),
)
CONFIGS = ("config.json", "open_clip_config.json")
_TO_ORIGINAL = {  # of DINOv2
    "dinov2_with_registers.": "",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.": "",
    "encoder.layer": "blocks",
    "layernorm": "norm",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.weights_in": "mlp.w12",
    "mlp.weights_out": "mlp.w3",
}


def random_weight(name, shape) -> np.ndarray:
    """Float32 of a tensor, always the same: scales near 1 for norms, otherwise small numbers."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    value = 0.2 * rng.standard_normal(shape)
    is_scale = len(shape) == 1 and not name.endswith("bias")
    return np.asarray(value + is_scale, np.float32)


def tensors(case) -> dict[str, np.ndarray]:
    """All tensors of a case, by the names that the original library writes."""
    shapes = json.loads((ZOO / case / "tensors.json").read_text())
    return {name: random_weight(name, shape) for name, shape in shapes.items()}


def write(case, folder) -> pathlib.Path:
    """The case's checkpoint in a new folder, as a user would have it."""
    folder.mkdir(parents=True)
    for name in CONFIGS:
        if (ZOO / case / name).is_file():
            shutil.copy(ZOO / case / name, folder)
    prefix = "open_clip_" if (folder / "open_clip_config.json").is_file() else ""
    safetensors.numpy.save_file(tensors(case), folder / f"{prefix}model.safetensors")
    return folder


def renamed(arrays, names) -> dict[str, np.ndarray]:
    """Tensors with parts of their names replaced, in order."""

    def rename(name):
        for old, new in names.items():
            name = name.replace(old, new)
        return name

    return {rename(name): array for name, array in arrays.items()}


def original_dinov2(case) -> dict[str, np.ndarray]:
    """The tensors of a case as the authors' file has them: query, key and value fused."""
    arrays = renamed(tensors(case), _TO_ORIGINAL)
    arrays = {name: x for name, x in arrays.items() if not name.startswith("classifier.")}
    for name in [name for name in arrays if ".attention.attention.query." in name]:
        parts = [arrays.pop(name.replace("query", x)) for x in ("query", "key", "value")]
        arrays[name.replace("attention.attention.query", "attn.qkv")] = np.concatenate(parts)
    return arrays


def assert_same_leaves(model, other, rtol=0):
    """That two models have leaves by the same paths, with the same numbers."""
    leaves, others = (dict(nnx.to_flat_state(nnx.state(x))) for x in (model, other))
    assert leaves.keys() == others.keys()
    for path, leaf in leaves.items():
        np.testing.assert_allclose(leaf[...], others[path][...], rtol, err_msg=str(path))


def assert_computes(model, expected, bound):
    """That a model has all the expected stages on the inputs of `verify`, to less than `bound`."""
    compared = set()
    for inputs in random_inputs(model.config):
        for stage, actual in stages(model, *inputs).items():
            name = f"{name_of(*inputs)} {stage}"
            if name in expected:
                assert rel_max_error(actual, expected[name]) < bound, name
                compared.add(name)
    assert compared == expected.keys()


def expected(case) -> dict[str, np.ndarray]:
    """Stages of the original, named "height×width stage", or "7 tokens stage" without images."""
    with np.load(ZOO / case / "expected.npz") as arrays:
        return dict(arrays)
