"""Decoders against transformers here and now: logits, and texts of 64 tokens."""

import json

import jax
import numpy as np
import pytest

import convert
from models.generation import generate
from models.inputs.chat import load_chat
from tests.conftest import rel_max_error
from tests.models.inputs.test_chat import CHATML, DIALOGUE, INST, folder  # noqa: F401 - a fixture
from tests.models.tiny_decoders import run

pytestmark = pytest.mark.reference

BOUND = 1e-5  # measured: 2e-6
NUM_NEW = 64
SIZES = dict(
    vocab_size=48,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=96,
)
LLAMA3 = dict(
    rope_type="llama3",
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=24,
)
MODELS = {
    "llama": ("Llama", {}),
    "vicuna, linear": ("Llama", dict(rope_scaling={"type": "linear", "factor": 4.0})),
    "llama, dynamic": ("Llama", dict(rope_scaling={"type": "dynamic", "factor": 4.0})),
    "llama 3": ("Llama", dict(rope_scaling=LLAMA3, rope_theta=500.0, num_key_value_heads=2)),
    "mistral 0.1": ("Mistral", dict(sliding_window=11, num_key_value_heads=2)),
    "mistral 0.2": ("Mistral", dict(sliding_window=None, rope_theta=1e6, num_key_value_heads=1)),
    "qwen2": ("Qwen2", dict(num_key_value_heads=2, tie_word_embeddings=True, rope_theta=1e6)),
    "qwen2, own head": ("Qwen2", dict(num_key_value_heads=4)),
    "qwen3": ("Qwen3", dict(num_key_value_heads=2, head_dim=16, tie_word_embeddings=True)),
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_texts_are_those_of_transformers(transformers, tmp_path, name):
    import torch

    kind, settings = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES | settings)
    original = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():  # the initial biases are 0, scales 1, and the logits nearly equal
        for parameter in original.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    original.save_pretrained(tmp_path / "new")
    model = convert.load_pretrained(tmp_path / "new")

    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 48, (3, 30))
    real = np.arange(30) >= np.array([[0], [13], [29]])
    inputs = dict(
        input_ids=torch.from_numpy(tokens), attention_mask=torch.from_numpy(real.astype(int))
    )
    with torch.no_grad():
        expected = original(**inputs).logits.numpy()
        # Without a token that ends the text.
        original.generation_config.eos_token_id = None
        texts = original.generate(
            **inputs, max_new_tokens=NUM_NEW, do_sample=False, pad_token_id=0
        )[:, 30:]
    _, logits, _ = run(model, tokens, real)
    assert rel_max_error(logits[real], expected[real]) < BOUND
    new = generate(model, model.embed(tokens), real, max_new_tokens=NUM_NEW)
    np.testing.assert_array_equal(new, texts)

    values = json.loads((tmp_path / "new" / "config.json").read_text())
    del values["rope_parameters"]  # as transformers 4 wrote it
    values |= {"rope_theta": settings.get("rope_theta", 10000.0)}
    values |= {"rope_scaling": settings.get("rope_scaling")}
    assert convert.hf_decoder.parse_decoder("config.json", values).config == model.config


@pytest.mark.parametrize("template", [CHATML, INST], ids=["chatml", "inst"])
def test_dialogues_and_tokens_are_those_of_transformers(transformers, folder, template):  # noqa: F811
    (folder / "chat_template.jinja").write_text(template)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    chat = load_chat(folder, vocab_size=11)
    expected = theirs.apply_chat_template(DIALOGUE, tokenize=False, add_generation_prompt=True)
    assert chat.prompt(DIALOGUE) == expected
    texts = ["count the sevens", "two", "a user"]
    tokens, key_mask = chat.encode(texts)
    for row, real, text in zip(tokens, key_mask, texts):
        assert row[real].tolist() == theirs(text)["input_ids"]
    assert chat.decode(tokens) == theirs.batch_decode(tokens, skip_special_tokens=True)


def test_bfloat16_is_as_near_as_theirs(transformers, tmp_path):
    import torch

    torch.manual_seed(0)
    config = transformers.Qwen2Config(**SIZES, num_key_value_heads=2)
    original = transformers.Qwen2ForCausalLM(config).eval()
    original.save_pretrained(tmp_path / "new")
    tokens = np.random.default_rng(0).integers(0, 48, (2, 30))
    exact, low = (convert.load_pretrained(tmp_path / "new", dtype=x) for x in (None, "bfloat16"))
    ones = np.ones((2, 30), bool)
    with torch.no_grad():
        theirs = original.bfloat16()(torch.from_numpy(tokens)).logits.float().numpy()
    expected, ours = (run(model, tokens, ones)[1] for model in (exact, low))
    assert rel_max_error(ours, expected) < 1.5 * rel_max_error(theirs, expected)
    assert jax.tree.leaves(low.embed(tokens))[0].dtype == "bfloat16"
