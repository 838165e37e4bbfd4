"""Tokenizer and preprocessing of digit scenes, as the files that lie beside a checkpoint."""

import json
import pathlib

import tokenizers

from evals.data.digit_scenes import CANVAS, DIGIT_NAMES, PLACES, phrase
from evals.data.scene_questions import all_words

BEGIN_TOKEN, IMAGE_TOKEN = "[BOS]", "<image>"
_END_TOKEN = "[EOS]"
_SPECIAL = ("[PAD]", BEGIN_TOKEN, _END_TOKEN, "[UNK]")
_MEAN, _STD = 0.5, 0.5
# The image, then the question: of the one message that a dialogue with this model has.
_TEMPLATE = (
    "{{ bos_token }}{% for part in messages[0]['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
)


def write_companions(folder) -> list[pathlib.Path]:
    """Writes what reads captions and scenes into `folder`; returns the paths.

    These are `tokenizer.json` and `preprocessor_config.json`.
    """
    phrases = [phrase(name, place) for name in DIGIT_NAMES for place in PLACES]
    tokenizer = _tokenizer(["and", *phrases], _SPECIAL, ending=[_END_TOKEN])
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("[PAD]"), pad_token="[PAD]")
    return _write(folder, tokenizer, {"preprocessor_config.json": _preprocessing()})


def write_chat_companions(folder) -> list[pathlib.Path]:
    """Writes what reads questions and scenes into `folder`; returns the paths.

    These are those of `write_companions`, and `tokenizer_config.json` with the chat template.
    """
    tokenizer = _tokenizer(all_words(), (*_SPECIAL, IMAGE_TOKEN))
    tokenizer.add_special_tokens([*_SPECIAL, IMAGE_TOKEN])
    config = {"bos_token": BEGIN_TOKEN, "eos_token": _END_TOKEN, "chat_template": _TEMPLATE}
    files = {"tokenizer_config.json": config, "preprocessor_config.json": _preprocessing()}
    return _write(folder, tokenizer, files)


def _write(folder, tokenizer, files):
    folder = pathlib.Path(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    return [folder / name for name in ("tokenizer.json", *files)]


def _preprocessing():
    return {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": CANVAS, "width": CANVAS},
        "image_mean": [_MEAN] * 3,
        "image_std": [_STD] * 3,
    }


def normalise(pixels):
    """uint8 pixels of digit scenes as the written preprocessing makes them, float32."""
    return (pixels.astype("float32") / 255 - _MEAN) / _STD


def _tokenizer(texts, special, *, ending=()):
    """One token per word and punctuation mark of the texts, behind the special ones.

    A text begins with `BEGIN_TOKEN` and ends with `ending`.
    """
    pieces = tokenizers.pre_tokenizers.Whitespace()
    words = sorted({word for text in texts for word, _ in pieces.pre_tokenize_str(text)})
    vocabulary = {word: index for index, word in enumerate([*special, *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = pieces
    around = [BEGIN_TOKEN, *ending]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=" ".join([BEGIN_TOKEN, "$A", *ending]),
        special_tokens=[(name, vocabulary[name]) for name in around],
    )
    return tokenizer
