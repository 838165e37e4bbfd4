"""Tokenizer and preprocessing of digit scenes, as the files that lie beside a checkpoint."""

import json
import pathlib

import tokenizers

from evals.data.digit_scenes import CANVAS, DIGIT_NAMES, PLACES, phrase

_SPECIAL = ("[PAD]", "[BOS]", "[EOS]", "[UNK]")
_MEAN, _STD = 0.5, 0.5


def write_companions(folder) -> list[pathlib.Path]:
    """Writes `tokenizer.json` and `preprocessor_config.json` into `folder`; returns their paths."""
    tokenizer_file = pathlib.Path(folder) / "tokenizer.json"
    preprocessing_file = pathlib.Path(folder) / "preprocessor_config.json"
    _tokenizer().save(str(tokenizer_file))
    size = {"height": CANVAS, "width": CANVAS}
    preprocessing = {
        "image_processor_type": "SiglipImageProcessor",
        "size": size,
        "image_mean": [_MEAN] * 3,
        "image_std": [_STD] * 3,
    }
    preprocessing_file.write_text(json.dumps(preprocessing, indent=2) + "\n")
    return [tokenizer_file, preprocessing_file]


def normalise(pixels):
    """uint8 pixels of digit scenes as the written preprocessing makes them, float32."""
    return (pixels.astype("float32") / 255 - _MEAN) / _STD


def _tokenizer():
    """One token per word of the captions; `[EOS]` has id 2."""
    phrases = [phrase(name, place) for name in DIGIT_NAMES for place in PLACES]
    words = sorted({"and", *" ".join(phrases).split()})
    vocabulary = {word: index for index, word in enumerate([*_SPECIAL, *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[BOS] $A [EOS]",
        special_tokens=[(name, vocabulary[name]) for name in ("[BOS]", "[EOS]")],
    )
    tokenizer.enable_padding(pad_id=vocabulary["[PAD]"], pad_token="[PAD]")
    return tokenizer
