"""Files of torch, read without torch: the same numbers, and nothing that could run."""

import argparse
import collections
import pathlib
import pickle
import sys
import time
import zipfile

import ml_dtypes
import numpy as np
import pytest
import tiny_clip

from convert.files import open_state_dicts, open_tensors
from convert.loading import convert_checkpoint
from tests import pickled
from tests.pickled import Call, Name, Reference, refusal

WRITERS = pytest.mark.parametrize("write", [pickled.write_archive, pickled.write_legacy])
FLOATS = np.arange(24, dtype=np.float32)


@WRITERS
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int64"])
def test_tensors_are_read_as_they_were(tmp_path, write, dtype):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    arrays = {"a": FLOATS.reshape(2, 3, 4), "b": FLOATS[:0], "c": FLOATS[3:4].reshape(())}
    arrays = {name: np.array(x.astype(dtype)) for name, x in arrays.items()}
    tensors = open_tensors(write(arrays, tmp_path / "weights"))
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        read = tensors[name].read()
        assert (tensors[name].shape, tensors[name].dtype) == (array.shape, dtype.name)
        assert read.dtype == dtype
        np.testing.assert_array_equal(read, array)


@WRITERS
def test_views_of_one_storage(tmp_path, write):
    views = {
        "transposed": pickled.tensor(FLOATS, shape=(4, 6), strides=(1, 4)),
        "behind": pickled.tensor(FLOATS, shape=(2, 3), strides=(3, 1), offset=18),
        "every other": pickled.tensor(FLOATS, shape=(12,), strides=(2,)),
        "parameter": Call(
            Name("torch._utils", "_rebuild_parameter"), (pickled.tensor(FLOATS), True, {})
        ),
    }
    tensors = open_tensors(write(views, tmp_path / "weights"))
    np.testing.assert_array_equal(tensors["transposed"].read(), FLOATS.reshape(6, 4).T)
    np.testing.assert_array_equal(tensors["behind"].read(), FLOATS[18:].reshape(2, 3))
    np.testing.assert_array_equal(tensors["every other"].read(), FLOATS[::2])
    np.testing.assert_array_equal(tensors["parameter"].read(), FLOATS)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "last.ckpt", "best.pth.tar", "weights"])
def test_a_model_is_read_without_torch_whatever_the_file_is_called(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torch", None)
    arrays, values = tiny_clip.shallow_tensors(), tiny_clip.shallow_config()
    folder = tiny_clip.write(tmp_path / "source", {}, values)
    file = pickled.write_archive(arrays, folder / name)
    layout = convert_checkpoint(file)[1]
    assert (str(layout.layout), layout.num_mapped) == ("clip (transformers)", len(arrays))


class Canary:
    """A file that code in a pickle would make, and names with arguments that make it."""

    def __init__(self, folder):
        self.path = folder / "canary"
        touch = f"touch {self.path}"
        write = f"open({str(self.path)!r}, 'w')"
        self.calls = {
            "os.system": Call(Name("os", "system"), (touch,)),
            "posix.system": Call(Name("posix", "system"), (touch,)),
            "subprocess": Call(Name("subprocess", "check_call"), (["touch", str(self.path)],)),
            "eval": Call(Name("builtins", "eval"), (write,)),
            "exec of Python 2": Call(Name("__builtin__", "execfile"), (write,)),
            "open": Call(Name("builtins", "open"), (str(self.path), "w")),
            "getattr": Call(Name("builtins", "getattr"), (Name("os", "system"), "__call__")),
            "import": Call(Name("importlib", "import_module"), ("antigravity",)),
            "torch.hub": Call(Name("torch.hub", "load"), ("someone/something", "model")),
            "torch.load": Call(Name("torch", "load"), (str(self.path),)),
            "pickle in a pickle": Call(
                Name("pickle", "loads"), (pickled.dumps(Call(Name("os", "system"), (touch,))),)
            ),
            "nested": Call(
                Name("collections", "OrderedDict"),
                ([["a", Call(Name("torch._utils", "_rebuild_parameter"), (self._inner(touch),))]],),
            ),
            "a name behind a dot": Name("collections", "OrderedDict.fromkeys"),
            "a name in an attribute": pickled.namespace(x=Call(Name("os", "system"), (touch,))),
            "a whole module": Call(Name("torch.nn.modules.linear", "Linear"), (), {"a": 1}),
            "an object of a script": Call(Name("__main__", "Net"), (), {"a": 1}),
        }

    @staticmethod
    def _inner(touch):
        return Call(Name("functools", "partial"), (Name("os", "system"), touch))


@WRITERS
@pytest.mark.parametrize("which", Canary(pathlib.Path("x")).calls)
def test_code_is_refused_by_name_and_not_run(tmp_path, write, which):
    canary = Canary(tmp_path)
    file = write({"a": FLOATS, "other": canary.calls[which]}, tmp_path / "weights.pth")
    before = set(sys.modules)
    message = refusal(file)
    assert "could run code" in message and "nothing in it was run" in message
    assert not canary.path.exists() and not {"antigravity"} & (set(sys.modules) - before)


def test_the_canary_would_sing(tmp_path):
    """What the test above refuses does run in Python's own reader."""
    canary = Canary(tmp_path)
    pickle.loads(pickled.dumps(canary.calls["os.system"]))
    assert canary.path.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        pytest.param(b"(S'touch canary'\nios\nsystem\n.", id="INST"),
        pytest.param(b"(cos\nsystem\nS'touch canary'\no.", id="OBJ"),
        pytest.param(b"\x82\x01.", id="EXT1"),
        pytest.param(b"Pname\n.", id="PERSID"),
        pytest.param(b"cos\nsystem\nX\x01\x00\x00\x00a\x85\x81.", id="NEWOBJ"),
        pytest.param(b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93.", id="STACK_GLOBAL"),
        pytest.param(b"X\x01\x00\x00\x00aX\x01\x00\x00\x00b\x85R.", id="call of a text"),
        pytest.param(b"(.", id="only a mark"),
        pytest.param(b"a.", id="append to nothing"),
        pytest.param(b"}h\x07.", id="memo that is not there"),
        pytest.param(b"(u.", id="items of nothing"),
        pytest.param(b"}K\x01s.", id="half an item"),
        pytest.param(b"}r\xff\xff\xff\x7f", id="huge memo index, no end"),
        pytest.param(b"\x8d" + b"\xff" * 7 + b"\x7f", id="huge text"),
        pytest.param(b"X\xff\xff\xff\x7fa", id="long text"),
        pytest.param(b"\x8b\xff\xff\xff\x7f1.", id="long number"),
        pytest.param(b"I" + b"1" * 9999 + b"\n.", id="number of many digits"),
        pytest.param(b"\xff.", id="no opcode"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_other_opcodes_are_refused(tmp_path, opcodes):
    content = b"\x80\x02" + opcodes
    (tmp_path / "legacy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        archive.writestr("x/data.pkl", content)
    for name in ("legacy", "archive"):
        message = refusal(tmp_path / name)
        assert "is refused" in message or "not a state dict" in message


def test_structures_that_would_exhaust_a_reader_do_not(tmp_path):
    deep = b"N" + b"\x85" * 300_000  # tuples in tuples, as a key
    laugh = b"]q\x00" + b"".join(
        b"](" + bytes([104, i]) * 9 + b"eq" + bytes([i + 1]) for i in range(60)
    )
    own = b"}q\x00X\x01\x00\x00\x00ah\x00s"  # a dictionary in itself
    start = time.process_time()
    for part in (b"}" + deep + b"Ns", laugh, own):
        (tmp_path / "weights").write_bytes(b"")
        with zipfile.ZipFile(tmp_path / "weights", "w") as archive:
            archive.writestr("x/data.pkl", b"\x80\x02" + part + b".")
        assert "not a state dict" in refusal(tmp_path / "weights")
    assert time.process_time() - start < 20  # measured: 1 s


def storage(count=24, kind="FloatStorage", key="0"):
    return Reference(("storage", Name("torch", kind), key, "cpu", count))


@pytest.mark.parametrize(
    "tensor, words",
    [
        (pickled.tensor(FLOATS, shape=(2**40,), strides=(0,)), "more elements than are stored"),
        (pickled.tensor(FLOATS, shape=(5, 5), strides=(5, 1)), "beyond what is stored"),
        (pickled.tensor(FLOATS, offset=1, shape=(24,)), "beyond what is stored"),
        (pickled.tensor(FLOATS, shape=(-1,), strides=(1,)), "a tensor that is none"),
        (pickled.tensor(FLOATS, shape=(3,), strides=(-1,)), "a tensor that is none"),
        (pickled.tensor(FLOATS, shape=(3,), strides=(1, 1)), "beyond what is stored"),
        (pickled.tensor(FLOATS, shape=(True,), strides=(1,)), "a tensor that is none"),
        (pickled.tensor(FLOATS, storage(25)), "lacks numbers"),
        (pickled.tensor(FLOATS, storage(key="7")), "lacks numbers"),
        (pickled.tensor(FLOATS, storage(2**61)), "lacks numbers"),
        (pickled.tensor(FLOATS, storage(kind="QInt8Storage")), "QInt8Storage"),
        (pickled.tensor(FLOATS, "0"), "damaged"),
        (Call(Name("torch._utils", "_rebuild_tensor_v2")), "damaged"),
        (Reference(("storage", 1)), "damaged"),
    ],
    ids=str,
)
def test_tensors_that_are_not_in_the_file(tmp_path, tensor, words):
    file = pickled.write_archive({"own": FLOATS, "other": tensor}, tmp_path / "weights")
    message = refusal(file)
    assert words in message and "is refused" in message


@pytest.mark.parametrize(
    "value, words",
    [
        ([FLOATS], "not a state dict"),
        (FLOATS, "not a state dict"),
        ({}, "not a state dict"),
        ({1: FLOATS}, "not a state dict"),
        ({"a": 1}, "['a']"),
        (
            {"a": Call(Name("torch._utils", "_rebuild_meta_tensor_no_storage"), (1, 2, 3, False))},
            "not a state dict",
        ),
        (pickled.namespace(a=FLOATS), "argparse.Namespace"),
    ],
    ids=str,
)
@WRITERS
def test_what_holds_no_tensors_by_name(tmp_path, write, value, words):
    assert words in refusal(write(value, tmp_path / "weights"))


@pytest.mark.reference
@WRITERS
def test_torch_reads_what_the_tests_write(tmp_path, write):
    torch = pytest.importorskip("torch")
    value = {"a": FLOATS.reshape(4, 6), "b": FLOATS.astype(ml_dtypes.bfloat16)}
    value |= {"args": pickled.namespace(lr=0.1), "metric": pickled.numpy_scalar(0.5)}
    found = torch.load(write(value, tmp_path / "weights"), weights_only=False)
    np.testing.assert_array_equal(found["a"].numpy(), value["a"])
    np.testing.assert_array_equal(found["b"].float().numpy(), FLOATS)
    assert (found["args"].lr, found["metric"]) == (0.1, 0.5)


@pytest.mark.reference
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_a_script_of_torch_saves_is_read(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(5, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    state = model.state_dict()
    average = {name: x.clone().T if x.ndim == 2 else x for name, x in state.items()}
    saved = {
        "model": model.state_dict(),
        "ema": {"state_dict": average},
        "parameters": dict(model.named_parameters()),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "args": argparse.Namespace(lr=0.1, folder=pathlib.Path("x"), device=torch.device("cpu")),
        "random": torch.get_rng_state(),
        "metrics": {"best": np.float64(0.5), "all": np.arange(3), "shape": torch.Size([3])},
        "counts": collections.Counter("aab"),
        "seen": {1, 2},
        "version": torch.__version__,
    }
    torch.save(saved, tmp_path / "weights", _use_new_zipfile_serialization=zipped)
    found = open_state_dicts(tmp_path / "weights")
    expected = {"model": saved["model"], "ema.state_dict": average}
    expected |= {"parameters": saved["parameters"], "": {"random": saved["random"]}}
    assert found.dicts.keys() == expected.keys()
    for place, tensors in expected.items():
        assert found.dicts[place].keys() == tensors.keys()
        for name, tensor in tensors.items():
            read = found.dicts[place][name].read()
            np.testing.assert_array_equal(read, tensor.detach().numpy())
