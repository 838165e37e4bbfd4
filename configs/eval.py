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
    # "digit scenes", a folder with one folder of images per class, a COCO or Karpathy json of
    # captions, or what Hugging Face datasets saved to disk.
    config.data = "digit scenes"
    config.data_images = config_dict.placeholder(str)  # of the json; default: its own folder
    config.data_split = config_dict.placeholder(str)  # of a Karpathy json, or of a table
    config.class_names = config_dict.placeholder(str)  # a file; default: names of the folders
    # Of classes, with {} for the name; or "imagenet" for its 80. Default: "a photo of a {}."
    config.templates = config_dict.placeholder(tuple)
    config.num_images = config_dict.placeholder(int)  # of the user's data; default: all
    config.num_labelled_scenes = 400  # embedded
    config.num_captioned_scenes = 1000  # embedded
    config.num_fidelity_images = 64
    config.batch_size = 16
    # Processes that read images; 0: threads. Default: as the number of images and cores suggests.
    config.num_workers = config_dict.placeholder(int)
    # Where embeddings are kept and found again, to be shared between runs; '' keeps none. Default:
    # embeddings/ in the workdir.
    config.cache = config_dict.placeholder(str)

    config.fna = ml_collections.ConfigDict()
    config.fna.layers = "second half"  # or "all", or block indices, like "13:24"
    config.fna.num_landmarks = (8, 16, 32, 64)
    config.fna.features = "q"
    # FNA with landmarks "fps" or "random"; centroid attention: "centroid" with clusters of farthest
    # points, "kmeans", "windows", or "means", which are all that is attended to. And instead exact
    # attention among fewer tokens: "tome", similar ones merged, "drop" and "random_drop", landmarks
    # or random ones kept from the first of the layers on, and "smaller", of a smaller image.
    config.fna.methods = ("fps", "random", "centroid")
    config.fna.kept = (50, 25)  # percent of the tokens, of these last four
    config.fna.merging = merging_settings()
    config.fna.seeds = (0, 1, 2)  # of random landmarks and tokens
    config.fna.resample = False
    # Massive tokens are no landmarks: "massive_by_norm" or "massive_by_attention".
    config.fna.exclude = config_dict.placeholder(str)
    config.fna.inverse_steps = 6
    config.fna.centroid = centroid_settings()
    # A tune.json that --config tune.py wrote for this model, as one more method; the fields above
    # do not touch it. With --config.fna.methods="()" it is the only one.
    config.fna.tuned = config_dict.placeholder(str)
    return config


def merging_settings():
    """Of token merging alone; the fields of `models.TokenMerging`."""
    config = ml_collections.ConfigDict()
    config.layers = "all"  # as published; or as above
    config.proportional = True  # attention counts a token as often as it stands for one
    return config


def centroid_settings():
    """Of centroid attention alone; the fields of `fna_jax.FNAConfig`."""
    config = ml_collections.ConfigDict()
    config.features = "k"
    config.windows = config_dict.placeholder(int)  # near field: at most so many windows
    config.near = 0  # 1: the 3 × 3 windows around
    config.refine = 0  # Lloyd steps in each later block
    config.residual = True
    return config
