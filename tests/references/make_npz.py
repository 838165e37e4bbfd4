"""Writes what the tests of Google's `.npz` compare with: names, shapes and outputs of tiny models.

    python -m tests.references.make_npz

from the root of the repository, in an environment of requirements-reference.txt. No package writes
such files: the names are those that timm's own reader of them asks for, and, of texts, those of the
files that big_vision published. The weights follow from the names (tests/npz.py).
"""

import json
import pathlib
import tempfile

import numpy as np

from convert.originals import prepare_libraries
from tests import npz
from tests.references.make_zoo import computed

IN_ORDER = ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
BY_KIND = ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")


def layer(name, *shape, out=1):
    """A kernel, and a bias of its last axes."""
    return {f"{name}/kernel": shape, f"{name}/bias": shape[len(shape) - out :]}


def norm(name, width):
    return {f"{name}/scale": (width,), f"{name}/bias": (width,)}


def attention(name, width, heads):
    split = (width, heads, width // heads)
    shapes = layer(f"{name}/out", *split[1:], width)
    for part in ("query", "key", "value"):
        shapes |= layer(f"{name}/{part}", *split, out=2)
    return shapes


def mlp(name, width, mlp_dim):
    return layer(f"{name}/Dense_0", width, mlp_dim) | layer(f"{name}/Dense_1", mlp_dim, width)


def encoder(name, names, depth, width, heads, mlp_dim):
    shapes = norm(f"{name}/encoder_norm", width)
    for i in range(depth):
        of_block = [f"{name}/encoderblock_{i}/{part}" for part in names]
        shapes |= norm(of_block[0], width) | attention(of_block[1], width, heads)
        shapes |= norm(of_block[2], width) | mlp(of_block[3], width, mlp_dim)
    return shapes


def augreg():
    """A ViT of 32 pixels with a head of five classes."""
    return {
        "cls": (1, 1, 32),
        **layer("embedding", 8, 8, 3, 32),
        "Transformer/posembed_input/pos_embedding": (1, 17, 32),
        **encoder("Transformer", IN_ORDER, 2, 32, 4, 80),
        **layer("head", 32, 5),
    }


def siglip():
    """A SigLIP of 32 pixels and texts of 16 tokens."""
    head = "params/img/MAPHead_0"
    return {
        "params/t": (1,),
        "params/b": (1,),
        **layer("params/img/embedding", 8, 8, 3, 40),
        "params/img/pos_embedding": (1, 16, 40),
        **encoder("params/img/Transformer", BY_KIND, 2, 40, 4, 80),
        f"{head}/probe": (1, 1, 40),
        **attention(f"{head}/{BY_KIND[1]}", 40, 4),
        **norm(f"{head}/{BY_KIND[0]}", 40),
        **mlp(f"{head}/{BY_KIND[3]}", 40, 80),
        "params/txt/Embed_0/embedding": (99, 24),
        "params/txt/pos_embedding": (1, 16, 24),
        **encoder("params/txt/Encoder_0", BY_KIND, 2, 24, 3, 60),
        **layer("params/txt/head", 24, 40),
    }


def write_case(case, shapes):
    """Writes `tensors.json`, then `expected.npz` from the weights that follow from the names."""
    folder = npz.FOLDER / case
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tensors.json").write_text(json.dumps(shapes, indent=0) + "\n")
    with tempfile.TemporaryDirectory() as scratch:
        file = npz.write(npz.tensors(case), pathlib.Path(scratch) / "weights.npz")
        expected = computed(file)
    np.savez_compressed(folder / "expected.npz", **expected)
    print(case, *expected, sep=", ")


if __name__ == "__main__":
    prepare_libraries()
    for case, shapes in (("augreg", augreg()), ("siglip", siglip())):
        write_case(case, shapes)
