"""Which kind of file a file is, by its content; archives of torch and of numpy."""

import zipfile

import numpy as np
import pytest

from convert.files import open_tensors
from tests import pickled
from tests.pickled import refusal

FLOATS = np.arange(24, dtype=np.float32)


@pytest.mark.parametrize(
    "options, members, words",
    [
        ({"compression": zipfile.ZIP_DEFLATED}, [], "compressed"),
        ({"order": "big"}, [], "big-endian"),
        ({}, ["other/data.pkl"], "an archive that is not torch's"),
        ({}, ["archive/constants.pkl", "archive/code/model.py"], "TorchScript"),
    ],
)
def test_archives_that_are_not_state_dicts_of_torch(tmp_path, options, members, words):
    file = pickled.write_archive({"a": FLOATS}, tmp_path / "weights", **options)
    with zipfile.ZipFile(file, "a") as archive:
        for name in members:
            archive.writestr(name, "raise SystemExit")
    assert words in refusal(file)


def test_arrays_of_numpy(tmp_path):
    arrays = {"a/b": FLOATS.reshape(4, 6), "c": FLOATS[:1].reshape(()).astype(np.float16)}
    for save in (np.savez, np.savez_compressed):
        with open(tmp_path / "weights", "wb") as file:
            save(file, **arrays)
        tensors = open_tensors(tmp_path / "weights")
        for name, array in arrays.items():
            assert (tensors[name].shape, tensors[name].dtype) == (array.shape, array.dtype.name)
            np.testing.assert_array_equal(tensors[name].read(), array)
    canary = tmp_path / "canary"
    np.savez(tmp_path / "objects.npz", a=np.array([Bomb(canary)], object))
    assert "objects.npz" in refusal(tmp_path / "objects.npz")
    assert not canary.exists()


class Bomb:
    """Touches a file when it is unpickled by anything that runs code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"{}", b"a" * 99]
)
def test_content_of_no_known_kind(tmp_path, content):
    (tmp_path / "weights.pth").write_bytes(content)
    assert "is refused" in refusal(tmp_path / "weights.pth")
