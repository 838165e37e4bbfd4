"""Files as training leaves them: which weights are taken, from under which names, what is said."""

import argparse
import json
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy

import models
from convert.__main__ import main
from convert.errors import ConversionError
from convert.guesses import Given
from convert.loading import convert_checkpoint, read_checkpoint
from convert.originals import prepare_libraries
from convert.state_dicts import StateDicts, View, choose
from convert.tensors import Tensor
from convert.verify import BOUND, verify
from tests import pickled, training_files, zoo
from tests.training_files import chunked, prefixed


@pytest.fixture(scope="module")
def tensors():
    """Of the authors' DINOv2, two blocks deep."""
    return zoo.original_dinov2("dinov2_hf")


@pytest.fixture(scope="module")
def average(tensors):
    """Of another state of the same model."""
    return {name: x + 1 for name, x in tensors.items()}


def read(file, **given):
    """The checkpoint, as it is before any model is made of it."""
    return read_checkpoint(file, given=Given(**given))


def assert_holds(checkpoint, tensors):
    """That all the tensors, and no others, are those given."""
    assert checkpoint.view.tensors.keys() == tensors.keys()
    for name, tensor in checkpoint.view.tensors.items():
        np.testing.assert_array_equal(tensor.read(), tensors[name], err_msg=name)


TRAINED = {  # what is taken, and from where in the file
    "mae": (training_files.mae, None, "model", ""),
    "deit": (training_files.deit, "model", "model", ""),
    "timm": (training_files.timm, "state_dict", "state_dict", ""),
    "dino": (training_files.dino, "teacher", "teacher", "backbone."),
    "dinov2 teacher": (training_files.dinov2_teacher, None, "teacher", "backbone."),
    "dinov2 trainer": (training_files.dinov2_trainer, "teacher", "model", "teacher.backbone."),
    "lightning": (training_files.lightning, None, "state_dict", "model."),
}


@pytest.mark.parametrize("write", [pickled.write_archive, pickled.write_legacy])
@pytest.mark.parametrize("which", TRAINED)
def test_the_weights_are_found_among_what_training_saves(tmp_path, tensors, average, write, which):
    make, weights, place, prefix = TRAINED[which]
    file = write(make(tensors, average), tmp_path / "checkpoint")
    checkpoint = read(file, weights=weights)
    assert_holds(checkpoint, tensors)
    assert (checkpoint.view.place, checkpoint.view.prefix) == (place, prefix)
    assert str(checkpoint.layout) == "dinov2 (original)"


@pytest.mark.parametrize(
    "which, names",
    [
        ("deit", ["'model' (", "'model_ema' ("]),
        ("timm", ["'state_dict' (", "'state_dict_ema' ("]),
        ("dino", ["'student.module.backbone' (", "'teacher.backbone' ("]),
        ("dinov2 trainer", ["'model.student.backbone' (", "'model.teacher.backbone' ("]),
    ],
)
def test_of_several_the_error_lists_names_and_sizes(
    tmp_path, tensors, average, refused, which, names
):
    file = pickled.write_archive(TRAINED[which][0](tensors, average), tmp_path / "checkpoint.pth")
    message = refused(file)
    numbers = sum(x.size for x in tensors.values())
    assert f"({len(tensors)} tensors, {numbers:,} numbers)" in message
    assert all(name in message for name in names) and "--weights NAME" in message
    for name in names:  # what is listed can be given
        assert_holds_one_of(file, name.split("'")[1], tensors, average)
    message = refused(file, "--weights", "swa")
    assert "weights 'swa' is the name of none" in message
    assert all(name in message for name in names)


def assert_holds_one_of(file, weights, tensors, average):
    found = read(file, weights=weights).view.tensors["pos_embed"].read()
    assert any(np.array_equal(found, x["pos_embed"]) for x in (tensors, average))


def test_a_part_of_several_names_chooses_none(tmp_path, tensors, average, refused):
    file = pickled.write_archive(
        training_files.dinov2_trainer(tensors, average), tmp_path / "checkpoint.pth"
    )
    assert "weights 'backbone' is the name of several" in refused(file, "--weights", "backbone")


def test_the_report_says_what_was_taken_and_what_was_left(tmp_path, tensors, average, capsys):
    file = pickled.write_archive(
        training_files.dinov2_teacher(tensors, average) | {"iteration": 7, "args": {}},
        tmp_path / "teacher_checkpoint.pth",
    )
    assert main([str(file), str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "weights     'teacher', beside 'iteration', 'args'" in lines
    assert f"prefix      backbone. taken off {len(tensors)} names" in lines
    assert "blocks      without the numbers of the chunks that they were trained in" in lines
    assert (
        "ignored     dino_head.last_layer.weight_v, ibot_head.last_layer.weight_v: "
        "not under backbone., which was read"
    ) in lines
    zoo.assert_same_leaves(models.load(tmp_path / "out"), convert_plain(tensors, tmp_path))


def convert_plain(tensors, folder):
    """The model of tensors that were published."""
    safetensors.numpy.save_file(tensors, folder / "plain.safetensors")
    model, report = convert_checkpoint(folder / "plain.safetensors")
    assert report.view == View(report.view.tensors)  # nothing was taken off or left out
    return model


PREFIXES = [
    *("module.", "_orig_mod.", "backbone.", "base_model.model.", "module._orig_mod."),
    *("_orig_mod.module.", "model.backbone.", "_fsdp_wrapped_module.module.", "encoder."),
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("case", ["dinov2_hf", "clip_open_clip", "vit_timm", "dinov3_hf"])
def test_prefixes_of_all_names_are_taken_off(tmp_path, case, prefix):
    tensors = zoo.tensors(case)
    folder = zoo.write(case, tmp_path / "source")
    (file,) = folder.glob("*.safetensors")
    safetensors.numpy.save_file(prefixed(prefix, tensors), file)
    checkpoint = read(folder)
    assert_holds(checkpoint, tensors)
    view = checkpoint.view
    said = {*view.prefix.split("."), *view.wrappers}
    assert (said, view.left_out) == ({*prefix.split(".")}, ())


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_checkpoint_wrapped_module"])
def test_wrappers_of_single_blocks_are_taken_off(tmp_path, tensors, wrapper):
    wrapped = zoo.renamed(tensors, {"blocks.0.": f"blocks.0.{wrapper}."})
    assert_holds(read(pickled.write_archive(wrapped, tmp_path / "weights")), tensors)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_blocks_in_chunks(tmp_path, tensors, size):
    checkpoint = read(pickled.write_archive(chunked(tensors, size), tmp_path / "weights"))
    assert_holds(checkpoint, tensors)
    assert checkpoint.view.in_chunks


def test_chunks_whose_blocks_are_counted_anew_are_not_guessed_at(tmp_path, tensors, refused):
    anew = zoo.renamed(tensors, {"blocks.1.": "blocks.1.0.", "blocks.0.": "blocks.0.0."})
    anew = zoo.renamed(anew, {"blocks.1.0.0.": "blocks.1.0."})
    assert "cannot be told" in refused(pickled.write_archive(anew, tmp_path / "weights.pth"))


def test_where_names_fit_as_they_are_no_prefix_is_taken_off():
    names = ("a", "model.a", "encoder.b", "encoder.model.b")
    tensors = {name: Tensor((), "float32", None) for name in names}
    found = StateDicts({"": tensors})
    assert choose(found, lambda names: "a" in names, "file").tensors.keys() == tensors.keys()
    view = choose(found, lambda names: "b" in names, "file")
    assert (view.prefix, view.tensors.keys()) == ("encoder.", {"b", "model.b"})
    assert view.left_out == ("a", "model.a")


def test_other_prefixes_are_no_wrappers(tmp_path, tensors, refused):
    """What they stand for is for the person to say: here a language model with a vision tower."""
    file = pickled.write_archive(prefixed("vision_tower.", tensors), tmp_path / "weights.pth")
    assert "cannot be told" in refused(file)


def test_what_does_not_fit_under_a_prefix_is_named_without_it(tmp_path, tensors, refused):
    short = {name: x for name, x in tensors.items() if name != "norm.bias"}
    file = pickled.write_archive(prefixed("module.", short), tmp_path / "weights.pth")
    assert "norm.bias is missing" in refused(file)


@pytest.mark.parametrize("name", ["a.ckpt", "a.pth.tar", "a", "a.h5", "a.pth", "a.safetensors.bak"])
def test_the_content_decides_what_a_file_is(tmp_path, tensors, name):
    writers = {
        "torch": lambda file: pickled.write_archive(tensors, file),
        "legacy": lambda file: pickled.write_legacy(tensors, file),
        "safetensors": lambda file: safetensors.numpy.save_file(tensors, file),
        "numpy": lambda file: shutil.copy(_npz(tensors, tmp_path), file),
    }
    for kind, write in writers.items():
        (tmp_path / kind).mkdir()
        write(tmp_path / kind / name)
        assert_holds(read(tmp_path / kind / name), tensors)


def _npz(tensors, folder) -> pathlib.Path:
    np.savez(folder / "arrays.npz", **tensors)
    return folder / "arrays.npz"


def test_a_config_from_elsewhere(tmp_path, refused, capsys):
    folder = zoo.write("vit_hf", tmp_path / "source")
    config = (folder / "config.json").rename(tmp_path / "published.json")
    file = pickled.write_archive(prefixed("model.", zoo.tensors("vit_hf")), tmp_path / "last.ckpt")
    assert "--config FILE" in refused(file)
    assert "cannot be read as JSON" in refused(file, "--config", str(tmp_path / "none.json"))
    assert main([str(file), str(tmp_path / "out"), "--config", str(config)]) == 0
    assert "config.json copied" in capsys.readouterr().out
    copied = (tmp_path / "out" / "config.json").read_text()
    assert copied == config.read_text()
    expected = read(folder, config=config).parsed.config
    assert models.load(tmp_path / "out").config == expected


def test_an_epoch_of_open_clip_with_its_config(tmp_path):
    folder = zoo.write("clip_open_clip", tmp_path / "source")
    tensors = zoo.tensors("clip_open_clip")
    file = pickled.write_archive(training_files.open_clip(tensors, None), tmp_path / "epoch_2.pt")
    checkpoint = read(file, config=folder / "open_clip_config.json")
    assert_holds(checkpoint, tensors)
    assert checkpoint.parsed == read(folder).parsed


def test_a_config_of_what_says_it_all_is_refused(tmp_path, refused):
    (tmp_path / "a.onnx").write_bytes(b"")
    (tmp_path / "config.json").write_text("{}")
    message = refused(tmp_path / "a.onnx", "--config", str(tmp_path / "config.json"))
    assert "drop --config" in message


@pytest.mark.parametrize(
    "names, words",
    [
        ({"weight": 1, "bias": 1}, ["none fits", "--config FILE"]),
        ({"visual.conv1.weight": 1, "vision_model.head.probe": 1}, ["several", "--family NAME"]),
        ({"vision_model.head.probe": 1}, ["siglip_vision (transformers)", "--config FILE"]),
    ],
)
def test_where_the_family_is_open_the_message_says_what_helps(tmp_path, refused, names, words):
    arrays = {name: np.ones(size, np.float32) for name, size in names.items()}
    message = refused(pickled.write_archive(arrays, tmp_path / "weights.pth"))
    assert all(word in message for word in words)


def test_heads_are_what_a_vit_of_any_width_lacks(tmp_path, refused):
    folder = zoo.write("vit_timm", tmp_path / "source")
    published = read(folder).parsed.config
    (folder / "config.json").unlink()
    assert "--heads N says how many" in refused(folder)
    config = read(folder, heads=published.encoder.num_heads, pool=published.pool).parsed.config
    assert config == published


def test_nothing_is_chosen_where_there_is_one(tmp_path, tensors, refused):
    file = pickled.write_archive(tensors, tmp_path / "weights.pth")
    assert "weights 'ema' is the name of none" in refused(file, "--weights", "ema")
    with pytest.raises(ConversionError, match="weights"):
        read(file, weights=3)


@pytest.mark.reference
def test_what_training_left_is_verified_as_what_it_holds(tmp_path):
    pytest.importorskip("torch")
    folder = zoo.write("vit_timm", tmp_path / "source")
    tensors = zoo.tensors("vit_timm")
    other = {name: x + 1 for name, x in tensors.items()}
    file = pickled.write_archive(training_files.timm(other, tensors), tmp_path / "last.pth.tar")
    given = Given(weights="state_dict_ema", config=folder / "config.json")
    assert max(comparison.error for comparison in verify(file, given=given)) < BOUND / 10
    model = convert_checkpoint(file, given=given)[0]
    zoo.assert_same_leaves(model, convert_checkpoint(folder)[0])


HF_CASES = [x for x in zoo.CASES if "_hf" in x and x.startswith(("clip", "dino", "siglip", "vit"))]


@pytest.mark.reference
@pytest.mark.parametrize("case", HF_CASES)
def test_state_dicts_of_transformers_are_read_as_they_are_in_memory(tmp_path, case):
    """`state_dict()`, which training saves, has other names than what `save_pretrained` writes."""
    torch = pytest.importorskip("torch")
    prepare_libraries()
    transformers = pytest.importorskip("transformers")
    folder = zoo.write(case, tmp_path / "source")
    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    model = getattr(transformers, architecture).from_pretrained(folder)
    state = prefixed("net.", model.state_dict())
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=0.1)}, tmp_path / "last.ckpt")
    given = Given(config=folder / "config.json")
    found, report = convert_checkpoint(tmp_path / "last.ckpt", given=given)
    expected = convert_checkpoint(folder)[0]
    assert (report.view.prefix, report.view.place) == ("net.", "state_dict")
    zoo.assert_same_leaves(found, expected)
