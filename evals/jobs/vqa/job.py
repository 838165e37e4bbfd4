"""Answers to a benchmark's questions with every arm, batch by batch, resumable."""

import dataclasses
import functools
import os
import pathlib

import jax
import ml_collections
import numpy as np

from evals.data.embedded import asked_digit_scenes
from evals.data.question_files import READERS
from evals.data.questions import Questions, read_questions
from evals.jobs.opening import check_num_landmarks, run_jobs
from evals.jobs.settings import check_choice, check_counts
from evals.jobs.vqa.arms import AnswerArm, make_answer_arms
from evals.jobs.vqa.asking import Bench, prompt_form
from evals.jobs.vqa.speeds import cache_bytes, speeds
from evals.running.cache import data_digest
from evals.running.journal import Journal
from evals.running.pretrained import EMBEDDED_LLAVA, open_answering
from evals.running.workdir import write_atomically
from evals.tasks.answers.benchmarks import BENCHMARKS, DIGITS, predictions, score

_INSTRUCTION = "Answer the question using a single word or phrase."
_NUM_QUESTIONS = 100  # of the embedded ones
_EMBEDDED_SIZES = 64, 96  # pixels, of what the embedded model was trained on
_CHOICES = ("fna.num_landmarks", "fna.seeds", "dropping.kept", "dropping.seeds")
_MAY_BE_EMPTY = (
    "fna.methods",
    "prefill.num_landmarks",
    "prefill.run_lengths",
    "landmark_cache.num_landmarks",
    "dropping.methods",
)


def answer_questions(config: ml_collections.ConfigDict, workdir) -> dict:
    """Every arm's answers, their score, and the arms' speed; each is kept in `workdir`.

    Below it are `predictions/ARM.json`, for evaluation servers, and `answers/`, where a killed run
    goes on behind the last batch.

    Returns:
      A dictionary: `points` (a record of each arm's answers, and of all speeds), `arms` (their
      `label` and `strength` by name), `prompt`, `model`, `config`, `environment`.

    Raises:
      FileNotFoundError, ValueError: a model, files or settings that cannot be used, or a `workdir`
        of a run with other settings.
    """
    check_settings(config)
    questions = questions_of(config)
    bench = open_bench(config, questions)
    arms = make_answer_arms(config, bench.backbone.model.config)
    jobs = []
    for sized in benches(bench, config):
        check_arms(sized, arms)
        jobs += _jobs(sized, arms, config, workdir)
    results = run_jobs(jobs, bench.backbone, config, workdir, questions=_digest(questions))
    told = {arm.name: {"label": arm.label, "strength": arm.strength} for arm in arms}
    return results | {"arms": told, "prompt": bench.form}


def questions_of(config) -> Questions:
    """What a config asks; errors as `answer_questions`."""
    if config.dataset == DIGITS:
        return asked_digit_scenes(config.num_questions or _NUM_QUESTIONS)
    return read_questions(
        config.dataset,
        config.questions,
        images=config.images,
        annotations=config.annotations,
        limit=config.num_questions,
    )


def benches(bench, config) -> list[Bench]:
    """The bench for each size of images; errors as `answer_questions`."""
    sizes = config.image_sizes or (_EMBEDDED_SIZES if not config.model else (0,))
    if sizes == (0,):
        return [bench]
    try:
        return [
            dataclasses.replace(bench, backbone=bench.backbone.at_size(pixels), pixels=pixels)
            for pixels in sizes
        ]
    except ValueError as error:
        raise ValueError(f"--config.image_sizes={sizes}: {error}") from None


def _jobs(bench, arms, config, workdir):
    """Those of a bench, as `run_jobs` takes them."""
    answers = answers_of(bench, config.dataset, workdir)
    jobs = [
        (arm.name, config.dataset, functools.partial(_record, bench, arm, answers, config.dataset))
        for arm in arms
    ]
    if config.repeats:
        jobs.append(("all", "speed", functools.partial(speeds, bench, arms, config.repeats)))
    sized = lambda run: functools.partial(_of_size, bench.pixels, run)
    return [(name, f"{task}{bench.suffix}", sized(run)) for name, task, run in jobs]


def _of_size(pixels, run):
    """A run's record, with the size of images where it is not the model's own."""
    return run() | ({} if pixels is None else {"pixels": pixels})


def open_bench(config, questions) -> Bench:
    """The model of a config with questions; errors as `answer_questions`."""
    source = os.path.expanduser(config.model) or str(EMBEDDED_LLAVA)
    backbone = open_answering(source, config.revision)
    instruction = config.instruction
    if instruction is None:
        instruction = "" if config.dataset == DIGITS else _INSTRUCTION
    form = prompt_form(
        backbone.chat,
        backbone.model.config.image_token_id,
        form=config.prompt,
        instruction=instruction,
    )
    bench = Bench(backbone, questions, form, config.batch_size, config.max_new_tokens)
    _ = bench.token_ids  # whose errors belong here
    return bench


def check_arms(bench, arms) -> None:
    """Raises ValueError for an arm that cannot run: its blocks, or more landmarks than tokens."""
    prompts = bench.first_prompts()
    real = int(prompts.key_mask[0].sum())
    num_patches = bench.reader.num_patches(bench.backbone, prompts)
    for arm in arms:
        view = arm.tower.view(bench.backbone)
        for fna in arm.tower.fnas:
            check_num_landmarks(fna.num_landmarks, num_patches, of=bench.reader.seen)
        if arm.num_landmarks is not None:
            check_num_landmarks(arm.num_landmarks, real, of="the first prompt")
        if (arm.prefill, arm.cache, arm.dropping) != (None, None, None):
            cache_bytes(bench, view, arm, prompts)  # knows the blocks


def answers_of(bench, dataset, workdir):
    """A function of an arm that gives all its answers, kept in a folder and found there again.

    Args:
      bench: whom it asks.
      dataset: of `BENCHMARKS`.
      workdir: where `answers` and `predictions` are, with the bench's suffix behind their names.
    """

    def folder(name):
        path = pathlib.Path(workdir, f"{name}{bench.suffix}")
        path.mkdir(parents=True, exist_ok=True)
        return path

    @functools.cache
    def answers(arm: AnswerArm) -> list:
        journal = Journal(folder("answers") / f"{arm.name}.jsonl")
        batches = journal.read()
        if len(batches) * bench.batch_size < len(bench.questions):
            for texts in bench.answers(arm, start=len(batches)):
                journal.append(texts)
                batches.append(texts)
        found = [text for texts in batches for text in texts]
        suffix = "jsonl" if BENCHMARKS[dataset].by_line else "json"
        content = predictions(dataset, found, bench.questions)
        write_atomically(folder("predictions") / f"{arm.name}.{suffix}", content)
        return found

    return answers


def _record(bench, arm, answers, dataset):
    """The scores of an arm, where there are references, and what it has in common with exact."""
    mine, exact = answers(arm), answers(AnswerArm())
    asked = [pair for pair in zip(mine, exact, strict=True) if None not in pair]
    if not asked:
        raise ValueError("no question could be asked: none of the images opens")
    record = {"task": dataset, "num_questions": len(asked)}
    if bench.questions.answers is not None:
        record |= score(dataset, mine, bench.questions)
    return record | {"identical": 100 * sum(a == b for a, b in asked) / len(asked)}


def _digest(questions: Questions):
    """What tells questions, references and images apart."""
    written = repr((questions.ids, questions.texts, questions.answers)).encode()
    return data_digest([np.frombuffer(written, np.uint8), *questions.images])


def check_settings(config) -> None:
    """Raises ValueError for what is missing, a number out of range, or a repetition."""
    if not config.model and config.dataset != DIGITS:
        raise ValueError(
            "--config.model is missing, and the embedded one knows digit scenes alone: give a "
            "converted LLaVA or Qwen3-VL, for instance llava-hf/llava-interleave-qwen-0.5b-hf"
        )
    for name in ("questions", "images", "annotations"):
        if config.dataset == DIGITS and config[name]:
            raise ValueError(
                f"--config.{name} was given, but the questions of digits are embedded: drop it, or "
                f"name the benchmark, --config.dataset=… ({', '.join(READERS)})"
            )
        if config.dataset != DIGITS and name != "annotations" and not config[name]:
            raise ValueError(
                f"--config.{name} is missing: give what {config.dataset}'s authors publish"
            )
    if jax.process_count() > 1:
        raise ValueError("vqa.py runs in one process: start it on one host")
    check_counts(config, ("num_questions", "max_new_tokens", "batch_size"))
    if config.image_sizes:
        check_choice(config.image_sizes, "image_sizes")
    if config.repeats < 0:
        raise ValueError(f"--config.repeats must be at least 0, got {config.repeats}")
    for name in _CHOICES:
        group, field = name.split(".")
        check_choice(config[group][field], name)
    for name in _MAY_BE_EMPTY:
        group, field = name.split(".")
        if config[group][field]:
            check_choice(config[group][field], name)
