"""The evals under each masking strategy: `python main.py --config masking.py`."""

from ml_collections import config_dict

from configs import eval as eval_config


def get_config():
    config = eval_config.get_config()  # model and data
    del config.fna, config.tasks
    config.task = "masking"
    # In blocks `block` to the last. T -> sink: no query gets anything from T, and its mass is lost;
    # mask: the other tokens share the mass; others: T's tokens still read themselves.
    config.strategies = (
        "massive-sink",
        "massive-mask",
        "massive-sink-others",
        "artifacts-sink",
        "sinks-sink",
        "cancel-suppression",
    )
    # Where massive tokens have formed. Default: 13/24 of the depth, as in CLIP ViT-L/14.
    config.block = config_dict.placeholder(int)
    # "norm", or "attention" as in the paper, which marks half of all patches where the class token
    # hardly attends to itself: in the embedded model, and perhaps in yours.
    config.detector = "norm"
    # Attention sinks, and so artifacts, are found one by one, running `first_block` (default: 9/24
    # of the depth) to `block` for each. CLIP ViT-L/14 has 32 to 40 of them in an image.
    config.first_block = config_dict.placeholder(int)
    config.max_sinks = 16
    return config
