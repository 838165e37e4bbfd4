"""Text to token ids by the `tokenizer.json` that lies beside a checkpoint."""

import pathlib

import numpy as np
import tokenizers


def load_tokenizer(path, *, context_length, vocab_size):
    """A function from a list of texts to token ids, int32 `[B, T]`, T the context length.

    Texts too long are cut so that the closing token stays; short ones are padded with the padding
    token that the file names, else with the end-of-text token, as Hugging Face's CLIP does.

    Args:
      path: a checkpoint directory that holds `tokenizer.json`.
      context_length: T.
      vocab_size: of the model; larger ids would have no embedding.

    Raises:
      FileNotFoundError: no `tokenizer.json` there.
      ValueError: a file that is not a tokenizer, belongs to a model of another vocabulary, or has
        no token to pad with.
    """
    file = pathlib.Path(path) / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: copy it beside the checkpoint")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the bindings raise bare Exception
        raise ValueError(f"{file} is not a tokenizer: {error}") from None
    if (size := tokenizer.get_vocab_size()) > vocab_size:
        raise ValueError(f"{file} has {size} tokens, but the model {vocab_size}: not its tokenizer")
    pad_token, pad_id = _padding(tokenizer, file)
    tokenizer.enable_truncation(context_length)
    tokenizer.enable_padding(length=context_length, pad_id=pad_id, pad_token=pad_token)

    def tokenize(texts):
        return np.array(
            [encoding.ids for encoding in tokenizer.encode_batch(list(texts))], np.int32
        )

    return tokenize


def _padding(tokenizer, file):
    if tokenizer.padding:
        return tokenizer.padding["pad_token"], tokenizer.padding["pad_id"]
    if (pad_id := tokenizer.token_to_id("<|endoftext|>")) is not None:
        return "<|endoftext|>", pad_id
    raise ValueError(
        f"{file} names no padding token and has no <|endoftext|>: add a padding section"
    )
