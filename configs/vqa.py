"""Questions about images, each attention side by side: `python main.py --config vqa.py`.

By default the embedded model, of `train_vqa.py`, is asked about digit scenes. A LLaVA or a
Qwen3-VL, and the files of a benchmark, are the user's.
"""

import ml_collections
from ml_collections import config_dict

from configs import eval as eval_config


def get_config():
    config = ml_collections.ConfigDict()
    config.task = "vqa"
    # A converted LLaVA or Qwen3-VL, its PyTorch files, or a hub id; default: the embedded one.
    config.model = ""
    config.revision = config_dict.placeholder(str)
    # The embedded "digits", or "vqav2", "textvqa", "gqa", "pope", "docvqa", "chartqa".
    config.dataset = "digits"
    config.questions = config_dict.placeholder(str)  # the json that the authors publish
    config.annotations = config_dict.placeholder(str)  # of VQAv2: the json of the answers, if any
    config.images = config_dict.placeholder(str)  # the folder of the images
    config.num_questions = config_dict.placeholder(int)  # the first; default: all, 100 of digits
    # Behind a question; default: of digits none, of others to answer with a word or phrase.
    config.instruction = config_dict.placeholder(str)
    # Pixels along the side of square images, for models that do not cut them into tiles; default:
    # of the embedded model 64 and 96, of others their own.
    config.image_sizes = ()
    # Instead of the checkpoint's chat template, with its image token and {question}.
    config.prompt = config_dict.placeholder(str)
    config.max_new_tokens = 32  # of an answer, at most
    config.batch_size = 4
    config.repeats = 3  # rounds in which all arms are timed in turns, on the first batch; 0: none

    config.fna = eval_config.get_config().fna  # in the vision tower
    config.fna.num_landmarks = (16, 64)
    config.fna.methods = ("fps", "centroid")
    config.fna.seeds = (0,)
    del config.fna.kept, config.fna.merging  # of methods that it does not take

    # The prompt is read approximately, by FNA or by centroid attention of runs; () for no such arm.
    config.prefill = ml_collections.ConfigDict()
    config.prefill.layers = "second half"  # of the language model, or as above
    config.prefill.num_landmarks = (64, 256)  # of FNA
    config.prefill.run_lengths = (16, 64)  # tokens of a run

    # Landmarks in place of the prompt while an answer is written; () for no such arm.
    config.landmark_cache = ml_collections.ConfigDict()
    config.landmark_cache.layers = "second half"  # of the language model, or as above
    config.landmark_cache.num_landmarks = (64, 256)

    # Fewer image tokens in front of the language model, "farthest" points or "random" ones, or
    # behind one of its blocks those that the last token gives most "attention" there.
    config.dropping = ml_collections.ConfigDict()
    config.dropping.methods = ("farthest", "random", "attention")
    config.dropping.block = 1  # of "attention", from 0
    config.dropping.kept = (50, 25)  # percent of a prompt's
    config.dropping.seeds = (0,)  # of random ones
    return config
