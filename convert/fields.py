"""Typed access to the fields of a checkpoint's config, for the parsers of the families."""

import dataclasses

from convert.errors import ConversionError, show, summarise
from models.configs import ACTIVATIONS, EncoderConfig

# A file may claim anything. No model exists beyond these; larger sizes would overflow in the
# arithmetic of shapes, and every block of a model takes its time to build.
_LARGEST_SIZE = 2**20
LARGEST_DEPTH = 128

# What Hugging Face's configs hold that says nothing of what a vision model computes: training,
# bookkeeping, outputs asked for, the choice of feature maps by which detectors use a backbone, and
# the settings of generation, which version 4 wrote into all.
_IRRELEVANT = frozenset(
    """
    _attn_implementation_autoset _commit_hash _name_or_path apply_layernorm architectures
    attention_dropout attention_probs_dropout_prob bad_words_ids begin_suppress_tokens bos_token_id
    chunk_size_feed_forward classifier_dropout cross_attention_hidden_size decoder_start_token_id
    diversity_penalty do_sample drop_path_rate dropout dtype early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id hidden_dropout_prob id2label initializer_factor
    initializer_range is_encoder_decoder label2id layerscale_value length_penalty max_length
    min_length model_type no_repeat_ngram_size num_beam_groups num_beams num_labels
    num_return_sequences out_features out_indices output_attentions output_hidden_states
    output_scores pad_token_id prefix problem_type remove_invalid_values repetition_penalty
    reshape_hidden_states return_dict return_dict_in_generate sep_token_id stage_names
    suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder
    tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript transformers_version
    typical_p use_bfloat16 use_cache
    """.split()  # noqa: SIM905 - seventy names in a column each would say less
)
_ATTENTIONS = (None, "eager", "sdpa", "flash_attention_2")  # other words name code to download
# Fields of any of its configs that would change the computation, and the only values supported.
_FIXED = {
    "_attn_implementation": _ATTENTIONS,
    "add_cross_attention": (False, None),
    "attn_implementation": _ATTENTIONS,
    "is_decoder": (False, None),
    "pruned_heads": ({}, None),
    "qk_norm": (False, None),
    "quantization_config": (None,),
    "use_mean_pooling": (False, None),
}


@dataclasses.dataclass(frozen=True)
class Fields:
    """An object of a config; its fields by type, with ConversionError for all others.

    Attributes:
      name: of the object, for messages.
      values: as read.
      defaults: of the fields that the file may leave out.
      known: names of fields that were asked for.
    """

    name: str
    values: dict
    defaults: dict
    known: set = dataclasses.field(default_factory=set)

    def size(self, field) -> int:
        """An integer from 1 to a million."""
        return self.integer(field, least=1, most=_LARGEST_SIZE)

    def size_or_none(self, field) -> int | None:
        """A size; None where the file has null."""
        return None if self._get(field) is None else self.size(field)

    def side(self, field) -> int:
        """A size of something square, which libraries write once or twice."""
        height, width = self.sides(field)
        if width is not None:
            raise self._error(field, "of something square")
        return height

    def sides(self, field) -> tuple[int, int | None]:
        """A height and a width, None where it is the same."""
        value = self._get(field)
        pair = value if isinstance(value, list) and len(value) == 2 else [value] * 2
        if not all(_is_integer(side, least=1, most=_LARGEST_SIZE) for side in pair):
            raise self._error(field, f"an integer in 1..{_LARGEST_SIZE}, or a list of two")
        height, width = pair
        return height, None if width == height else width

    def depth(self, field) -> int:
        """A number of blocks, from 1 to 128."""
        return self.integer(field, least=1, most=LARGEST_DEPTH)

    def integer(self, field, *, least=0, most=2**31 - 1) -> int:
        """An integer in `least..most`, by default what an int32 token id can be."""
        value = self._get(field)
        if not _is_integer(value, least=least, most=most):
            raise self._error(field, f"an integer in {least}..{most}")
        return value

    def number(self, field, *, least, most) -> float:
        """A number in `least..most`."""
        value = self._get(field)
        if (
            isinstance(value, bool)
            or not isinstance(value, float | int)
            or not least <= value <= most
        ):
            raise self._error(field, f"a number in {least}..{most}")
        return value

    def mlp_dim(self, width) -> int:
        """The width of an MLP in blocks of this width, by the field mlp_ratio."""
        return int(width * self.number("mlp_ratio", least=0.01, most=100))

    def epsilon(self, field) -> float:
        """A number between 0 and 1."""
        value = self._get(field)
        if isinstance(value, bool) or not isinstance(value, float | int) or not 0 < value < 1:
            raise self._error(field, "a number between 0 and 1")
        return value

    def flag(self, field, *, null=None) -> bool:
        """True or False; `null` is what the file's null stands for."""
        value = self._get(field)
        if value is None:
            value = null
        if not isinstance(value, bool):
            raise self._error(field, "true or false")
        return value

    def choice(self, field, choices) -> str:
        """One of the given strings."""
        value = self._get(field)
        if not isinstance(value, str) or value not in choices:
            raise self._error(field, f"one of {', '.join(choices)}")
        return value

    def activation(self, field) -> str:
        """One of the activations that the models have."""
        return self.choice(field, ACTIVATIONS)

    def encoder(self, **more) -> EncoderConfig:
        """The blocks by the names of transformers; `more` are fields of EncoderConfig."""
        return EncoderConfig(
            self.size("hidden_size"),
            self.depth("num_hidden_layers"),
            self.size("num_attention_heads"),
            self.size("intermediate_size"),
            self.activation("hidden_act"),
            self.epsilon("layer_norm_eps"),
            **more,
        )

    def section(self, field, defaults) -> "Fields":
        """A nested object; empty where the file has none."""
        self.known.add(field)
        values = self.values.get(field)
        if values is not None and not isinstance(values, dict):
            raise self._error(field, "an object")
        return Fields(field, values or {}, defaults)

    def fix(self, **only):
        """Refuses any other value of these fields, where the file has them at all."""
        for field, value in only.items():
            self.known.add(field)
            if field in self.values and self.values[field] != value:
                raise self._error(field, show(value))

    def require(self, **only):
        """Refuses any other value of these fields, and a file without them."""
        for field, value in only.items():
            if field not in self.values:
                raise ConversionError(f"{self.name} lacks {field}, which must be {show(value)}")
        self.fix(**only)

    def ignore(self, *fields):
        """Says of these fields that they do not matter to what is computed."""
        self.known.update(fields)

    def unknown(self) -> list[str]:
        """Fields that nothing asked for and nobody knows; call it last.

        Raises:
          ConversionError: a field of any config of transformers that changes the computation.
        """
        for field, values in _FIXED.items():
            if field in self.values and self.values[field] not in values:
                raise self._error(field, f"absent or {' or '.join(map(show, values))}")
        return self._others(self.known | _IRRELEVANT | _FIXED.keys())

    def refuse_unknown(self):
        """Raises ConversionError for fields that nothing asked for; call it last.

        For an object of a constructor's keywords, each of which says what is computed.
        """
        if unknown := self._others(self.known):
            changes = "is unknown, and may change what is computed"
            raise ConversionError(summarise([f"{show(name)} {changes}" for name in unknown]))

    def _others(self, known):
        return [f"{self.name}.{field}" for field in self.values if field not in known]

    def _get(self, field):
        self.known.add(field)
        if field not in self.values and field not in self.defaults:
            raise ConversionError(f"{self.name} lacks {field}")
        return self.values.get(field, self.defaults.get(field))

    def _error(self, field, expected):
        value = show(self._get(field))
        return ConversionError(f"{self.name}.{field} must be {expected}, got {value}")


def _is_integer(value, *, least, most):
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
