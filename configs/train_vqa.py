"""The small LLaVA that answers questions about digit scenes: `--config train_vqa.py`."""

import ml_collections


def get_config():
    config = ml_collections.ConfigDict()
    config.task = "train_vqa"
    config.name = "llava-1.5-7b"  # whose fields the following replace
    config.model = {
        # The embedded model's tower but for its last block; its weights are frozen.
        "vision": {
            "image_size": 64,
            "patch_size": 4,
            "encoder": {"width": 96, "depth": 5, "num_heads": 3, "mlp_dim": 192},
        },
        "decoder": {
            "vocab_size": 48,
            "width": 192,
            "depth": 4,
            "num_heads": 6,
            "num_kv_heads": 6,
            "head_dim": 32,
            "mlp_dim": 512,
            "max_positions": 1024,
            "qk_norm": True,
            "tied_head": True,
        },
    }
    config.seed = 0
    config.batch_size = 24  # scenes of 64 × 64 pixels, with nine questions each, or fewer
    config.large_every = 5  # steps: half as many scenes, of
    config.large_size = 96  # pixels along the side
    config.kept = 25  # percent of the patches, those with most contrast, except for
    config.whole_images_every = 2  # steps, with a third of the scenes,
    config.whole_images_from = 400  # step
    config.alignment_steps = 200  # in which the patches alone are named, and after which that has
    config.alignment_weight = 0.3  # beside the answers
    config.learning_rate = 1.5e-3
    config.weight_decay = 0.05
    config.warmup_steps = 30
    config.decay_from = 1500  # step, from which the learning rate falls to zero
    config.num_steps = 2750
    config.save_every = 50
    return config
