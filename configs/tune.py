"""The attention for a model under an error budget: `python main.py --config tune.py`."""

import ml_collections
from ml_collections import config_dict


def get_config():
    config = ml_collections.ConfigDict()
    config.task = "tune"
    # A checkpoint of models.save, PyTorch files, or a hub id; empty: the embedded model.
    config.model = ""
    config.revision = config_dict.placeholder(str)
    # "digit scenes", "photographs/report" or "photographs/choose" (those of pretrained.py), a
    # folder, an image file, or a tuple of folders and files. Every other one is
    # tuned on, and the rest are held out for the error that is reported.
    config.images = config_dict.FieldReference("digit scenes", field_type=object)
    config.num_images = config_dict.placeholder(int)  # default: 64 digit scenes, or all files
    config.image_size = 0  # side in pixels; 0: as the checkpoint preprocesses
    config.batch_size = 8
    # Most ‖tuned − exact‖ / ‖exact‖ of an image's embedding, the mean over images, which two
    # standard errors are added to; or of its "tokens", where patches matter, as in segmentation.
    config.budget = 0.05
    config.output = "embedding"
    config.repeats = 7  # rounds in which the exact and the tuned model are timed in turns

    # Every combination is a candidate in every block, if it saves arithmetic. A method that chooses
    # landmarks or clusters does so anew in each block. In the end clusters are handed on from block
    # to block and refined, if that keeps the budget.
    config.candidates = ml_collections.ConfigDict()
    config.candidates.methods = ("fps", "centroid", "kmeans", "windows")  # of configs/eval.py
    config.candidates.num_landmarks = (16, 32, 64, 128)
    config.candidates.features = "q"  # of FNA
    config.candidates.centroid_features = "k"
    # Of centroid attention: the near field, at most so many windows, 0 for none; and whether the
    # 3 × 3 windows around a token's belong to it.
    config.candidates.windows = (0, 64)
    config.candidates.near = (0,)
    return config
