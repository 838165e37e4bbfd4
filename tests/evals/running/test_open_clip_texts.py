"""Evaluations clean the texts of an open_clip checkpoint, read straight and converted."""

import numpy as np
import tokenizers

from convert.__main__ import main
from evals.running.pretrained import open_pretrained
from tests import zoo


def test_texts_are_cleaned_before_and_after_conversion(tmp_path):
    source = zoo.write("clip_open_clip", tmp_path / "source")
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 98, "it's": 1, "[UNK]": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.save(str(source / "tokenizer.json"))
    assert main([str(source), str(tmp_path / "out")]) == 0
    for folder in (source, tmp_path / "out"):
        tokens = open_pretrained(str(folder)).tokenize(["\ufeff Ｉt&amp;#8217;s  "])
        np.testing.assert_array_equal(tokens[0, :2], [1, 98])
