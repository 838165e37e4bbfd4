"""Massive tokens, artifacts and attention, as figures: `python main.py --config analyze.py`."""

import ml_collections
from ml_collections import config_dict


def get_config():
    config = ml_collections.ConfigDict()
    config.task = "analyze"
    # A checkpoint of models.save, PyTorch files, or a hub id; empty: the embedded model.
    config.model = ""
    config.revision = config_dict.placeholder(str)
    # "digit scenes", "photographs/report" or "photographs/choose" (those of pretrained.py), a
    # folder, an image file, or a tuple of folders and files.
    config.images = config_dict.FieldReference("digit scenes", field_type=object)
    config.num_images = config_dict.placeholder(int)  # default: 64 digit scenes, or all files
    config.batch_size = 16

    # Blocks count from 0. Default: as far up as blocks 13 and 9 of CLIP ViT-L/14's 24.
    config.block = config_dict.placeholder(int)  # whose input and attention decide what a token is
    config.first_block = config_dict.placeholder(int)  # from where sinks are masked
    config.detector = "norm"  # or "attention": which tokens count as massive in the figures
    config.max_sinks = 32
    config.blocks = "spread"  # those shown, or block indices, like "9,13" or "9:13"
    config.num_examples = 4  # images that are drawn
    config.num_landmarks = 16
    return config
