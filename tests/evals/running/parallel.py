"""What evaluation and training compute on the devices there are.

`python -m tests.evals.running.parallel MODEL quick` (or `whole`) prints it as json, from the first
process.
"""

import importlib
import json
import re
import sys

import jax
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

import models
from evals.data.records import LabelledImages
from evals.running import devices, processes
from evals.running.embed import OUTPUTS, Embedder
from evals.running.pretrained import open_pretrained
from evals.tasks.fidelity import fidelity
from evals.tasks.zero_shot import zero_shot
from fna_jax import FNAConfig
from models.inputs.tokenizer import load_tokenizer
from training import contrastive

_MERGING = models.TokenMerging(8, "0:2")
_FPS, _RANDOM = FNAConfig((1,), 8), FNAConfig((1,), 8, method="random")
# A view with exact attention in one block and FNA in the other, or whose tokens are merged; a batch
# size; images, labelled.
QUICK = {
    "fps": (_FPS, 5, 13),  # sizes that neither two nor eight divide
    "merging": (_MERGING, 5, 13),
    "random": (_RANDOM, 6, 13),  # two divide it: several processes would round it up
}
WHOLE = QUICK | {"exact": (None, 5, 13), "one image": (_FPS, 16, 1)}


def evaluated(model, cases):
    """Embeddings and records of a saved CLIP, by case."""
    pretrained, found = open_pretrained(str(model)), {}
    for name, (fna, batch_size, count) in cases.items():
        pixels = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
        data = LabelledImages(pixels, np.arange(count) % 3, ["zero", "one", "two"], ["a {}"])
        how = pretrained.with_fewer_tokens if fna == _MERGING else pretrained.with_attention
        embedder, view = Embedder(batch_size), how(fna)
        rng = jax.random.key(3) if fna == _RANDOM else None
        images = embedder.images(view, data.images, rng=rng)
        found[name] = {"rows": images.rows.tolist(), "embeddings": images.embeddings.tolist()}
        if name == "fps":
            found[name]["top1"] = zero_shot(view, data, embedder, rng=rng)["top1"]
        if isinstance(fna, FNAConfig) and cases == WHOLE:
            record = fidelity(view, data.images, embedder, rng=rng)
            found[name]["errors"] = [record["embedding_error"], *record["layer_errors"].values()]
    return found


def trained(model):
    """Loss and sums of squares of the state's leaves after a step on a batch of odd size."""
    config = importlib.import_module("configs.train").get_config()
    config.batch_size, config.keep_tokens = 5, 10
    config.model.vision.patch_size = 16
    for tower in (config.model.vision, config.model.text):
        tower.encoder.update(width=16, depth=1, num_heads=2, mlp_dim=16)
    tokenize = load_tokenizer(model, context_length=32, vocab_size=22)
    graphdef, state = nnx.split(contrastive._model_and_optimizer(config))
    state = devices.put(state, P())
    state, loss = contrastive._train_step(config, graphdef, tokenize, state, 0)
    sums = [
        float(np.sum(np.square(np.asarray(leaf, np.float64)))) for leaf in jax.tree.leaves(state)
    ]
    return {"loss": float(loss), "sums": sums}


def collectives():
    """What the devices send each other to embed images of so many tokens that blocks are mapped."""
    encoder = dict(width=8, depth=2, num_heads=2, mlp_dim=8)
    model = models.create(
        "clip-vit-b-32",
        rngs=nnx.Rngs(0),
        vision=dict(image_size=32, patch_size=1, encoder=encoder),
        text=dict(encoder=encoder),
    )
    graphdef, state = nnx.split(models.with_attention(model, _FPS))
    images = devices.put(np.zeros((8, 32, 32, 3), np.float32), P(devices.AXIS))
    arguments = graphdef, devices.put(state, P()), images, None
    text = devices._run.lower(OUTPUTS["embedding"], *arguments).compile().as_text()
    assert " while(" in text
    return re.findall(r" (all-\w+|collective-permute|reduce-scatter)(?:-start)?\(", text)


if __name__ == "__main__":
    processes.initialize()
    jax.config.update("jax_default_matmul_precision", "highest")
    model, extent = sys.argv[1:]
    report = evaluated(model, QUICK if extent == "quick" else WHOLE)
    report |= {"devices": jax.device_count()}
    if extent == "whole":
        report |= {"training": trained(model)}
    if jax.process_count() == 1:
        report |= {"collectives": collectives()}
    processes.on_first(lambda: print(json.dumps(report)))
