"""Google's `.npz` against timm's reader of it, and transformers with the same numbers."""

import numpy as np
import pytest

import convert
from convert.originals import prepare_libraries
from convert.verify import BOUND, verify
from tests import npz
from tests.conftest import random_images, rel_max_error

pytestmark = pytest.mark.reference


@pytest.fixture(scope="module")
def torch():
    module = pytest.importorskip("torch")
    prepare_libraries()
    return module


def of_file(case):
    arrays = npz.tensors(case.removesuffix(" stacked"))
    return npz.stacked(npz.stacked(arrays, "img"), "txt") if "stacked" in case else arrays


@pytest.mark.parametrize("case", [*npz.CASES, "siglip stacked"])
def test_every_stage_agrees(torch, tmp_path, case):
    pytest.importorskip("timm")
    comparisons = verify(npz.write(of_file(case), tmp_path / "weights.npz"))
    assert len({c.inputs for c in comparisons}) == 2
    assert {"embeddings", "block 1", "tokens"} < {c.stage for c in comparisons}
    for comparison in comparisons:
        assert comparison.error < BOUND / 10, comparison  # 1.1e-6 measured
        assert comparison.cosine > 1 - 1e-6, comparison


# By the names of transformers' SigLIP, read from the end of big_vision's.
TOWERS = {"vision_model": ("img", "Transformer"), "text_model": ("txt", "Encoder_0")}
REST = {
    "logit_scale": "t",
    "logit_bias": "b",
    "vision_model.embeddings.patch_embedding": "img/embedding",
    "vision_model.embeddings.position_embedding": "img/pos_embedding",
    "vision_model.head.probe": "img/MAPHead_0/probe",
    "vision_model.head.attention.out_proj": "img/MAPHead_0/MultiHeadDotProductAttention_0/out",
    "vision_model.head.layernorm": "img/MAPHead_0/LayerNorm_0",
    "vision_model.head.mlp.fc1": "img/MAPHead_0/MlpBlock_0/Dense_0",
    "vision_model.head.mlp.fc2": "img/MAPHead_0/MlpBlock_0/Dense_1",
    "vision_model.post_layernorm": "img/Transformer/encoder_norm",
    "text_model.embeddings.token_embedding": "txt/Embed_0/embedding",
    "text_model.embeddings.position_embedding": "txt/pos_embedding",
    "text_model.final_layer_norm": "txt/Encoder_0/encoder_norm",
    "text_model.head": "txt/head",
}
PARTS = {
    "layer_norm1": "LayerNorm_0",
    "layer_norm2": "LayerNorm_1",
    "q_proj": "MultiHeadDotProductAttention_0/query",
    "k_proj": "MultiHeadDotProductAttention_0/key",
    "v_proj": "MultiHeadDotProductAttention_0/value",
    "out_proj": "MultiHeadDotProductAttention_0/out",
    "fc1": "MlpBlock_0/Dense_0",
    "fc2": "MlpBlock_0/Dense_1",
}


def as_transformers(arrays, name, shape):
    """The numbers of one of transformers' tensors."""
    stem, _, leaf = name.rpartition(".")
    if leaf.startswith("in_proj_"):  # query, key and value of the pooling head
        source = "params/img/MAPHead_0/MultiHeadDotProductAttention_0"
        parts = [
            f"{source}/{x}/{leaf[8:].replace('weight', 'kernel')}"
            for x in ("query", "key", "value")
        ]
        parts = [arrays[part] for part in parts]
        width = shape[-1]
        return np.concatenate([x.reshape(width, -1).T if x.ndim > 2 else x.ravel() for x in parts])
    if ".layers." in name:
        tower, _, _, number, *_, part = stem.split(".")
        source = "/".join((*TOWERS[tower], f"encoderblock_{number}", PARTS[part]))
    else:
        source = REST.get(name) or REST[stem]
    for ending in ("", f"/{leaf}", "/kernel", "/scale"):
        if (array := arrays.get(f"params/{source}{ending}")) is not None:
            break
    if ending != "/kernel" or leaf == "bias":
        return array.reshape(shape)
    if array.shape[:2] == shape[2:]:  # the convolution
        return array.transpose(3, 2, 0, 1)
    joined = array.reshape(shape[::-1])
    return joined.T


def test_logits_are_those_of_transformers_with_the_same_numbers(torch, tmp_path):
    transformers = pytest.importorskip("transformers")
    arrays = npz.tensors("siglip")
    tower = dict(num_hidden_layers=2, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)
    vision = dict(hidden_size=40, num_attention_heads=4, intermediate_size=80)
    text = dict(hidden_size=24, num_attention_heads=3, intermediate_size=60, projection_size=40)
    text |= dict(bos_token_id=0, eos_token_id=0)
    config = transformers.SiglipConfig(
        vision_config=tower | vision | dict(image_size=32, patch_size=8),
        text_config=tower | text | dict(vocab_size=99, max_position_embeddings=16),
    )
    original = transformers.SiglipModel(config).eval()
    state = {
        name: torch.from_numpy(np.array(as_transformers(arrays, name, tuple(x.shape))))
        for name, x in original.state_dict().items()
    }
    original.load_state_dict(state)
    images, token_ids = random_images(height=32, width=32), np.arange(48).reshape(3, 16)
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        expected = original(torch.from_numpy(token_ids), pixels).logits_per_image.numpy()
    file = npz.write(arrays, tmp_path / "weights.npz")
    model = convert.load_pretrained(file, patch_grid=(4, 4))
    logits = model.logits(model.encode_image(images), model.encode_text(token_ids))
    assert rel_max_error(logits, expected) < 5e-6  # 3e-7 measured
