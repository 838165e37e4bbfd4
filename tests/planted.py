"""A vision transformer with massive and artifact tokens planted in its weights, and its images.

Each image is noise, and on some of its patches a pattern is added. A pattern makes its patch
massive, or an artifact. What the model does to them, block by block:

    GROW      the MLP sees the mark of a massive pattern and writes 40 times a token's norm
    SUPPRESS  every query reads the massive tokens, whose value takes from massive and artifact
              tokens alike. An artifact's mark survives only where no massive token can be read;
              then the MLP blows it up too
    SINK      the class token's attention goes to what has grown, in a known order

So artifacts appear when all massive tokens are masked from SUPPRESS on, not from SINK on. An image
without massive tokens has no artifact patterns, for nothing would hold them down.

SELF_HEAD and the MLPs also carry random weights, from and to CONTENT only. Channels:

    MARK     how much of each pattern is in the patch, three massive and three artifact ones
    GROWN    one per pattern, zero until the token has grown
    CLASS    the class token's alone
    REST     always zero; subtracting it cancels the mean that layer norm takes away
    CONTENT  random projections of the patch

Shape letters: B images, N tokens (the class token and 16 patches), P patterns.
"""

import math
import typing

import jax
import numpy as np
from flax import nnx

import models

DEPTH, GROW, SUPPRESS, SINK = 4, 1, 2, 3
WIDTH, MLP_DIM = 48, 64
SELF_HEAD, SINK_HEAD = 0, 1
MASSIVE, ARTIFACT = np.arange(3), np.arange(3, 6)  # patterns, the strongest sink first
NUM_PATTERNS = 6
MARK, GROWN = np.arange(6), np.arange(6, 12)  # channels, one per pattern
CLASS, REST = 12, 13
CONTENT = np.arange(14, WIDTH)

PATTERN = 20.0  # length of a pattern in its patch, whose noise has length 7
GROWN_TO = 240.0  # the norm of a token is about 6 before
TAKEN = 2.0, 4.0  # from GROWN and from MARK, by reading a massive token in SUPPRESS
LOGITS = 12.9, 12.2, 11.5, 7.4, 6.7, 6.0  # of each pattern once grown; 0 for a normal patch
CLASS_LOGIT = 3.0  # of the class token where nothing has grown, in SINK_HEAD
SELF_LOGIT = 2.4  # of the class token to itself, in SELF_HEAD
UNIT = WIDTH / math.sqrt(WIDTH - 1)  # layer norm of a one-hot token: the one less a zero


class PlantedImages(typing.NamedTuple):
    """`images` `[B, 16, 16, 3]`; `massive` and `artifact`, bool `[B, N]`; `order`, int `[B, N]`:
    the round of masking in which a token becomes the strongest sink, 0 if it never does."""

    images: np.ndarray
    massive: np.ndarray
    artifact: np.ndarray
    order: np.ndarray


def planted_images(seed, batch):
    """`PlantedImages` of standard normal pixels, with up to six patterns on patches at random."""
    rng = np.random.default_rng(seed)
    present = rng.random((batch, NUM_PATTERNS)) < 0.5
    present[:, ARTIFACT] &= present[:, MASSIVE].any(axis=1, keepdims=True)
    places = rng.permuted(np.tile(np.arange(16), (batch, 1)), axis=1)[:, :NUM_PATTERNS]
    at = (places[..., None] == np.arange(16)) & present[..., None]  # [B, P, N − 1]
    patches = rng.standard_normal((batch, 16, 48)) + PATTERN * np.einsum(
        "bpn,dp->bnd", at, _patch_basis()[:, :NUM_PATTERNS]
    )
    images = patches.reshape(batch, 4, 4, 4, 4, 3).swapaxes(2, 3).reshape(batch, 16, 16, 3)
    tokens = np.pad(at, ((0, 0), (0, 0), (1, 0)))
    order = np.einsum("bpn,bp->bn", tokens, np.cumsum(present, axis=1))
    return PlantedImages(
        images.astype(np.float32),
        tokens[:, MASSIVE].any(axis=1),
        tokens[:, ARTIFACT].any(axis=1),
        order,
    )


def planted_model(*, planted=True):
    """The ViT described above; with `planted=False` the same one, in which patterns do nothing.

    Then no token grows, and none but the class token attracts attention.
    """
    model = models.create(
        "vit-ti-16",
        rngs=nnx.Rngs(0),
        image_size=16,
        patch_size=4,
        num_classes=0,
        encoder=dict(width=WIDTH, depth=DEPTH, num_heads=2, mlp_dim=MLP_DIM),
    )
    weights = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model)))
    blocks = weights["encoder"]["blocks"]
    _embed(weights)
    for block in blocks.values():
        _confine_to_content(block)
        _attend_to_class_token(block["attention"])
    if planted:
        _grow(blocks[GROW]["mlp"], MASSIVE)
        _grow(blocks[SUPPRESS]["mlp"], ARTIFACT)
        _suppress(blocks[SUPPRESS]["attention"])
        for number in range(SUPPRESS, DEPTH):
            for pattern, logit in enumerate(LOGITS):
                _read(blocks[number]["attention"]["key"], GROWN[pattern], SINK_HEAD, logit / UNIT)
    nnx.update(model, weights)
    return model


def _patch_basis():
    """Orthonormal directions of a patch, the columns of `[48, 48]`; the patterns first."""
    return np.linalg.qr(np.random.default_rng(0).standard_normal((48, 48)))[0]


def _embed(weights):
    """Marks of 3 in noise of 0.15, content of 0.7 per channel, and 20 for the class token."""
    basis = _patch_basis()
    kernel = np.zeros((48, WIDTH))
    kernel[:, MARK] = 3 / PATTERN * basis[:, :NUM_PATTERNS]
    kernel[:, CONTENT] = 0.7 * basis[:, NUM_PATTERNS : NUM_PATTERNS + len(CONTENT)]
    weights["patch_embedding"]["conv"]["kernel"][:] = kernel.reshape(4, 4, 3, WIDTH)
    weights["positions"][:, : CONTENT[0]] = 0
    weights["class_token"][: CONTENT[0]] = 0
    weights["class_token"][CLASS] = 20


def _confine_to_content(block):
    """The block's random weights, from and to content channels only, in SELF_HEAD and the MLP."""
    attention, mlp = block["attention"], block["mlp"]
    for name in ("query", "key", "value"):
        attention[name]["kernel"][: CONTENT[0]] = 0
        attention[name]["kernel"][:, SINK_HEAD] = 0
        attention[name]["kernel"][:, :, 0] = 0  # dimension 0 is the plant's
    attention["out"]["kernel"][SINK_HEAD] = 0
    attention["out"]["kernel"][..., : CONTENT[0]] = 0
    mlp["fc1"]["kernel"][: CONTENT[0]] = 0
    mlp["fc1"]["kernel"][:, : 2 * NUM_PATTERNS] = 0  # units of the plant
    mlp["fc2"]["kernel"][: 2 * NUM_PATTERNS] = 0
    mlp["fc2"]["kernel"][:, : CONTENT[0]] = 0


def _read(projection, channel, head, factor):
    """Dimension 0 of the head adds `factor` times the channel, after layer norm, less REST."""
    projection["kernel"][channel, head, 0] += factor
    projection["kernel"][REST, head, 0] -= factor


def _attend_to_class_token(attention):
    """Only the class token looks for itself in SELF_HEAD; all queries do in SINK_HEAD."""
    root_dim = math.sqrt(WIDTH // 2)
    for name in ("query", "key"):
        _read(attention[name], CLASS, SELF_HEAD, math.sqrt(SELF_LOGIT * root_dim) / UNIT)
    attention["query"]["bias"][SINK_HEAD, 0] = root_dim  # logits are dimension 0 of the keys
    _read(attention["key"], CLASS, SINK_HEAD, CLASS_LOGIT / UNIT)


def _grow(mlp, patterns):
    """GROWN_TO is added to GROWN where MARK, after layer norm and less REST, is above 1.5.

    The step is `gelu(20(z − 1.5)) − gelu(20(z − 1.5) − 5)`: 0 below, 5 above.
    """
    for pattern in patterns:
        for unit, height, sign in ((2 * pattern, 0, 1), (2 * pattern + 1, 5, -1)):
            mlp["fc1"]["kernel"][MARK[pattern], unit] = 20
            mlp["fc1"]["kernel"][REST, unit] = -20
            mlp["fc1"]["bias"][unit] = -20 * 1.5 - height
            mlp["fc2"]["kernel"][unit, GROWN[pattern]] = sign * GROWN_TO / 5


def _suppress(attention):
    """The values of massive and artifact tokens take from both; about 1 for either."""
    for pattern in MASSIVE:
        _read(attention["value"], GROWN[pattern], SINK_HEAD, 1 / UNIT)
    for pattern in ARTIFACT:
        _read(attention["value"], MARK[pattern], SINK_HEAD, 1 / 4)
    attention["out"]["kernel"][SINK_HEAD, 0, GROWN[MASSIVE]] = -TAKEN[0]
    attention["out"]["kernel"][SINK_HEAD, 0, MARK[ARTIFACT]] = -TAKEN[1]
