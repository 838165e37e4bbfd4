"""Segmentation, exact attention and FNA side by side: `python main.py --config segment.py`."""

import ml_collections
from ml_collections import config_dict


def get_config():
    config = ml_collections.ConfigDict()
    config.task = "eval"
    config.tasks = ("segmentation",)
    # A checkpoint of models.save, PyTorch files, or a hub id; empty: the embedded model.
    config.model = ""
    config.revision = config_dict.placeholder(str)
    # "digit scenes", or a folder as ADE20K (ADEChallengeData2016) or Pascal VOC (VOC2012) has it.
    config.data = "digit scenes"
    config.num_images = config_dict.placeholder(int)  # of the user's data, of each part
    config.num_train_scenes = 300  # embedded
    config.num_segmented_scenes = 200  # embedded
    config.num_fidelity_images = 64  # of which some are drawn with their landmarks
    config.batch_size = 16  # windows per step, in training and testing
    # Processes that read images; 0: threads. Default: as the number of images and cores suggests.
    config.num_workers = config_dict.placeholder(int)

    config.segmentation = ml_collections.ConfigDict()
    config.segmentation.layers = "last"  # block, or "last four"
    # Sides in pixels: of a sliding window (default: what the checkpoint's preprocessing gives), and
    # the short one of an image (default: its own, at least a window's).
    config.segmentation.window = config_dict.placeholder(int)
    config.segmentation.short_side = config_dict.placeholder(int)
    config.segmentation.stride = 2 / 3  # from one window to the next, of its side
    config.segmentation.steps = 500  # of the linear head's AdamW
    config.segmentation.rate = 3e-2
    config.segmentation.weight_decay = 1e-4

    config.fna = ml_collections.ConfigDict()
    config.fna.layers = "second half"  # or block indices, like "13:24"
    config.fna.num_landmarks = (8, 16, 64)
    config.fna.features = "q"
    config.fna.methods = ("fps",)  # or "random"
    config.fna.seeds = (0, 1, 2)  # of random landmarks
    config.fna.resample = False
    # Massive tokens are no landmarks: "massive_by_norm" or "massive_by_attention".
    config.fna.exclude = config_dict.placeholder(str)
    config.fna.inverse_steps = 6
    return config
