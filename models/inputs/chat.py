"""Texts and dialogues to token ids and back, by the files beside a language model's checkpoint.

Shape letters: B batch, N tokens.
"""

import dataclasses
import datetime
import json
import pathlib

import jinja2
import jinja2.ext
import jinja2.sandbox
import numpy as np
import tokenizers

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
_LONGEST = 2**20  # characters that a template may repeat something to


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Templates come with checkpoints, from anybody: they see values and no code, and `*` makes
    nothing huge of them. What formats and loops make has no bound."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context, operator, left, right):
        sized = [len(x) for x in (left, right) if hasattr(x, "__len__")]
        times = [x for x in (left, right) if isinstance(x, int)]
        if operator == "**" or (sized and times and sized[0] * times[0] > _LONGEST):
            raise jinja2.exceptions.SecurityError(f"{operator} makes too much")
        return super().call_binop(context, operator, left, right)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}`, which marks for training what a model wrote."""

    tags = frozenset(["generation"])

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


@dataclasses.dataclass(frozen=True)
class Chat:
    """A language model's tokenizer and the form of its dialogues.

    Attributes:
      folder: whose files these are.
      tokenizer: of `tokenizer.json`.
      special: the texts of special tokens by their names, for the template.
      template: of dialogues, in Jinja; None where there is none.
      stop_tokens: ids that end an answer.
    """

    folder: pathlib.Path
    tokenizer: tokenizers.Tokenizer
    special: dict[str, str]
    template: str | None
    stop_tokens: tuple[int, ...]

    def encode(self, texts, *, special_tokens=True) -> tuple[np.ndarray, np.ndarray]:
        """Token ids int32 `[B, N]` and the key mask bool `[B, N]`, False on padding, on the left.

        Args:
          texts: a list of them.
          special_tokens: whether the tokenizer adds its own, as the one that begins a text; what
            `prompt` wrote has them already.
        """
        rows = self.tokenizer.encode_batch(list(texts), add_special_tokens=special_tokens)
        longest = max((len(row.ids) for row in rows), default=0)
        tokens = np.zeros((len(rows), longest), np.int32)
        key_mask = np.zeros((len(rows), longest), bool)
        for i, row in enumerate(rows):
            start = longest - len(row.ids)
            tokens[i, start:], key_mask[i, start:] = row.ids, True
        return tokens, key_mask

    def decode(self, tokens) -> list[str]:
        """The texts of rows of ids, without special tokens and without negative ids."""
        rows = [[int(token) for token in row if token >= 0] for row in np.asarray(tokens)]
        return self.tokenizer.decode_batch(rows, skip_special_tokens=True)

    def prompt(self, messages, *, answer=True, **variables) -> str:
        """A dialogue as the model was trained to read it.

        Args:
          messages: dictionaries with "role" ("system", "user", "assistant") and "content".
          answer: whether the model's turn begins at the end.
          **variables: further ones of the template.

        Raises:
          ValueError: no template, or one that cannot be used or refuses these messages.
        """
        if self.template is None:
            raise ValueError(
                f"{self.folder} has no chat template (chat_template.jinja, or chat_template in "
                "tokenizer_config.json): copy it there, or write the prompt yourself"
            )
        given = self.special | {"messages": messages, "add_generation_prompt": answer} | variables
        try:
            return _environment().from_string(self.template).render(given)
        except Exception as error:  # a template may raise whatever its author pleased
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"the chat template in {self.folder} cannot be used here: {reason[:300]}"
            ) from None


def _environment():
    """What templates are written for: transformers' names and habits."""
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
    )

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(str(message))

    def tojson(value, indent=None):
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def load_chat(path, *, vocab_size) -> Chat:
    """The tokenizer of a language model and the form of its dialogues.

    Args:
      path: a checkpoint directory with `tokenizer.json`, and, where there are such,
        `tokenizer_config.json`, `chat_template.jinja` and `generation_config.json`.
      vocab_size: of the model; larger ids would have no embedding.

    Raises:
      FileNotFoundError: no `tokenizer.json`.
      ValueError: a file that is damaged, or belongs to a model of another vocabulary.
    """
    folder = pathlib.Path(path)
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist: copy it beside the checkpoint (where only tokenizer.model is "
            "published, transformers' AutoTokenizer reads that, and save_pretrained writes it)"
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the bindings raise bare Exception
        raise ValueError(f"{file} is not a tokenizer: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    size = 1 + max(tokenizer.get_vocab().values(), default=-1)
    if not 0 < size <= vocab_size:
        raise ValueError(f"{file} has {size} tokens, but the model {vocab_size}: not its tokenizer")
    config = _read_object(folder / "tokenizer_config.json")
    special = {name: _content(config[name]) for name in _SPECIAL if config.get(name) is not None}
    return Chat(
        folder,
        tokenizer,
        special,
        _template(folder, config),
        _stop_tokens(folder, tokenizer, special, vocab_size),
    )


def _read_object(file) -> dict:
    """The object in a JSON file; an empty one where there is no file."""
    if not file.is_file():
        return {}
    values = _read(file, json.loads)
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold an object, got {type(values).__name__}")
    return values


def _read(file, parse):
    """What a function makes of the text in a file."""
    try:
        return parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be used: {error!r}") from None


def _content(token) -> str:
    """The text of a special token, which files write as a string or as an object."""
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str):
        raise ValueError(f"a token of tokenizer_config.json must be a string, got {token!r}")
    return content


def _template(folder, config):
    """The template: from a file of its own, or the tokenizer's config; of several "default"."""
    if (file := folder / "chat_template.jinja").is_file():
        return _read(file, str)
    of_file = _read_object(folder / "chat_template.json").get("chat_template")
    found = config.get("chat_template") if of_file is None else of_file
    if isinstance(found, list):
        named = (x for x in found if isinstance(x, dict) and x.get("name") == "default")
        found = next(named, {}).get("template")
    if not isinstance(found, str | None):
        raise ValueError(f"the chat_template in {folder} must be text, got {type(found).__name__}")
    return found


def _stop_tokens(folder, tokenizer, special, vocab_size):
    """Ids that end an answer, by the first file that says so."""
    for name in ("generation_config.json", "config.json"):
        found = _read_object(folder / name).get("eos_token_id")
        if found is None:
            continue
        found = found if isinstance(found, list) else [found]
        if not all(type(token) is int and 0 <= token < vocab_size for token in found):
            raise ValueError(
                f"eos_token_id in {folder / name} must be ids below {vocab_size}, got {found!r}"
            )
        return tuple(found)
    end = tokenizer.token_to_id(special.get("eos_token", ""))
    return () if end is None else (end,)
