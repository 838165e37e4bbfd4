"""LoRA adapters that peft makes and saves here and now: merged, they compute what peft's do."""

import json

import numpy as np
import pytest

import convert
from convert.originals import prepare_libraries
from tests import zoo

pytestmark = pytest.mark.reference


@pytest.fixture(scope="module")
def peft():
    pytest.importorskip("torch")
    prepare_libraries()
    pytest.importorskip("transformers")
    return pytest.importorskip("peft")


SETTINGS = [
    dict(target_modules=["q_proj", "v_proj"]),
    dict(target_modules=["k_proj", "fc2"], use_rslora=True, modules_to_save=["classifier"]),
    dict(target_modules=["q_proj"], rank_pattern={"1.*q_proj": 2}, alpha_pattern={"q_proj": 9}),
    dict(target_modules=["o_proj", "fc1"], modules_to_save=["classifier"]),
]


@pytest.mark.filterwarnings(  # peft 0.21 asks transformers 5.24 for it
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("safe", [True, False])
def test_a_merged_model_computes_what_pefts_does(peft, tmp_path, settings, safe):
    import torch
    import transformers

    folder = zoo.write("vit_hf", tmp_path / "source")
    original = transformers.ViTForImageClassification.from_pretrained(folder)
    torch.manual_seed(0)
    model = peft.get_peft_model(original, peft.LoraConfig(r=3, lora_alpha=5, **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name or parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval().save_pretrained(tmp_path / "adapter", safe_serialization=safe)
    assert (tmp_path / "adapter" / "adapter_model.bin").exists() != safe
    images = zoo.random_weight("images", (2, 32, 32, 3))
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        expected = model(pixels, interpolate_pos_encoding=True).logits.numpy()
        merged = model.merge_and_unload()(pixels, interpolate_pos_encoding=True).logits.numpy()
    ours = convert.load_pretrained(folder, adapter=tmp_path / "adapter")
    actual = np.asarray(ours.classify(images))
    without = np.asarray(convert.load_pretrained(folder).classify(images))
    scale = np.max(np.abs(expected))
    assert np.max(np.abs(actual - expected)) < 1e-5 * scale  # measured: 1.6e-7 to 3.9e-7
    assert np.max(np.abs(actual - merged)) < 1e-5 * scale  # measured: 2.3e-7 to 4.0e-7
    assert np.max(np.abs(without - expected)) > 1e-2 * scale  # measured: 0.07 to 0.31


def test_a_fused_layer_of_timm_is_merged_as_peft_does(peft, tmp_path):
    import timm
    import torch

    folder = zoo.write("vit_timm", tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    args = {"num_classes": config["num_classes"], **config["model_args"]}
    original = timm.create_model(config["architecture"], **args)
    arrays = zoo.tensors("vit_timm")
    original.load_state_dict({name: torch.from_numpy(x) for name, x in arrays.items()})
    settings = dict(target_modules=["qkv", "fc1"], init_lora_weights=False)
    model = peft.get_peft_model(original, peft.LoraConfig(r=3, lora_alpha=5, **settings))
    model.eval().save_pretrained(tmp_path / "adapter")
    images = zoo.random_weight("images", (2, args["img_size"], args["img_size"], 3))
    with torch.no_grad():
        expected = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    ours = convert.load_pretrained(folder, adapter=tmp_path / "adapter")
    error = np.max(np.abs(np.asarray(ours.classify(images)) - expected))
    assert error < 1e-5 * np.max(np.abs(expected))  # measured: 3.2e-7
