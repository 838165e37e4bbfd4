"""A grid of settings, quality against speed: `python main.py --config sweep.py`."""

import ml_collections

from configs import eval as eval_config


def get_config():
    config = eval_config.get_config()  # model and data
    del config.fna
    config.task = "sweep"
    config.tasks = ("zero_shot", "retrieval")
    config.num_captioned_scenes = 400
    config.repeats = 7  # rounds in which all settings are timed in turns

    # Every combination is evaluated, and exact attention for each image size and masking.
    config.grid = ml_collections.ConfigDict()
    config.grid.layers = ("second half",)  # or block indices, like "13:24"
    config.grid.num_landmarks = (4, 8, 16, 32)
    config.grid.features = ("q", "input")
    config.grid.methods = ("fps",)  # or others of configs/eval.py
    config.grid.kept = (50, 25)  # of those that keep fewer tokens, percent
    config.grid.resample = (False, True)
    config.grid.seeds = (0,)  # of random landmarks
    config.grid.image_sizes = (0,)  # sides in pixels; 0: as the checkpoint preprocesses
    config.grid.strategies = ("none",)  # of configs/masking.py
    config.centroid = eval_config.centroid_settings()
    config.merging = eval_config.merging_settings()

    config.masking = ml_collections.ConfigDict()  # of the strategies
    config.masking.detector = "norm"
    config.masking.max_sinks = 16
    return config
