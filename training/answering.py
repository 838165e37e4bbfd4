"""Training of a small LLaVA on questions about digit scenes, its tower frozen (2304.08485 §4.2).

First the projector is aligned with the word embeddings: each patch is to name the digit that it
shows. To find what a question names is then to compare words, and is learned soon; without it,
presence was still at chance after 1,950 steps.
"""

import dataclasses
import functools
import json
import tempfile
import typing

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx
from jax.sharding import PartitionSpec as P

import models
from evals.data.digit_scenes import CANVAS, DIGIT_NAMES, make_scenes
from evals.data.scene_questions import NONE, draw_questions
from evals.jobs.settings import check_counts
from evals.running.devices import AXIS, own_slots, put
from evals.running.pretrained import EMBEDDED_MODEL
from models.inputs.chat import load_chat
from models.inputs.preprocessing import load_preprocessor
from models.llava import LLaVA
from training import steps
from training.companions import BEGIN_TOKEN, IMAGE_TOKEN, write_chat_companions
from training.contrastive import patch_contrast
from training.packing import NO_TARGET, Packed, pack, packed_states

_LEARNED = nnx.All(nnx.Param, nnx.Not(nnx.PathContains("vision")))

_QUESTIONS = {"place": 2, "number": 1, "presence": 3, "larger": 2, "order": 1}  # about an image
_ROOM = 80  # tokens, for all of them
_LARGE_COSTS, _WHOLE_COSTS = 2, 3  # by how much fewer such scenes a step has


def training_report(config, workdir) -> str:
    """Trains, and returns the record of `train` as text."""
    return json.dumps(train(config, workdir), indent=2)


def train(config: ml_collections.ConfigDict, workdir) -> dict:
    """Trains the model of `config`, saves it to `workdir/model`, and returns the record.

    The data of a step depend on the seed and the step alone, so that a run that was killed goes on
    as `steps.run` says. What is saved is rounded to bfloat16, and computes in float32.

    Raises:
      ValueError: settings out of range, or `workdir` holds a run with others.
    """
    check_settings(config)
    with tempfile.TemporaryDirectory() as folder:
        companions = write_chat_companions(folder)
        chat = load_chat(folder, vocab_size=config.model.decoder.vocab_size)
        model = _new_model(config, chat.tokenizer.token_to_id(IMAGE_TOKEN))
        optimizer = nnx.Optimizer(model, steps.adamw(config), wrt=_LEARNED)
        graphdef, state = nnx.split((model, optimizer))

        def save(state, path):
            model, _ = nnx.merge(graphdef, state)
            models.save(rounded(model), path, companions=companions)

        read = load_preprocessor(folder), chat
        update = functools.partial(_train_step, config, graphdef, *read)
        return steps.run(config, workdir, update, state, save)


def check_settings(config) -> None:
    """Raises ValueError for a setting out of range that no step or only a late one would refuse."""
    steps.check_steps(config)
    check_counts(config, ("large_every", "whole_images_every"))
    if config.batch_size < _LARGE_COSTS * _WHOLE_COSTS:
        raise ValueError(
            f"--config.batch_size must be at least {_LARGE_COSTS * _WHOLE_COSTS}, so that one is "
            f"left of large and whole images, got {config.batch_size}"
        )
    if config.alignment_steps < 0 or config.alignment_weight < 0:
        raise ValueError(
            "--config.alignment_steps and --config.alignment_weight must be at least 0, got "
            f"{config.alignment_steps} and {config.alignment_weight}"
        )
    if not 0 < config.kept <= 100:
        raise ValueError(f"--config.kept must be percent of the patches, got {config.kept}")
    if config.large_size % config.model.vision.patch_size:
        raise ValueError(
            f"--config.large_size={config.large_size} does not divide by the patch size "
            f"{config.model.vision.patch_size}"
        )


def _new_model(config, image_token_id) -> LLaVA:
    """A LLaVA with the first blocks of the embedded tower, and otherwise random weights."""
    fields = config.model.to_dict()
    model = models.create(
        config.name, rngs=nnx.Rngs(config.seed), image_token_id=image_token_id, **fields
    )
    tower = models.load(EMBEDDED_MODEL).vision
    known = dict(nnx.to_flat_state(nnx.state(tower, nnx.Param)))
    own = nnx.to_flat_state(nnx.state(model.vision, nnx.Param))
    nnx.update(model.vision, nnx.from_flat_state((path, known[path]) for path, _ in own))
    return model


def rounded(model: LLaVA) -> LLaVA:
    """The same model with weights in bfloat16, which computes in the same dtype as before."""
    config = dataclasses.replace(model.config, param_dtype="bfloat16")
    graphdef, state = nnx.split(models.registry.abstract_model(LLaVA, config))
    weights = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    weights = jax.tree.map(lambda x: np.asarray(x).astype(jnp.bfloat16), weights)
    nnx.replace_by_pure_dict(state, weights)
    return nnx.merge(graphdef, state)


def _train_step(config, graphdef, preprocess, chat, state, step):
    size, side = config.batch_size, CANVAS
    if (step + 1) % config.large_every == 0:
        size, side = size // _LARGE_COSTS, config.large_size
        preprocess = preprocess.at_size(side)
    grid = side // config.model.vision.patch_size
    keep = grid**2 * config.kept // 100
    if step >= config.whole_images_from and step % config.whole_images_every == 0:
        keep, size = None, size // _WHOLE_COSTS
    scenes = make_scenes("train", size, seed=(config.seed, step))
    pixels = np.stack([preprocess(image) for image in scenes.images])
    packed, weight = None, 1.0
    if step >= config.alignment_steps:
        packed, weight = _asked(chat, scenes.digits, (config.seed, step)), config.alignment_weight
    batch = put(own_slots((pixels, _shown(chat, scenes.labels, grid), packed)), P(AXIS))
    begins = chat.tokenizer.token_to_id(BEGIN_TOKEN)
    return _update(graphdef, state, *batch, weight, begins=begins, keep=keep)


def _asked(chat, digits, seed) -> Packed:
    """Questions about scenes."""
    rng = np.random.default_rng(seed)
    drawn = [draw_questions(of_scene, rng, _QUESTIONS) for of_scene in digits]
    return pack([_token_pairs(chat, questions) for questions in drawn], _ROOM)


def _shown(chat, labels, grid):
    """The token of what is at the centre of each patch, int `[B, grid²]`: a digit, or none."""
    tokens = np.array([chat.tokenizer.token_to_id(word) for word in (NONE, *DIGIT_NAMES)])
    centres = ((np.arange(grid) + 0.5) * labels.shape[1] / grid).astype(int)
    return tokens[labels[:, centres[:, None], centres]].reshape(len(labels), -1)


def _token_pairs(chat, questions):
    ids = lambda text: chat.tokenizer.encode(text, add_special_tokens=False).ids
    return [(ids(q.text), [*ids(q.answer), *chat.stop_tokens]) for q in questions]


@functools.partial(jax.jit, static_argnums=0, static_argnames=("begins", "keep"))
def _update(graphdef, state, pixels, shown, packed, weight, *, begins, keep):
    """The state after one step, and its loss; packed None asks nothing."""
    model, optimizer = nnx.merge(graphdef, state)
    seen = _look(model.vision, pixels, keep)
    shown = jnp.take_along_axis(shown, seen.patches, axis=1)

    def loss_of(model: LLaVA):
        loss = weight * _alignment_loss(model, seen.features, shown)
        if packed is None:
            return loss
        states = _states(model, seen, packed, begins)
        return loss + _answer_loss(model.decoder.logits_of(states), packed.target)

    loss, gradients = nnx.value_and_grad(loss_of, argnums=nnx.DiffState(0, _LEARNED))(model)
    optimizer.update(model, gradients)
    return nnx.state((model, optimizer)), loss


def _alignment_loss(model, features, shown):
    """Of the projector and the word embeddings alone: each patch is to name what it shows."""
    named = model.decoder.logits_of(model.decoder.final_norm(model.projector(features)))
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(named, shown))


def _answer_loss(logits, target):
    """Of the answers' tokens alone; `[B, M, V]` and `[B, M]`."""
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(target, 0))
    learned = target != NO_TARGET
    return jnp.sum(losses * learned) / jnp.sum(learned)


class _Seen(typing.NamedTuple):
    """F of N patches of B images: their features `[B, F, C]`, and which they are, int `[B, F]`."""

    features: jax.Array
    patches: jax.Array
    num_patches: int


def _look(vision, pixels, keep) -> _Seen:
    """At the `keep` patches of most contrast; None: at all."""
    features = jax.lax.stop_gradient(vision(pixels).tokens[:, vision.num_prefix :])
    batch, num_patches, _ = features.shape
    if keep is None:
        patches = jnp.broadcast_to(jnp.arange(num_patches), (batch, num_patches))
        return _Seen(features, patches, num_patches)
    contrast = patch_contrast(pixels, vision.patch_embedding.patch_size)
    kept = jnp.sort(jax.lax.top_k(contrast, keep)[1], axis=1)
    return _Seen(jnp.take_along_axis(features, kept[..., None], axis=1), kept, num_patches)


def _states(model, seen: _Seen, packed, begins):
    """`packed_states` of questions behind what was seen, at their positions behind all patches."""
    begin = model.decoder.embed(jnp.full((len(seen.features), 1), begins))
    prefix = jnp.concatenate([begin, model.projector(seen.features)], axis=1)
    positions = jnp.pad(seen.patches + 1, ((0, 0), (1, 0)))
    return packed_states(model.decoder, prefix, positions, packed, start=1 + seen.num_patches)
