"""The small model of the embedded demo: `python main.py --config train.py`."""

import ml_collections


def get_config():
    config = ml_collections.ConfigDict()
    config.task = "train"
    config.name = "clip-vit-b-32"  # whose fields the following replace
    width = 96

    def encoder(depth):
        return {"width": width, "depth": depth, "num_heads": 3, "mlp_dim": 2 * width}

    config.model = {
        "vision": {"image_size": 64, "patch_size": 4, "encoder": encoder(6)},
        "text": {
            "vocab_size": 22,
            "context_length": 32,
            "eos_token_id": 2,
            "encoder": encoder(3),
        },
        "projection_dim": 128,
    }
    config.seed = 0
    config.batch_size = 128
    config.learning_rate = 1e-3
    config.weight_decay = 0.05
    config.warmup_steps = 40
    config.decay_from = 1000  # step, from which the learning rate falls to zero
    config.num_steps = 1800
    config.keep_tokens = 64  # of 256 patches, those with most contrast, except for
    config.whole_images_every = 7  # steps
    config.whole_images_from = 1000  # step
    config.save_every = 100
    return config
