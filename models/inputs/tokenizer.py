"""Text to token ids by the files that lie beside a checkpoint."""

import json
import pathlib

import numpy as np
import tokenizers

from .cleaning import CLEANINGS, without_punctuation

# The classes of transformers that pad on the left unless their files say otherwise; those of
# version 4 that read `tokenizer.json` end in "Fast".
PAD_LEFT = frozenset(
    f"{name}Tokenizer" for name in ("CodeLlama", "Cohere", "Gemma", "Llama", "Siglip2", "XLNet")
)
_lower_by_character = tokenizers.normalizers.Lowercase().normalize_str


def load_tokenizer(path, *, context_length, vocab_size, cleaning="none"):
    """A function from a list of texts to token ids, int32 `[B, T]`, T the context length.

    Texts too long are cut so that the closing token stays. Short ones are padded as
    `tokenizer_config.json` says, else `tokenizer.json`, else with CLIP's end-of-text token on the
    side of the tokenizer's class in transformers. Texts for SigLIP are put in lower case, and lose
    their punctuation for the first SigLIP.

    Args:
      path: a checkpoint directory that holds `tokenizer.json`, or SigLIP's `spiece.model`, and
        `tokenizer_config.json` where there is one.
      context_length: T.
      vocab_size: of the model; larger ids would have no embedding.
      cleaning: as in the model's config, `config.text.cleaning`.

    Raises:
      FileNotFoundError: neither file is there.
      ValueError: a file that is damaged, belongs to a model of another vocabulary or of longer
        texts, or has no token to pad with; `spiece.model` without the package sentencepiece; a
        cleaning that does not exist, or none for a checkpoint of open_clip.
    """
    path = pathlib.Path(path)
    _check_cleaning(cleaning, path)
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
    clean, prepare = CLEANINGS[cleaning], _preparation(config)
    return lambda texts: np.array(encode([prepare(clean(text)) for text in texts]), np.int32)


def _check_cleaning(cleaning, folder):
    """Refuses a cleaning that does not exist, and none where open_clip's must have been lost."""
    if cleaning not in CLEANINGS:
        raise ValueError(f"cleaning must be one of {', '.join(CLEANINGS)}, got {cleaning!r}")
    configs = ("config.json", "open_clip_config.json")
    if cleaning == "none" and [x for x in configs if (folder / x).is_file()] == [configs[1]]:
        raise ValueError(
            f"{folder} is of open_clip, and was converted before its cleaning of texts was kept: "
            "convert the checkpoint again"
        )


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
    lowers = config.get("do_lower_case", is_siglip)
    if config.get("tokenizer_class") != "SiglipTokenizer":  # in Rust: sigma is never a final one
        return _lower_by_character if lowers else str
    return lambda text: without_punctuation(text.lower() if lowers else text)


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
    class_name = str(config.get("tokenizer_class")).removesuffix("Fast")
    side = "left" if class_name in PAD_LEFT else "right"
    side = config.get("padding_side", section.get("direction", side))
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
