"""SigLIP and SigLIP 2 of a fixed resolution as Google's big_vision writes them, in `.npz`.

They need no config. Blocks may be numbered or stacked, in each tower. What names and shapes do not
say is of big_vision's code: GELU by tanh, epsilon, and the rule for positions at other sizes.
"""

import itertools

from convert.errors import ConversionError
from convert.fields import Fields
from convert.guesses import Guesses
from convert.layout import Layout, Parsed, Source
from convert.npz_rows import (
    BY_KIND,
    attention,
    encoder_of,
    encoder_rows,
    image_sizes,
    layer,
    mlp,
    norm,
)
from convert.table import BATCHED, FLAT, SAME, Row, Table
from convert.tensors import shape_of
from models.siglip import SigLIPConfig, SigLIPVisionConfig
from models.text import TextConfig

_IMAGES, _TEXTS = "img/Transformer", "txt/Encoder_0"
_EMBEDDING, _PROBE, _TOKENS = "img/embedding/kernel", "img/MAPHead_0/probe", "txt/Embed_0/embedding"
_, _ATTENTION, _, _MLP = BY_KIND
_REST = (
    ("t", "logit_scale", FLAT),  # [1] in the file
    ("b", "logit_bias", FLAT),
    *layer("img/embedding", "vision.patch_embedding.conv"),
    ("img/pos_embedding", "vision.positions", BATCHED),
    (_PROBE, "vision.pooling.probe", BATCHED),
    *attention(f"img/MAPHead_0/{_ATTENTION}", "vision.pooling.attention"),
    *norm("img/MAPHead_0/LayerNorm_0", "vision.pooling.norm"),
    *mlp(f"img/MAPHead_0/{_MLP}", "vision.pooling.mlp"),
    (_TOKENS, "text.token_embedding.embedding", SAME),
    ("txt/pos_embedding", "text.positions", BATCHED),
    *layer("txt/head", "text_projection"),
)


def tables(config: SigLIPConfig) -> tuple[Table, ...]:
    """The key layouts: blocks numbered or stacked, in each tower."""
    towers = (
        (_IMAGES, ("vision.encoder.blocks", "vision.post_norm"), config.vision),
        (_TEXTS, ("text.encoder.blocks", "text.final_norm"), config.text),
    )
    found = []
    for stacked in itertools.product((False, True), repeat=len(towers)):
        rows = [Row(*row) for row in _REST]
        for (source, target, tower), as_one in zip(towers, stacked):
            rows += encoder_rows(source, target, BY_KIND, tower.encoder.depth, stacked=as_one)
        found.append(Table(tuple(rows), {}))
    return tuple(found)


def parse(source: Source) -> Parsed:
    """The config of a SigLIP from names and shapes.

    Raises:
      ConversionError: shapes that no SigLIP has, or NaFlex.
    """
    tensors, guesses = source.tensors, Guesses(source.given)
    if _EMBEDDING in tensors and len(tensors[_EMBEDDING].shape) == 2:
        raise ConversionError(
            f"{_EMBEDDING} is of NaFlex, of variable resolution: take it in Hugging Face's layout, "
            "as google/siglip2-base-patch16-naflex is"
        )
    num_patches = shape_of(tensors, "img/pos_embedding", 3)[1]
    vision = SigLIPVisionConfig(
        **image_sizes(tensors, _EMBEDDING, num_patches, guesses),
        position_resize="bilinear_corners",
        encoder=encoder_of(tensors, _IMAGES, BY_KIND),
    )
    values = {
        "vocab_size": shape_of(tensors, _TOKENS, 2)[0],
        "context_length": shape_of(tensors, "txt/pos_embedding", 3)[1],
    }
    sizes = Fields("txt's shapes", values, {})
    encoder = encoder_of(tensors, _TEXTS, BY_KIND)
    text = TextConfig(sizes.size("vocab_size"), sizes.size("context_length"), encoder)
    return Parsed(SigLIPConfig(vision, text), [], tuple(guesses.made))


LAYOUT = Layout(
    family="siglip",
    library="big_vision",
    has_keys=lambda names: {_PROBE, _TOKENS, "t", "b"} <= set(names),
    parse=parse,
    tables=tables,
    needs_config=False,
)
