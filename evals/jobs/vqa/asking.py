"""A benchmark's questions as batches of prompts, and what a model answers to them."""

import contextlib
import dataclasses
import functools

import numpy as np

from convert.errors import show
from evals.data import Tolerance, UnreadableImage, read_ahead, read_image
from evals.data.questions import Questions
from evals.jobs.vqa.readers import Reader, reader_of
from evals.running.pretrained import Answering
from models.image_tokens import common_length
from models.inputs.chat import Chat

PLACE = "{question}"
_EXAMPLE = "USER: <image>\n{question} ASSISTANT:"


def prompt_form(chat: Chat, image_token_id, *, form=None, instruction="") -> str:
    """How the model is asked: a text with one image token, and `{question}` in place of it.

    Args:
      chat: of the model.
      image_token_id: of the model.
      form: such a text; None for the chat template of the checkpoint.
      instruction: a line behind the question.

    Raises:
      ValueError: a form without a place for the question, or without exactly one image; a template
        that is missing or writes no image.
    """
    asked = f"{PLACE}\n{instruction}" if instruction else PLACE
    image = chat.tokenizer.id_to_token(image_token_id)
    if form is not None:
        written = [form.replace(PLACE, asked)]
    else:  # the content of a message is a list in transformers' templates, elsewhere a text
        parts = [{"type": "image"}, {"type": "text", "text": asked}]
        contents = (parts, f"{image}\n{asked}")
        written = [chat.prompt([{"role": "user", "content": x}]) for x in contents]
    for text in written:
        tokens = encoded(chat, text.replace(PLACE, ""))
        if text.count(PLACE) == 1 and tokens.count(image_token_id) == 1:
            return text
    whose = "--config.prompt" if form is not None else f"the chat template in {chat.folder}"
    raise ValueError(
        f"{whose} must give one image token ({show(image)}) and one {PLACE}, got {show(written[0])}"
        f"; set --config.prompt, for instance to {_EXAMPLE!r}"
    )


def encoded(chat: Chat, prompt) -> list[int]:
    """Token ids of a prompt; what begins a text is there once, by the form or by the tokenizer."""
    begins = chat.special.get("bos_token")
    special = begins is None or not prompt.startswith(begins)
    return chat.encode([prompt], special_tokens=special)[0][0].tolist()


def suffix_of(pixels) -> str:
    """Of what a run at this size of images is called; none for the model's own, None."""
    return "" if pixels is None else f"-{pixels}px"


@dataclasses.dataclass(frozen=True)
class Bench:
    """A model and the questions that it is asked.

    Attributes:
      backbone: the model, with exact attention.
      questions: M.
      form: of `prompt_form`.
      batch_size: B.
      max_new_tokens: of an answer.
      pixels: along the side of an image, where it is not the model's own size.
    """

    backbone: Answering
    questions: Questions
    form: str
    batch_size: int
    max_new_tokens: int
    pixels: int | None = None

    @property
    def suffix(self) -> str:
        """Of the names of tasks and folders."""
        return suffix_of(self.pixels)

    @property
    def reader(self) -> Reader:
        """Of the model."""
        return reader_of(self.backbone.model)

    @functools.cached_property
    def token_ids(self) -> list[list[int]]:
        """Of all prompts, with one image token each.

        Raises:
          ValueError: an image token in a question.
        """
        chat, config = self.backbone.chat, self.backbone.model.config
        marks, found = (config.image_token_id, config.video_token_id), []
        for number, text in zip(self.questions.ids, self.questions.texts, strict=True):
            ids = encoded(chat, self.form.replace(PLACE, text))
            if len(extra := [token for token in ids if token in marks]) != 1:
                raise ValueError(
                    f"question {show(number)} has the image token "
                    f"{chat.tokenizer.id_to_token(extra[-1])!r} in its text, but one image: "
                    f"{show(text)}"
                )
            found.append(ids)
        return found

    def batches(self, *, start=0):
        """Yields rows, which question is in each place of a batch, and their looked-at images.

        An image that does not open is an `UnreadableImage`. The last batch is filled up with its
        last question.

        Args:
          start: the number of the first batch.

        Raises:
          ValueError: too many images that do not open.
        """
        size, last = self.batch_size, len(self.questions) - 1
        rows = np.minimum(np.arange(start * size, -(-(last + 1) // size) * size), last)
        tolerance, known = Tolerance(len({id(x) for x in self.questions.images})), set()
        with contextlib.closing(read_ahead(self._look, rows, ahead=2 * size)) as read:
            looked = []
            for image in read:
                looked.append(image)
                if isinstance(image, UnreadableImage) and image.file not in known:
                    known.add(image.file)
                    tolerance.add([image])
                if len(looked) == size:
                    yield rows[:size], looked
                    rows, looked = rows[size:], []
        tolerance.close()

    def _look(self, row):
        config, preprocess = self.backbone.model.config, self.backbone.preprocess
        try:
            return read_image(
                self.questions.images[row],
                lambda image: self.reader.look(image, config, preprocess),
            )
        except UnreadableImage as error:
            return error

    def prompts(self, rows, looked):
        """The prompts of a batch, of shapes that many batches have.

        Raises:
          ValueError: more tokens than the model has positions.
        """
        config, ids = self.backbone.model.config, [self.token_ids[row] for row in rows]
        lengths = [len(x) - 1 + self.reader.num_tokens(config, one) for x, one in zip(ids, looked)]
        room = config.decoder.max_positions - self.max_new_tokens + 1
        if (longest := max(lengths)) > room:
            number = self.questions.ids[rows[lengths.index(longest)]]
            raise ValueError(
                f"question {show(number)} and its image have {longest} tokens, and an answer "
                f"{self.max_new_tokens}, but the model has {config.decoder.max_positions} "
                "positions: take a smaller --config.max_new_tokens, or leave the question out"
            )
        length = min(common_length(longest), room)
        looked = [[one] for one in looked]
        prompts = self.reader.lay_out(ids, looked, config=config, length=length)
        return self.reader.in_few_shapes(prompts, self.batch_size)

    def first_prompts(self):
        """Those of the first batch whose images open.

        Raises:
          ValueError: there is none, or too many images do not open.
        """
        for rows, looked in self.batches():
            if (whole := _without_gaps(rows, looked)) is not None:
                return self.prompts(*whole)
        raise ValueError(f"none of the images of {len(self.questions)} questions opens")

    def answers(self, arm, *, start=0):
        """Yields the answers to each batch of questions: texts, and None where no image opens.

        Args:
          arm: of `arms.make_answer_arms`.
          start: the number of the first batch.
        """
        view = arm.tower.view(self.backbone)
        for number, (rows, looked) in enumerate(self.batches(start=start), start=start):
            whole, texts = _without_gaps(rows, looked), [None] * len(rows)
            if whole is not None:
                stop = self.backbone.chat.stop_tokens
                written = self.written(view, arm, self.prompts(*whole), stop_tokens=stop)
                texts = [text.strip() for text in self.backbone.chat.decode(written)]
            opened = [not isinstance(image, UnreadableImage) for image in looked]
            texts = [text if is_open else None for text, is_open in zip(texts, opened)]
            yield texts[: len(self.questions) - number * self.batch_size]

    def written(self, view, arm, prompts, *, max_new_tokens=None, stop_tokens=()):
        """Tokens int32 `[B, T]` that an arm, with its view of the model, writes behind prompts."""
        return self.reader.generate(
            view.model,
            prompts,
            max_new_tokens=max_new_tokens or self.max_new_tokens,
            stop_tokens=stop_tokens,
            **arm.settings(prompts),
        )


def _without_gaps(rows, looked):
    """Both with the first image that opens, and its question, where one does not; None for none."""
    opened = [i for i, image in enumerate(looked) if not isinstance(image, UnreadableImage)]
    if not opened:
        return None
    places = [i if i in opened else opened[0] for i in range(len(looked))]
    return [rows[i] for i in places], [looked[i] for i in places]
