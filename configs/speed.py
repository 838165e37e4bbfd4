"""Does FNA pay for a model, an image size and this device: `python main.py --config speed.py`.

Vision towers are timed; of language models, a LLaVA's among them, is told what is counted.
"""

import ml_collections
from ml_collections import config_dict

from configs import eval as eval_config


def get_config():
    config = ml_collections.ConfigDict()
    config.task = "speed"
    # A name of models.list_models(), with random weights (time does not depend on them), a
    # checkpoint of models.save, PyTorch files, or a hub id; empty: the embedded model.
    config.model = ""
    config.revision = config_dict.placeholder(str)
    config.image_size = (0, 0)  # height and width in pixels; 0: as the model was trained
    config.dtype = config_dict.placeholder(str)  # "float32" or "bfloat16"; default: the model's
    # Of a prompt, for what is counted of a language model; by default of LLaVA-NeXT's square image.
    config.num_tokens = 2928
    config.batch_size = 1
    config.repeats = 7

    config.fna = ml_collections.ConfigDict()
    config.fna.layers = "second half"  # or block indices, like "13:24"
    config.fna.num_landmarks = (16, 32, 64, 128)  # those below the number of tokens
    config.fna.methods = ("fps", "centroid")  # or others of configs/eval.py
    config.fna.features = "q"
    config.fna.resample = False
    config.fna.centroid = eval_config.centroid_settings()
    config.fna.tuned = config_dict.placeholder(str)  # a tune.json, timed in the whole tower alone
    # Sides of square grids of patches, at which one attention layer is timed for the break-even.
    config.grids = (8, 12, 16, 24, 32, 48)
    return config
