"""Small files made to exhaust who reads them, or to be read beyond their end: one line each."""

import itertools
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from convert.__main__ import main
from convert.errors import ConversionError
from convert.files import open_state_dicts, open_tensors
from convert.state_dicts import StateDicts, choose
from convert.tensors import Tensor
from tests import pickled, training_files, zoo
from tests.pickled import refusal

FLOATS = np.arange(24, dtype=np.float32)
TEXT = b"X\x01\x00\x00\x00a"
DEEP = b"N" + b"\x85" * 9999  # tuples in tuples
# Lists of nine times the list before: 9^8 of them where it is written out.
LAUGH = (
    b"](e"
    + b"q\x00"
    + b"".join(b"](" + bytes([104, i]) * 9 + b"eq" + bytes([i + 1]) for i in range(8))
)
SUBCLASS = b"ctorch._tensor\n_rebuild_from_type_v2\nq\x01"


def write_pickle(file, opcodes):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + opcodes + b".")
    return file


@pytest.fixture
def few_megabytes():
    """Fails a test that takes more memory than reading small files needs: 1.2 MB, measured."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e6


@pytest.mark.parametrize(
    "opcodes, words",
    [
        pytest.param(DEEP + TEXT + b"\x93", "no name", id="a deep module"),
        pytest.param(TEXT + DEEP + b"\x93", "no name", id="a deep name"),
        pytest.param(LAUGH + TEXT + b"\x93", "no name", id="a module without end"),
        pytest.param(
            SUBCLASS + b"(h\x01N" * 2000 + b")" + b"Nt" * 2000 + b"R", "calls itself", id="itself"
        ),
        pytest.param(
            b"cbuiltins\nset\nq\x01(" + b"N" * 65 + b"tR", "no arguments", id="many arguments"
        ),
        pytest.param(b"(" + b"N" * 7 + b"tQ", "a storage that is none", id="a long reference"),
        pytest.param(  # a list of 3,000, asked for 3,000 times
            b"ctorch\nSize\nq\x01](" + b"N" * 3000 + b"eq\x02(" + b"h\x01h\x02\x85R" * 3000 + b"t",
            "not a state dict",
            id="one size again and again",
        ),
        pytest.param(
            b"ccollections\nOrderedDict\nq\x01)N\x86q\x03]("
            + b"h\x03" * 1000
            + b"eq\x02("
            + b"h\x01h\x02\x85R" * 1000
            + b"t",
            "not a state dict",
            id="one dictionary again and again",
        ),
    ],
)
def test_pickles_that_would_never_end_or_fill_the_memory(tmp_path, few_megabytes, opcodes, words):
    assert words in refusal(write_pickle(tmp_path / "weights", opcodes))


@pytest.mark.parametrize(
    "shape, strides",
    [
        pytest.param((1,) * 65, (1,) * 65, id="more axes than arrays have"),
        pytest.param((2**61,) * 9999, (0,) * 9999, id="a product of many digits"),
        pytest.param((2**61, 2**61, 0), (1, 1, 1), id="empty and huge"),
    ],
)
def test_shapes_that_no_array_has(tmp_path, shape, strides):
    tensor = pickled.tensor(FLOATS, shape=shape, strides=strides)
    file = pickled.write_archive({"a": tensor}, tmp_path / "weights")
    assert "a tensor that is none" in refusal(file)


def test_a_member_that_is_longer_than_its_archive(tmp_path):
    file = pickled.write_archive({"a": FLOATS}, tmp_path / "weights")
    content = file.read_bytes()
    entry = content.rindex(b"archive/byteorder") - 46  # in the directory at the end
    sizes = struct.pack("<II", 10**6, 10**6)
    file.write_bytes(content[: entry + 20] + sizes + content[entry + 28 :])
    assert "is refused: damaged" in refusal(file)


@pytest.mark.parametrize(
    "header",
    [
        pytest.param("-" * 9000 + "1", id="signs"),
        pytest.param("(" * 9000, id="parentheses"),
        pytest.param("{[]: 1}", id="a list as a key"),
        pytest.param("{3: 4, 'descr': '<f4', 'shape': (1,)}", id="a number as a key"),
        pytest.param("{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}", id="a bool"),
        pytest.param("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", id="negative"),
        pytest.param("{'descr': '<f4', 'fortran_order': False, 'shape': (9**99,)}", id="a power"),
    ],
)
def test_headers_of_no_array_of_numpy(tmp_path, header):
    with zipfile.ZipFile(tmp_path / "weights", "w") as archive:
        content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
        archive.writestr("a.npy", content)
    assert "damaged, or no .npz" in refusal(tmp_path / "weights")


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    """Its tensors are views, which do not know where the numbers read end."""
    file = pickled.write_archive({"a": FLOATS}, tmp_path / "weights")
    tensor = open_tensors(file)["a"]
    file.write_bytes(file.read_bytes()[: file.read_bytes().index(FLOATS.tobytes()) + 40])
    with pytest.raises(ConversionError, match="ends before its numbers"):
        tensor.read()


def test_dictionaries_with_one_long_name_around_them(tmp_path, few_megabytes):
    inside = {f"{i}": {"a": 1, "b": FLOATS} for i in range(200)}
    file = pickled.write_archive({"x" * 100_000: inside, "own": FLOATS}, tmp_path / "weights")
    assert open_state_dicts(file).dicts.keys() == {""}


def test_names_of_wrappers_without_end(few_megabytes):
    tensor = Tensor((), "float32", None)
    names = ["model." * 9999 + "a", *map(".".join, itertools.product(["net", "ema"], repeat=9))]
    found = StateDicts({"": dict.fromkeys(names, tensor)})
    assert choose(found, lambda names: "nothing" in names, "file").tensors.keys() == {*names}


def test_what_a_terminal_would_obey_is_not_printed(tmp_path, capsys):
    tensors = training_files.prefixed("backbone.", zoo.original_dinov2("dinov2_hf"))
    tensors |= {"\x1b[2J": FLOATS, "x" * 9999: FLOATS}
    file = pickled.write_archive(tensors, tmp_path / "weights.pth")
    assert main([str(file), str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "not under backbone." in line]
    assert out.replace("\n", "").isprintable() and len(line) < 500
    assert r"'\x1b[2J'" in line
