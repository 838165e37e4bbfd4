import numpy as np
import pytest
import tokenizers

from models.tokenizer import load_tokenizer

VOCABULARY = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "b": 3, "[UNK]": 4}


def write(folder, *, vocabulary=VOCABULARY, pad=None):
    """A tokenizer file in the manner of CLIP's: text between a first and a last token."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    first, last = list(vocabulary)[:2]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, 0), (last, 1)]
    )
    if pad:
        tokenizer.enable_padding(pad_id=vocabulary[pad], pad_token=pad)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_short_texts_are_padded_with_end_of_text(tmp_path):
    tokenize = load_tokenizer(write(tmp_path), context_length=6, vocab_size=5)
    np.testing.assert_array_equal(tokenize(["a b", "b"]), [[0, 2, 3, 1, 1, 1], [0, 3, 1, 1, 1, 1]])


def test_long_texts_are_cut_before_the_end_of_text(tmp_path):
    tokenize = load_tokenizer(write(tmp_path), context_length=4, vocab_size=5)
    np.testing.assert_array_equal(tokenize(["a b a b a"]), [[0, 2, 3, 1]])


def test_the_file_names_the_padding(tmp_path):
    tokenize = load_tokenizer(write(tmp_path, pad="b"), context_length=5, vocab_size=5)
    np.testing.assert_array_equal(tokenize(["a"]), [[0, 2, 1, 3, 3]])


def test_no_padding_token_is_refused(tmp_path):
    write(tmp_path, vocabulary={"<s>": 0, "</s>": 1, "[UNK]": 2})
    with pytest.raises(ValueError, match="padding"):
        load_tokenizer(tmp_path, context_length=5, vocab_size=5)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path, context_length=5, vocab_size=5)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ValueError, match="is not a tokenizer"):
        load_tokenizer(tmp_path, context_length=5, vocab_size=5)


def test_tokenizer_of_another_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="5 tokens, but the model 4"):
        load_tokenizer(write(tmp_path), context_length=5, vocab_size=4)
