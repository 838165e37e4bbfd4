"""Exact attention and FNA side by side: `python main.py --config eval.py`."""

import ml_collections
from ml_collections import config_dict


def get_config():
    config = ml_collections.ConfigDict()
    config.task = "eval"
    config.tasks = ("zero_shot", "retrieval", "fidelity")
    # A checkpoint of models.save, PyTorch files, or a hub id; empty: the embedded model.
    config.model = ""
    config.revision = config_dict.placeholder(str)
    # "digit scenes", a folder with one folder of images per class, or a COCO captions json.
    config.data = "digit scenes"
    config.data_images = config_dict.placeholder(str)  # of the json; default: its own folder
    # Of a folder; with {} for the class. Default: "a photo of a {}."
    config.templates = config_dict.placeholder(tuple)
    config.num_images = config_dict.placeholder(int)  # of the user's data; default: all
    config.num_labelled_scenes = 400  # embedded
    config.num_captioned_scenes = 1000  # embedded
    config.num_fidelity_images = 64
    config.batch_size = 16

    config.fna = ml_collections.ConfigDict()
    config.fna.layers = "second half"  # or block indices, like "13:24"
    config.fna.num_landmarks = (8, 16, 32, 64)
    config.fna.features = "q"
    config.fna.methods = ("fps", "random")
    config.fna.seeds = (0, 1, 2)  # of random landmarks
    config.fna.resample = False
    # Massive tokens are no landmarks: "massive_by_norm" or "massive_by_attention".
    config.fna.exclude = config_dict.placeholder(str)
    config.fna.inverse_steps = 6
    return config
