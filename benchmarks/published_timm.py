"""Published sizes as timm's `config.json` tells them, beside random weights."""


def dinov2(config) -> dict:
    """Of a DINOv2Config."""
    encoder = config.encoder
    size = {384: "small", 768: "base", 1024: "large", 1536: "giant"}.get(encoder.width, "small")
    registers = "_reg4" if config.num_registers else ""
    return {
        "architecture": f"vit_{size}_patch{config.patch_size}{registers}_dinov2",
        "num_classes": 0,
        "model_args": {
            "img_size": config.image_size,
            "embed_dim": encoder.width,
            "depth": encoder.depth,
            "num_heads": encoder.num_heads,
        },
    }


def dinov3(config) -> dict:
    """Of a DINOv3Config."""
    encoder = config.encoder
    size = {384: "small", 768: "base", 1024: "large", 1280: "huge", 4096: "7b"}[encoder.width]
    plus = "_plus" * (encoder.gated_mlp and size != "7b")
    biases = "_qkvb" if encoder.biases else ""
    return {
        "architecture": f"vit_{size}{plus}_patch{config.patch_size}_dinov3{biases}",
        "num_classes": 0,
        "model_args": {"img_size": config.image_size, "depth": encoder.depth},
    }


def siglip(config) -> dict:
    """Of SigLIP's vision tower."""
    size = {768: "base", 1024: "large", 1152: "so400m", 1536: "giantopt"}[config.encoder.width]
    return {
        "architecture": f"vit_{size}_patch{config.patch_size}_siglip_{config.image_size}",
        "num_classes": 0,
        "model_args": {"depth": config.encoder.depth},
    }


def vit(config) -> dict:
    """Of a ViTConfig."""
    size = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}
    width = config.encoder.width
    return {
        "architecture": f"vit_{size[width]}_patch{config.patch_size}_{config.image_size}",
        "num_classes": config.num_classes,
        "model_args": {"depth": config.encoder.depth},
    }
