"""What training scripts leave, imitated from what their authors say that they save.

Each is a function of the tensors of a model, by the names of its library, and of those of another
state of it (an average, or before training).
"""

import numpy as np

from tests.pickled import Call, Name, namespace, numpy_scalar

_ONE = np.ones(3, np.float32)
_OPTIMIZER = {
    "state": {0: {"step": 7, "exp_avg": _ONE, "exp_avg_sq": _ONE}},
    "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0]}],
}
_SCALER = {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 12}


def prefixed(prefix, tensors):
    """All names behind a prefix."""
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def chunked(tensors, size=1):
    """DINOv2's blocks in chunks of so many: the number of the chunk, then that of the block."""
    names = {}
    for name in tensors:
        first, *rest = name.split(".")
        if first == "blocks":
            names[name] = ".".join((first, str(int(rest[0]) // size), *rest))
    return {names.get(name, name): tensor for name, tensor in tensors.items()}


def mae(tensors, other):
    """MAE's and DeiT's main script: the model beside optimizer, scaler, epoch and arguments."""
    del other
    return {
        "model": tensors,
        "optimizer": _OPTIMIZER,
        "epoch": 799,
        "scaler": _SCALER,
        "args": namespace(model="mae_vit_base_patch16", lr=1.5e-4, device="cuda", output_dir="."),
    }


def deit(tensors, other):
    """The same with an average of the weights."""
    return mae(tensors, None) | {"model_ema": other, "args": namespace(model="deit_tiny")}


def timm(tensors, other):
    """timm's train.py, with `--model-ema`."""
    return {
        "epoch": 12,
        "arch": "vit_tiny_patch16_224",
        "state_dict": tensors,
        "optimizer": _OPTIMIZER,
        "version": 2,
        "args": namespace(model="vit_tiny_patch16_224", opt="adamw", mean=None),
        "amp_scaler": _SCALER,
        "state_dict_ema": other,
        "metric": numpy_scalar(71.3),
    }


def dino(tensors, other):
    """DINO's main script: two networks, the first within data parallelism, with their heads."""
    head = {"head.mlp.0.weight": _ONE, "head.last_layer.weight_g": _ONE}
    return {
        "student": prefixed("module.", prefixed("backbone.", other) | head),
        "teacher": prefixed("backbone.", tensors) | head,
        "optimizer": _OPTIMIZER,
        "epoch": 99,
        "args": namespace(arch="vit_small", patch_size=16),
        "dino_loss": {"center": _ONE[None]},
        "fp16_scaler": _SCALER,
    }


def dinov2_teacher(tensors, other):
    """What DINOv2's evaluation hook saves: the teacher, its blocks in chunks, and the heads."""
    del other
    heads = {f"{x}_head.last_layer.weight_v": _ONE for x in ("dino", "ibot")}
    return {"teacher": prefixed("backbone.", chunked(tensors)) | heads}


def dinov2_trainer(tensors, other):
    """DINOv2's own checkpoints: one state dict of both networks."""
    networks = {"student": chunked(other, 2), "teacher": chunked(tensors, 2)}
    model = {}
    for name, state in networks.items():
        model |= prefixed(f"{name}.backbone.", state) | {f"{name}.dino_head.mlp.0.bias": _ONE}
    return {"model": model, "optimizer": _OPTIMIZER, "iteration": 124_999}


def open_clip(tensors, other):
    """open_clip's `epoch_K.pt`, of a model within distributed data parallelism."""
    del other
    state = prefixed("module.", tensors)
    return {"epoch": 2, "name": "run", "state_dict": state, "optimizer": _OPTIMIZER}


def lightning(tensors, other):
    """A `.ckpt` of PyTorch Lightning, of a module that calls its network `model`."""
    del other
    settings = Call(
        Name("pytorch_lightning.utilities.parsing", "AttributeDict"), (), None, {"lr": 1e-3}
    )
    best = {"monitor": "val_loss", "best_model_score": _ONE[0:1].reshape(()), "best_k_models": {}}
    return {
        "epoch": 3,
        "global_step": 400,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": prefixed("model.", tensors) | {"criterion.weight": _ONE},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val_loss'}": best},
        "optimizer_states": [_OPTIMIZER],
        "lr_schedulers": [{"base_lrs": [1e-3], "last_epoch": 4, "_last_lr": [numpy_scalar(1e-3)]}],
        "hparams_name": "kwargs",
        "hyper_parameters": settings,
    }
