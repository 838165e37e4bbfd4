"""Bad checkpoints: one line that names the value, exit status 1, nothing left behind."""

import json
import struct

import numpy as np
import pytest
import safetensors.numpy
import tiny_clip

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
LOGIT = "logit_scale"


def change_config(source, change):
    values = tiny_clip.shallow_config()
    change(values)
    (source / "config.json").write_text(json.dumps(values))


def change_tensors(source, change):
    arrays = tiny_clip.shallow_tensors()
    change(arrays)
    safetensors.numpy.save_file(arrays, source / WEIGHTS)


CONFIGS = [
    (lambda c: c.update(model_type="swin"), ["'swin'", "clip (transformers)"]),
    (lambda c: c.update(model_type=["clip"]), ["model_type", "['clip']"]),
    (lambda c: c.pop("model_type"), ["neither a model_type nor"]),
    (lambda c: c.update(model_type="clip_vision_model"), ["clip_vision_model", "CLIPModel"]),
    (lambda c: c.update(model_type="clip_text_model"), ["clip_text_model", "CLIPModel"]),
    (lambda c: c["vision_config"].update(hidden_act="relu"), ["'relu'", "quick_gelu"]),
    (lambda c: c["text_config"].update(hidden_act=None), ["text_config.hidden_act", "None"]),
    (lambda c: c["text_config"].update(hidden_size="32"), ["text_config.hidden_size", "'32'"]),
    (lambda c: c["text_config"].update(hidden_size=True), ["hidden_size", "True"]),
    (lambda c: c["text_config"].update(layer_norm_eps=0), ["layer_norm_eps", "got 0"]),
    (lambda c: c["text_config"].update(layer_norm_eps=float("nan")), ["layer_norm_eps", "nan"]),
    (lambda c: c["text_config"].update(eos_token_id=[98]), ["eos_token_id", "[98]"]),
    (lambda c: c["text_config"].update(eos_token_id=-1), ["eos_token_id", "-1"]),
    (lambda c: c["text_config"].update(num_attention_heads=0), ["num_attention_heads", "got 0"]),
    (lambda c: c["text_config"].update(num_attention_heads=5), ["32", "5 heads"]),
    (lambda c: c["vision_config"].update(patch_size=5), ["image_size 32", "patch_size 5"]),
    (lambda c: c["vision_config"].update(num_channels=4), ["num_channels", "got 4"]),
    (lambda c: c["vision_config"].update(hidden_size=10**30), ["hidden_size", "1048576"]),
    (lambda c: c["vision_config"].update(num_hidden_layers=10**9), ["num_hidden_layers", "128"]),
    (lambda c: c["vision_config"].update(num_hidden_layers=128), ["is missing", "more"]),
    (lambda c: c["vision_config"].update(num_hidden_layers=2), ["16 problems", "layers.1."]),
    (lambda c: c["vision_config"].update(image_size=64), ["[65, 32]", "[257, 32]"]),
    (lambda c: c.update(vision_config=[]), ["vision_config", "[]"]),
    (lambda c: c.update(projection_dim=23), ["2 problems", "[24, 32]", "[23, 32]"]),
    (lambda c: c.update(text_config_dict={"hidden_size": 50}), ["50", "8 heads"]),  # it wins
]


@pytest.mark.parametrize("change, words", CONFIGS)
def test_config_values(source, refused, change, words):
    change_config(source, change)
    message = refused(source)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "content, word",
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[1]", "[1]"),
        (b"\xff\xfe", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'{"model_type": ' + b"1" * 5000 + b"}", "JSON"),
    ],
)
def test_config_files(source, refused, content, word):
    (source / "config.json").write_bytes(content)
    assert word in refused(source)


TENSORS = [
    (lambda t: t.pop(LOGIT), ["logit_scale is missing"]),
    (lambda t: t.update(extra=np.zeros(1)), ["'extra' is unknown"]),
    (lambda t: t.update({"\x1b[31m\nred": np.zeros(1)}), [r"'\x1b[31m\nred' is unknown"]),
    (lambda t: t.update({"x" * 9999: np.zeros(1)}), ["xxx...xxx"]),
    (lambda t: t.update({LOGIT: np.zeros(1, np.float32)}), ["logit_scale is [1], expected []"]),
    (lambda t: t.update({LOGIT: np.zeros((), int)}), ["logit_scale is 'I64'", "float32"]),
    (lambda t: t.update({LOGIT: np.zeros(())}), ["logit_scale is 'F64'"]),
    (lambda t: t.update({f"extra{i}": np.zeros(1) for i in range(99)}), ["99 problems", "89 more"]),
    (lambda t: (t.pop(LOGIT), t.update(b=np.zeros(1))), ["2 problems", "missing", "'b' is unk"]),
    (lambda t: t.clear(), ["problems"]),
    # as a CLIPVisionModel of transformers 5 would be
    (
        lambda t: [t.update({name[13:]: t.pop(name)}) for name in [*t] if name[:7] == "vision_"],
        [
            "vision_model.embeddings.class_embedding is missing",
            "'embeddings.class_embedding' is un",
        ],
    ),
]


@pytest.mark.parametrize("change, words", TENSORS)
def test_tensors_that_do_not_fit(source, refused, change, words):
    change_tensors(source, change)
    message = refused(source)
    for word in words:
        assert word in message
    assert len(message) < 2000


def header_of(entries, body=b"\0" * 16):
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + body


def entry(begin, end, shape=(4,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\0" * 7, id="no header length"),
        pytest.param(struct.pack("<Q", 2**63) + b"{}", id="huge header"),
        pytest.param(struct.pack("<Q", 99) + b"{}", id="header beyond the file"),
        pytest.param(header_of({"a": entry(0, 32)}), id="offsets beyond the file"),
        pytest.param(header_of({"a": entry(16, 0)}), id="offsets backwards"),
        pytest.param(header_of({"a": entry(0, 16), "b": entry(0, 16)}), id="overlap"),
        pytest.param(header_of({"a": entry(0, 16, [5])}), id="shape larger than its bytes"),
        pytest.param(header_of({"a": entry(0, 16, [2**62, 2**62])}), id="shape overflows"),
        pytest.param(header_of({"a": entry(0, 8, [2])}), id="bytes left over"),
        pytest.param(header_of({"a": entry(0, 16, dtype="F33")}), id="unknown dtype"),
        pytest.param(header_of([1]), id="not an object"),
        pytest.param(b"PK\x03\x04" + b"\0" * 60, id="a zip file"),
    ],
)
def test_damaged_safetensors(source, refused, content):
    (source / WEIGHTS).write_bytes(content)
    assert "is damaged, or not safetensors" in refused(source)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.9999])
def test_truncated_safetensors(source, refused, keep):
    content = (source / WEIGHTS).read_bytes()
    (source / WEIGHTS).write_bytes(content[: int(keep * len(content))])
    assert WEIGHTS in refused(source)


@pytest.fixture
def shards(tmp_path):
    arrays, values = tiny_clip.shallow_tensors(), tiny_clip.shallow_config()
    return tiny_clip.write_shards(tmp_path / "shards", arrays, values)


@pytest.mark.parametrize(
    "name",
    ["../source/model.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", ".", 3, None]
    + ["a\\b.safetensors", "nul\0.safetensors", "model.bin", INDEX, "absent.safetensors"],
)
def test_shards_are_plain_names_of_files_beside_the_index(shards, source, refused, name):
    index = json.loads((shards / INDEX).read_text())
    index["weight_map"][LOGIT] = name
    (shards / INDEX).write_text(json.dumps(index))
    message = refused(shards)
    assert INDEX in message and repr(name) in message


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"weight_map": []}', '{"weight_map": {}}'])
def test_damaged_index(shards, refused, content):
    (shards / INDEX).write_text(content)
    assert INDEX in refused(shards)


def test_an_index_and_shards_that_disagree(shards, refused):
    index = json.loads((shards / INDEX).read_text())
    file = index["weight_map"].pop(LOGIT)
    index["weight_map"]["other"] = file
    (shards / INDEX).write_text(json.dumps(index))
    message = refused(shards)
    assert f"{file} lacks 'other'" in message
    assert f"{file} holds 'logit_scale', not in the index" in message


def test_an_index_that_names_itself(shards, refused):
    index = shards / "own.index.json"
    index.write_text(json.dumps({"weight_map": {LOGIT: index.name}}))
    assert "not a kind of weights" in refused(index)


def test_no_config_beside_the_weights(source, refused):
    (source / "config.json").unlink()
    assert "config.json" in refused(source)
    assert "config.json" in refused(source / WEIGHTS)


def test_no_weights_in_the_directory(source, refused):
    (source / WEIGHTS).rename(source / "other.safetensors")
    message = refused(source)
    assert WEIGHTS in message and "pytorch_model.bin" in message


def test_an_unknown_kind_of_file(source, refused):
    file = source / "weights.h5"
    file.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 99)
    message = refused(file)
    assert "weights.h5" in message and "not a kind of weights that is known" in message
