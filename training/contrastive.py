"""Contrastive training of a CLIP on digit scenes (arXiv 2103.00020; token dropping 2212.00794)."""

import json
import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp
import ml_collections
import optax
import orbax.checkpoint as ocp
import tokenizers
import tqdm
from absl import logging
from flax import nnx

import models
from evals import digit_scenes
from models.clip import CLIP, similarity
from models.tokenizer import load_tokenizer
from models.vit import attend_exactly

_SAVE_EVERY = 200  # steps
_MAX_LOGIT_SCALE = 100.0  # CLIP §2.5
NORMALISATION = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def train(config: ml_collections.ConfigDict, workdir) -> dict:
    """Trains the model of `config` and saves it to `workdir/model`; returns the record.

    The data of a step depends on the seed and the step alone, and the state is saved now and then,
    so a run that was killed goes on from there and ends with the same loss.
    """
    workdir = pathlib.Path(workdir).absolute()
    model, optimizer = _initial(config)
    graphdef, state = nnx.split((model, optimizer))
    with (
        tempfile.TemporaryDirectory() as folder,
        ocp.CheckpointManager(
            workdir / "state",
            options=ocp.CheckpointManagerOptions(max_to_keep=1, create=True),
        ) as manager,
    ):
        write_companions(folder)
        tokenize = load_tokenizer(folder, context_length=config.model.text.context_length)
        first, loss = 0, None
        if manager.latest_step() is not None:
            first = manager.latest_step()
            state = manager.restore(first, args=ocp.args.StandardRestore(state))
            logging.info("continuing from step %d of %d", first, config.num_steps)
        start = time.perf_counter()
        for step in (bar := tqdm.trange(first, config.num_steps, initial=first, mininterval=5)):
            batch = _batch(config, step, tokenize)
            keep = config.keep_tokens if step < config.full_tokens_from else None
            state, loss = _update(graphdef, state, batch, keep)
            if step % 20 == 0:
                bar.set_postfix(loss=f"{float(loss):.3f}")
            if (step + 1) % _SAVE_EVERY == 0 or step + 1 == config.num_steps:
                manager.save(step + 1, args=ocp.args.StandardSave(state))
        seconds = time.perf_counter() - start
        manager.wait_until_finished()
        model, _ = nnx.merge(graphdef, state)
        companions = sorted(pathlib.Path(folder).iterdir())
        models.save(model, workdir / "model", companions=companions)
    return {
        "final_loss": None if loss is None else float(loss),
        "steps_in_this_run": config.num_steps - first,
        "seconds_in_this_run": seconds,
        "model": str(workdir / "model"),
    }


def write_companions(folder):
    """Writes the tokenizer and the preprocessing of the digit scenes, as files beside a model."""
    special = ["[PAD]", "[BOS]", "[EOS]", "[UNK]"]
    words = sorted({*"a at the and top bottom left right".split(), *digit_scenes.DIGIT_NAMES})
    vocabulary = {word: index for index, word in enumerate(special + words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[BOS] $A [EOS]",
        special_tokens=[(name, vocabulary[name]) for name in ("[BOS]", "[EOS]")],
    )
    tokenizer.enable_padding(pad_id=vocabulary["[PAD]"], pad_token="[PAD]")
    folder = pathlib.Path(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    preprocessing = {"do_resize": True, "size": digit_scenes.CANVAS, **NORMALISATION}
    preprocessing["size"] = {"height": digit_scenes.CANVAS, "width": digit_scenes.CANVAS}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2) + "\n")


def contrastive_loss(logits, token_ids):
    """Cross-entropy both ways of logits `[B, B]`; equal captions share the probability."""
    same = jnp.all(token_ids[:, None] == token_ids[None], axis=-1)
    target = same / jnp.sum(same, axis=-1, keepdims=True)
    image_to_text = optax.losses.softmax_cross_entropy(logits, target)
    text_to_image = optax.losses.softmax_cross_entropy(logits.T, target)
    return 0.5 * jnp.mean(image_to_text + text_to_image)


def _initial(config):
    model = models.create(config.name, rngs=nnx.Rngs(config.seed), **config.model.to_dict())
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup_steps, config.num_steps
    )
    decay = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
    transform = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.98, weight_decay=config.weight_decay, mask=decay),
    )
    return model, nnx.Optimizer(model, transform, wrt=nnx.Param)


def _batch(config, step, tokenize):
    scenes = digit_scenes.make_scenes("train", config.batch_size, seed=(config.seed, step))
    return scenes.images, tokenize(scenes.captions)


def _update(graphdef, state, batch, keep):
    return _jitted_update(graphdef, state, *batch, keep=keep)


def _jitted_update(graphdef, state, images, token_ids, *, keep):
    model, optimizer = nnx.merge(graphdef, state)

    def loss_of(model: CLIP):
        pixels = (images.astype(jnp.float32) / 255 - 0.5) / 0.5
        image = model.vision_projection(_pooled(model.vision, pixels, keep))
        text = model.encode_text(token_ids)
        scale = jnp.minimum(jnp.exp(model.logit_scale[...]), _MAX_LOGIT_SCALE)
        return contrastive_loss(scale * similarity(image, text), token_ids)

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return nnx.state((model, optimizer)), loss


_jitted_update = jax.jit(_jitted_update, static_argnames=("graphdef", "keep"), donate_argnums=1)


def _pooled(vision, pixels, keep):
    """The pooled state `[B, C]`, from the class token and `keep` patches of most contrast.

    Ink is where contrast is, so most of the compute of the early steps is saved at little loss.
    """
    tokens = vision.embed(pixels)
    if keep is not None:
        kept = jax.lax.top_k(_patch_contrast(pixels, vision.patch_embedding.patch_size), keep)[1] + 1
        kept = jnp.pad(kept, ((0, 0), (1, 0)))  # the class token first
        tokens = jnp.take_along_axis(tokens, kept[..., None], axis=1)
    tokens, _, _ = vision.encoder(tokens, [attend_exactly] * len(vision.encoder.blocks))
    return vision.post_norm(tokens[:, 0])


def _patch_contrast(pixels, patch_size):
    """Variance of each patch `[B, h·w]` of pixels `[B, height, width, 3]`."""
    batch, height, width, channels = pixels.shape
    grid = (batch, height // patch_size, patch_size, width // patch_size, patch_size, channels)
    return jnp.var(pixels.reshape(grid), axis=(2, 4, 5)).reshape(batch, -1)
