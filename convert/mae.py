"""The decoder of MAE (arXiv 2111.06377), which its checkpoints hold and no model here has."""

_DEPTH = 12  # the deepest of the paper's table 1; 8 in all releases


def decoder(blocks, block) -> dict[str, str]:
    """The names of its tensors, and why they are ignored.

    Args:
      blocks: what the names of its blocks start with.
      block: the rows of one.
    """
    names = (
        "mask_token",
        "decoder_pos_embed",
        *(f"decoder_{x}.{leaf}" for x in ("embed", "norm", "pred") for leaf in ("weight", "bias")),
        *(f"{blocks}.{i}.{key}" for i in range(_DEPTH) for key, *_ in block),
    )
    return dict.fromkeys(names, "MAE's decoder, which reconstructs pixels in pretraining only")
