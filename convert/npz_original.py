"""Google's `.npz` in PyTorch: by timm's own reader, texts by transformers. Needs both, and torch.

The authors' code is JAX's and no package. What it computes otherwise than timm is asked for here:
GELU by tanh, and positions at other sizes by SciPy's zoom.
"""

import pathlib
import re
import tempfile

import numpy as np
import scipy.ndimage

from convert import npz_siglip, npz_vit
from convert.layout import Source
from convert.timm_fields import mlp_ratio
from models.configs import EncoderConfig, image_shape, position_grid

_STACKED = re.compile(r"(?P<start>.*/encoderblock)(?P<end>/.*)")
_LAYERS = {  # of a block of transformers' SigLIP, by big_vision's names
    "LayerNorm_0": "layer_norm1",
    "MultiHeadDotProductAttention_0/query": "self_attn.q_proj",
    "MultiHeadDotProductAttention_0/key": "self_attn.k_proj",
    "MultiHeadDotProductAttention_0/value": "self_attn.v_proj",
    "MultiHeadDotProductAttention_0/out": "self_attn.out_proj",
    "LayerNorm_1": "layer_norm2",
    "MlpBlock_0/Dense_0": "mlp.fc1",
    "MlpBlock_0/Dense_1": "mlp.fc2",
}


def open_vit(timm, source: Source, size):
    """timm's ViT with the numbers of an AugReg file, for images of that height and width.

    Args:
      timm: the module.
      source: of the layout of `npz_vit`.
      size: height and width in pixels.
    """
    config = npz_vit.parse(source).config
    arrays = {name: tensor.read() for name, tensor in source.tensors.items()}
    pool = dict(class_token=config.class_token, global_pool=config.pool)
    pool |= dict(fc_norm=False, num_classes=config.num_classes)
    return _timm_tower(timm, config, arrays, size, **pool)


def open_image_tower(timm, source: Source, size):
    """timm's SigLIP with the numbers of a file of big_vision; arguments as in `open_vit`."""
    config = npz_siglip.parse(source).config.vision
    arrays = {f"params/{name}": tensor.read() for name, tensor in source.tensors.items()}
    pool = dict(class_token=False, global_pool="map", num_classes=0)
    return _timm_tower(timm, config, arrays, size, **pool)


def _timm_tower(timm, config, arrays, size, **pool):
    import torch

    encoder = config.encoder

    def build(size):
        return timm.models.VisionTransformer(
            img_size=size,
            patch_size=config.patch_size,
            embed_dim=encoder.width,
            depth=encoder.depth,
            num_heads=encoder.num_heads,
            mlp_ratio=mlp_ratio(encoder.mlp_dim, encoder.width),
            act_layer="gelu_tanh",
            **pool,
        ).eval()

    model = build(image_shape(config))
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "weights.npz"
        np.savez(file, **{name: array.astype(np.float32) for name, array in arrays.items()})
        model.load_pretrained(str(file))
    if size == image_shape(config):
        return model
    state, resized = model.state_dict(), build(size)
    grid = tuple(pixels // config.patch_size for pixels in size)
    positions = _resized(state["pos_embed"][0].numpy(), position_grid(config), grid)
    resized.load_state_dict(state | {"pos_embed": torch.from_numpy(positions)[None]})
    return resized


def _resized(positions, learned, grid):
    """Positions `[P + h0·w0, C]` at another grid, `[P + h·w, C]`, as the authors' code does it."""
    num_prefix = len(positions) - learned[0] * learned[1]
    patches = positions[num_prefix:].reshape(*learned, -1)
    zoom = (*(n / n0 for n, n0 in zip(grid, learned)), 1)
    patches = scipy.ndimage.zoom(patches, zoom, order=1)
    return np.concatenate([positions[:num_prefix], patches.reshape(-1, positions.shape[1])])


def open_text_tower(source: Source):
    """transformers' text tower of SigLIP with the numbers of a file of big_vision.

    Args:
      source: of the layout of `npz_siglip`.
    """
    import torch
    import transformers

    config = npz_siglip.parse(source).config
    model = transformers.SiglipTextModel(
        transformers.SiglipTextConfig(
            vocab_size=config.text.vocab_size,
            max_position_embeddings=config.text.context_length,
            projection_size=config.vision.encoder.width,
            hidden_act="gelu_pytorch_tanh",
            **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),  # unread
            **_sizes(config.text.encoder),
        )
    ).eval()
    arrays = _text_arrays({name: tensor.read() for name, tensor in source.tensors.items()})
    own = model.state_dict()
    prefix = "text_model." if "text_model.head.weight" in own else ""  # before transformers 5
    state = {
        f"{prefix}{name}": torch.from_numpy(np.array(x, np.float32)).reshape(
            own[f"{prefix}{name}"].shape
        )
        for name, x in arrays.items()
    }
    model.load_state_dict(state)
    return model


def _sizes(encoder: EncoderConfig):
    return dict(
        hidden_size=encoder.width,
        intermediate_size=encoder.mlp_dim,
        num_hidden_layers=encoder.depth,
        num_attention_heads=encoder.num_heads,
    )


def _text_arrays(arrays):
    """Of a file's arrays those of the text tower, as transformers names and turns them."""
    found = {
        "embeddings.token_embedding.weight": arrays["txt/Embed_0/embedding"],
        "embeddings.position_embedding.weight": arrays["txt/pos_embedding"],
        "final_layer_norm.weight": arrays["txt/Encoder_0/encoder_norm/scale"],
        "final_layer_norm.bias": arrays["txt/Encoder_0/encoder_norm/bias"],
        "head.weight": arrays["txt/head/kernel"].T,
        "head.bias": arrays["txt/head/bias"],
    }
    for name, array in _unstacked(arrays).items():
        match = re.fullmatch(r"txt/Encoder_0/encoderblock_(\d+)/(.*)/(\w+)", name)
        if match is None:
            continue
        number, layer, leaf = match.groups()
        if leaf == "kernel":
            # An output projection joins its first two axes, what makes heads its last two.
            joined = (-1, array.shape[-1]) if layer.endswith("out") else (array.shape[0], -1)
            array = array.reshape(joined).T
        leaf = "bias" if leaf == "bias" else "weight"
        found[f"encoder.layers.{number}.{_LAYERS[layer]}.{leaf}"] = array
    return found


def _unstacked(arrays):
    """The arrays with every block under its number."""
    apart = {}
    for name, array in arrays.items():
        if match := _STACKED.fullmatch(name):
            apart |= {f"{match['start']}_{i}{match['end']}": x for i, x in enumerate(array)}
        else:
            apart[name] = array
    return apart
