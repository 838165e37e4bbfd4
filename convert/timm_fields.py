"""What timm's `config.json` says in the same way of several of its vision transformers."""

from convert.fields import Fields

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
