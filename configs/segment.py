"""Segmentation, exact attention and FNA side by side: `python main.py --config segment.py`."""

import ml_collections
from ml_collections import config_dict

from configs import eval as eval_config


def get_config():
    config = eval_config.get_config()  # model and FNA
    del config.data_images, config.data_split, config.class_names, config.templates
    del config.num_labelled_scenes, config.num_captioned_scenes
    config.tasks = ("segmentation",)
    # "digit scenes", or a folder as ADE20K (ADEChallengeData2016) or Pascal VOC (VOC2012) has it.
    config.data = "digit scenes"
    config.num_train_scenes = 300  # embedded
    config.num_segmented_scenes = 200  # embedded
    config.batch_size = 16  # windows per step, in training and testing

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

    config.fna.num_landmarks = (8, 16, 64)
    config.fna.methods = ("fps",)  # or "random"
    return config
