"""What timm's `config.json` says in the same way of several of its vision transformers."""

import dataclasses
import re

from convert.errors import ConversionError, show
from convert.fields import Fields
from convert.tensors import shape_of
from models.configs import EncoderConfig

# Arguments of timm's VisionTransformer that change the computation, and their only values here.
_FIXED = dict(
    in_chans=3,
    qk_norm=False,
    scale_attn_norm=False,
    scale_mlp_norm=False,
    proj_bias=True,
    pos_embed="learn",
    pre_norm=False,
    final_norm=True,
    embed_layer=None,
    embed_norm_layer=None,
    norm_layer=None,
    block_fn=None,
    attn_layer=None,
)
DROPPED = (  # in training, and which sizes of images are taken
    "dynamic_img_size",
    "dynamic_img_pad",
    "drop_rate",
    "pos_drop_rate",
    "patch_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
)
_IRRELEVANT = (*DROPPED, "strict_img_size", "weight_init", "fix_init")
BOOKKEEPING = (
    "architecture",
    "num_features",
    "pretrained_cfg",
    "label_names",
    "labels",  # as it was called once
    "label_descriptions",
)

# Words in the names of architectures that are of a family of their own here.
_OWN_FAMILY = ("dinov2", "dinov3", "siglip")

# Beginnings of the names of architectures that no model here computes, and what it would take.
UNREAD = {
    "eva02": "it has a layer norm inside its MLPs, its CLIP inside the attention, too, and rotary "
    "beside learned positions",
    "aimv2": "it has RMS norms, and no biases",
}


@dataclasses.dataclass(frozen=True)
class Names:
    """The names of a family's architectures.

    Attributes:
      pattern: of all of it; its group "today" is what timm calls the architecture.
      known: what they are, for messages.
      otherwise: what else to do with a checkpoint of another name.
    """

    pattern: re.Pattern
    known: str
    otherwise: str = ""

    def match(self, architecture) -> re.Match:
        """The pattern's groups; raises ConversionError for all but a name of the family."""
        match = isinstance(architecture, str) and self.pattern.fullmatch(architecture)
        if not match:
            otherwise = f"; otherwise {self.otherwise}" if self.otherwise else ""
            raise ConversionError(
                f"architecture {show(architecture)} is not among the names {self.known}: if it "
                f"computes the same, put that name into the config{otherwise}"
            )
        return match

    def today(self, architecture) -> str:
        """What timm calls it, without the name of weights behind a dot; errors as of `match`."""
        return self.match(architecture)["today"]


def of_kind(kind):
    """A `Layout.describes` for configs of timm whose architecture's name has this word.

    "vit" is for vision transformers with none of them.
    """

    def describes(values):
        architecture = str(values.get("architecture"))
        words = (word for word in _OWN_FAMILY if f"_{word}" in architecture)
        return architecture.startswith(("vit_", "deit")) and next(words, "vit") == kind

    return describes


def open_config(values: dict, defaults: dict) -> tuple[Fields, Fields, int]:
    """All fields, the arguments of the model among them, and the number of classes.

    Args:
      values: of the file.
      defaults: of the arguments.

    Raises:
      ConversionError: a value that is not of its type, or that no model here supports.
    """
    whole = Fields("config.json", values, {})
    whole.ignore(*BOOKKEEPING)
    args = whole.section("model_args", defaults)
    args.fix(**_FIXED)
    args.ignore(*_IRRELEVANT)
    num_classes = whole.integer("num_classes", most=2**20)
    args.fix(num_classes=num_classes)
    return whole, args, num_classes


def sizes(width, depth, num_heads, mlp_ratio) -> dict:
    """The arguments for them."""
    return dict(embed_dim=width, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio)


def encoder_of(args: Fields, activation, epsilon, **more) -> EncoderConfig:
    """The blocks of a model with these arguments; `more` are fields of EncoderConfig."""
    width = args.size("embed_dim")
    return EncoderConfig(
        width,
        args.depth("depth"),
        args.size("num_heads"),
        args.mlp_dim(width),
        activation,
        epsilon,
        **more,
    )


def mlp_ratio(mlp_dim, width) -> float:
    """With which timm, which rounds down, gives a model's MLPs this width."""
    return (mlp_dim + 0.5) / width


def classes_of(tensors) -> int:
    """How many a classifier has, by its tensor; 0 where there is none."""
    return shape_of(tensors, "head.weight", 2)[0] if "head.weight" in tensors else 0
