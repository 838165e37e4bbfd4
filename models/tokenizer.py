"""Text to token ids by the files that lie beside a checkpoint."""

import json
import pathlib
import string

import numpy as np
import tokenizers

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def load_tokenizer(path, *, context_length, vocab_size):
    """A function from a list of texts to token ids, int32 `[B, T]`, T the context length.

    Texts too long are cut so that the closing token stays. Short ones are padded as
    `tokenizer_config.json` says, else `tokenizer.json`, else with CLIP's end-of-text token. Texts
    for SigLIP are put in lower case, and lose their punctuation for the first SigLIP.

    Args:
      path: a checkpoint directory that holds `tokenizer.json`, or SigLIP's `spiece.model`, and
        `tokenizer_config.json` where there is one.
      context_length: T.
      vocab_size: of the model; larger ids would have no embedding.

    Raises:
      FileNotFoundError: neither file is there.
      ValueError: a file that is damaged, belongs to a model of another vocabulary or of longer
        texts, or has no token to pad with; `spiece.model` without the package sentencepiece.
    """
    path = pathlib.Path(path)
    config = _read_config(path / "tokenizer_config.json", context_length)
    if (file := path / "tokenizer.json").is_file():
        encode, size = _from_json(file, config, context_length)
    elif (file := path / "spiece.model").is_file():
        config = {"tokenizer_class": "SiglipTokenizer"} | config
        encode, size = _from_sentencepiece(file, config, context_length)
    else:
        file = path / "tokenizer.json"
        raise FileNotFoundError(f"{file} does not exist: copy it beside the checkpoint")
    if size > vocab_size:
        raise ValueError(f"{file} has {size} tokens, but the model {vocab_size}: not its tokenizer")
    prepare = _preparation(config)
    return lambda texts: np.array(encode([prepare(text) for text in texts]), np.int32)


def _read_config(file, context_length):
    """The object in `tokenizer_config.json`; an empty one where there is no file."""
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        longest = float(config.get("model_max_length") or context_length)
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{file} cannot be used: {error!r}") from None
    if longest < context_length:
        raise ValueError(
            f"{file} is for texts of {longest:.0f} tokens, but the model's have {context_length}: "
            "not its tokenizer"
        )
    return config


def _preparation(config):
    """What is done to a text before it is cut into tokens."""
    is_siglip = "Siglip" in f"{config.get('tokenizer_class')} {config.get('processor_class')}"
    lower = str.lower if config.get("do_lower_case", is_siglip) else str
    if config.get("tokenizer_class") != "SiglipTokenizer":
        return lower
    return lambda text: " ".join(lower(text).translate(_PUNCTUATION).split())


def _from_json(file, config, context_length):
    """Texts to ids by a `tokenizer.json`, and the size of its vocabulary."""
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the bindings raise bare Exception
        raise ValueError(f"{file} is not a tokenizer: {error}") from None
    padding = _padding(tokenizer, config, file)
    tokenizer.enable_truncation(context_length)
    tokenizer.enable_padding(length=context_length, **padding)

    def encode(texts):
        return [encoding.ids for encoding in tokenizer.encode_batch(texts)]

    return encode, 1 + max(padding["pad_id"], *tokenizer.get_vocab().values())


def _padding(tokenizer, config, file):
    """Token, id and side of the padding, as keywords."""
    section = tokenizer.padding or {}
    side = config.get("padding_side", section.get("direction", "right"))
    if side not in ("left", "right"):
        raise ValueError(f"the padding_side of {file} must be left or right, got {side!r}")
    token = _content(config.get("pad_token"))
    if token is None and section:
        return dict(pad_token=section["pad_token"], pad_id=section["pad_id"], direction=side)
    token = token or "<|endoftext|>"  # of CLIP
    if (pad_id := tokenizer.token_to_id(token)) is None:
        raise ValueError(f"{file} names no padding token and has no {token}: add a padding section")
    return dict(pad_token=token, pad_id=pad_id, direction=side)


def _from_sentencepiece(file, config, context_length):
    """Texts to ids by a `spiece.model`, and the size of its vocabulary."""
    try:
        import sentencepiece
    except ImportError:
        raise ValueError(
            f"{file} is read by a package of its own: pip install sentencepiece"
        ) from None
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{file} is not a tokenizer: {error}") from None
    # SigLIP ends and pads with the same token, unless the file says otherwise.
    tokens = [_content(config.get(name)) or "</s>" for name in ("eos_token", "pad_token")]
    end, pad = map(pieces.piece_to_id, tokens)
    if [pieces.id_to_piece(end), pieces.id_to_piece(pad)] != tokens:
        raise ValueError(f"{file} lacks one of the tokens to end and to pad with, {tokens}")

    def encode(texts):
        rows = [[*ids[: context_length - 1], end] for ids in pieces.encode(texts)]
        return [row + [pad] * (context_length - len(row)) for row in rows]

    return encode, pieces.get_piece_size()


def _content(token):
    """The text of a special token, which files write as a string or as an object, or None."""
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str | None):
        raise ValueError(f"a token of tokenizer_config.json must be a string, got {token!r}")
    return content
