"""Classification, exact attention and FNA side by side: `python main.py --config classify.py`."""

import ml_collections
from ml_collections import config_dict


def get_config():
    config = ml_collections.ConfigDict()
    config.task = "eval"
    # Also "classifier": the model's own head. A model without a text tower has no "zero_shot".
    config.tasks = ("zero_shot", "knn", "linear_probe")
    # A checkpoint of models.save, PyTorch files, or a hub id; empty: the embedded model.
    config.model = ""
    config.revision = config_dict.placeholder(str)
    # "digit scenes", a folder with train/ and val/ in which there is one folder per class, or what
    # Hugging Face datasets saved to disk.
    config.data = "digit scenes"
    config.train_data = config_dict.placeholder(str)  # class folders to train on, if elsewhere
    config.data_split = config_dict.placeholder(str)  # of a table, to test with
    config.class_names = config_dict.placeholder(str)  # a file; default: names of the folders
    # Of classes, with {} for the name; or "imagenet" for its 80. Default: "a photo of a {}."
    config.templates = config_dict.placeholder(tuple)
    config.num_images = config_dict.placeholder(int)  # of the user's data; default: all
    config.num_labelled_scenes = 400  # embedded
    config.num_train_scenes = 1000  # embedded
    config.num_fidelity_images = 64  # of which some are drawn with their landmarks
    config.batch_size = 16
    # Processes that read images; 0: threads. Default: as the number of images and cores suggests.
    config.num_workers = config_dict.placeholder(int)
    # Where embeddings are kept and found again, to be shared between runs; '' keeps none. Default:
    # embeddings/ in the workdir.
    config.cache = config_dict.placeholder(str)

    config.fna = ml_collections.ConfigDict()
    config.fna.layers = "second half"  # or block indices, like "13:24"
    config.fna.num_landmarks = (16, 64)
    config.fna.features = "q"
    config.fna.methods = ("fps",)  # or "random"
    config.fna.seeds = (0, 1, 2)  # of random landmarks
    config.fna.resample = False
    # Massive tokens are no landmarks: "massive_by_norm" or "massive_by_attention".
    config.fna.exclude = config_dict.placeholder(str)
    config.fna.inverse_steps = 6
    return config
