"""ViT as Google's vision_transformer writes it: the `.npz` of AugReg and earlier models.

They need no config. Activation (GELU by tanh), epsilon and the rule for positions are those of the
authors' code, where timm and transformers compute the exact GELU of the same numbers.
"""

from convert.errors import ConversionError
from convert.guesses import Guesses
from convert.layout import Layout, Parsed, Source
from convert.npz_rows import IN_ORDER, encoder_of, encoder_rows, image_sizes, layer
from convert.table import BATCHED, Row, Table
from convert.tensors import shape_of
from models.plain_vit import ViTConfig

_ENCODER = "Transformer"
_POSITIONS = f"{_ENCODER}/posembed_input/pos_embedding"
_HYBRID = "conv_root/kernel"
_HEAD, _PRE_LOGITS = "head/kernel", "pre_logits/kernel"
_TANH = (
    "of the head of pretraining, which stands on a layer and tanh, pre_logits, that no classifier "
    "here has"
)


def tables(config: ViTConfig) -> tuple[Table, ...]:
    """The one key layout."""
    rows = [Row(*row) for row in layer("embedding", "patch_embedding.conv")]
    rows.append(Row(_POSITIONS, "positions", BATCHED))
    if config.class_token:
        rows.append(Row("cls", "class_token", BATCHED))
    leaves = ("encoder.blocks", "norm")
    rows += encoder_rows(_ENCODER, leaves, IN_ORDER, config.encoder.depth)
    unread = ["pre_logits"]
    if config.num_classes:
        rows += [Row(*row) for row in layer("head", "head")]
    else:
        unread.append("head")
    ignored = (f"{name}/{leaf}" for name in unread for leaf in ("kernel", "bias"))
    return (Table(tuple(rows), dict.fromkeys(ignored, _TANH)),)


def parse(source: Source) -> Parsed:
    """The config of a ViT from names and shapes.

    Raises:
      ConversionError: shapes that no ViT has, or a hybrid.
    """
    tensors, guesses = source.tensors, Guesses(source.given)
    if _HYBRID in tensors:
        raise ConversionError(
            f"{_HYBRID} is of a hybrid, whose patches are made by a convolutional network: take a "
            "ViT without, such as S_16 or B_16"
        )
    class_token = "cls" in tensors
    num_patches = max(shape_of(tensors, _POSITIONS, 3)[1] - class_token, 0)
    classifies = _HEAD in tensors and _PRE_LOGITS not in tensors
    config = ViTConfig(
        **image_sizes(tensors, "embedding/kernel", num_patches, guesses),
        position_resize="bilinear_corners",
        encoder=encoder_of(tensors, _ENCODER, IN_ORDER),
        class_token=class_token,
        pool="token" if class_token else "avg",
        num_classes=shape_of(tensors, _HEAD, 2)[1] if classifies else 0,
    )
    return Parsed(config, [], tuple(guesses.made))


LAYOUT = Layout(
    family="vit",
    library="vision_transformer",
    has_keys=lambda names: _POSITIONS in names,
    parse=parse,
    tables=tables,
    needs_config=False,
)
