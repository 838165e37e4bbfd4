"""Classification, exact attention and FNA side by side: `python main.py --config classify.py`."""

from ml_collections import config_dict

from configs import eval as eval_config


def get_config():
    config = eval_config.get_config()  # model, data and FNA
    del config.data_images, config.num_captioned_scenes
    # Also "classifier": the model's own head. A model without a text tower has no "zero_shot".
    config.tasks = ("zero_shot", "knn", "linear_probe")
    # Of the formats of data, those with a part to train on: class folders in train/ and val/, or
    # a table. `data_split` is what to test with.
    config.train_data = config_dict.placeholder(str)  # class folders to train on, if elsewhere
    config.num_train_scenes = 1000  # embedded
    config.fna.num_landmarks = (16, 64)
    config.fna.methods = ("fps",)  # or "random"
    return config
