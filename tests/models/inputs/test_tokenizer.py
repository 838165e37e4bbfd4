import json
import sys

import numpy as np
import pytest
import tokenizers

from convert.originals import prepare_libraries
from models.inputs.cleaning import CLEANINGS
from models.inputs.tokenizer import PAD_LEFT, load_tokenizer

VOCABULARY = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "b": 3, "[UNK]": 4}


TEXTS = [
    "a photo of a cat",
    "A Photo, of a CAT!",
    "  naïve \t café?!\nplaying\u2003in the\u00a0park ",
    "",
    " ",
    "{}",
    "don't stop a-b_c",
    "…«quoted» ’apostrophe’ – dash",
    "日本語 テキスト İstanbul ẞ ﬁ ΟΔΟΣ",
    "a cat and a dog " * 30,
]


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


def test_ids_beyond_a_gap_in_the_vocabulary_are_refused(tmp_path):
    write(tmp_path, vocabulary=VOCABULARY | {"far": 9})
    with pytest.raises(ValueError, match="10 tokens, but the model 9"):
        load_tokenizer(tmp_path, context_length=5, vocab_size=9)


# What tokenizer_config.json adds.


def configure(folder, **fields):
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize(
    "fields, expected",
    [
        (dict(), [0, 2, 1, 3, 3]),
        (dict(pad_token="a"), [0, 2, 1, 2, 2]),
        (dict(pad_token={"content": "a"}), [0, 2, 1, 2, 2]),
        (dict(pad_token=None, padding_side="left"), [3, 3, 0, 2, 1]),
        (dict(model_max_length=10**30), [0, 2, 1, 3, 3]),
    ],
)
def test_the_config_comes_before_the_padding_section(tmp_path, fields, expected):
    configure(write(tmp_path, pad="b"), **fields)
    tokenize = load_tokenizer(tmp_path, context_length=5, vocab_size=5)
    np.testing.assert_array_equal(tokenize(["a"]), [expected])


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(pad_token="<none>"), "has no <none>"),
        (dict(pad_token=3), "must be a string, got 3"),
        (dict(padding_side="top"), "left or right, got 'top'"),
        (dict(model_max_length=4), "texts of 4 tokens, but the model's have 5"),
        (dict(model_max_length="long"), "cannot be used"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path, fields, message):
    configure(write(tmp_path), **fields)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path, context_length=5, vocab_size=5)


def test_a_config_that_is_no_object_is_refused(tmp_path):
    (write(tmp_path) / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json cannot be used"):
        load_tokenizer(tmp_path, context_length=5, vocab_size=5)


@pytest.mark.parametrize(
    "fields, expected",
    [
        (dict(tokenizer_class="Siglip2Tokenizer"), [1, 1, 0, 2, 1]),
        (dict(tokenizer_class="GemmaTokenizerFast"), [1, 1, 0, 2, 1]),
        (dict(tokenizer_class="SiglipTokenizer"), [0, 2, 1, 1, 1]),
        (dict(tokenizer_class="CLIPTokenizerFast"), [0, 2, 1, 1, 1]),
        (dict(tokenizer_class="Siglip2Tokenizer", padding_side="right"), [0, 2, 1, 1, 1]),
        (dict(), [0, 2, 1, 1, 1]),
    ],
)
def test_the_class_gives_the_side_where_the_files_do_not(tmp_path, fields, expected):
    configure(write(tmp_path), **fields)
    tokenize = load_tokenizer(tmp_path, context_length=5, vocab_size=5)
    np.testing.assert_array_equal(tokenize(["a"]), [expected])


def test_the_padding_section_comes_before_the_class(tmp_path):
    configure(write(tmp_path, pad="b"), tokenizer_class="Siglip2Tokenizer")
    tokenize = load_tokenizer(tmp_path, context_length=5, vocab_size=5)
    np.testing.assert_array_equal(tokenize(["a"]), [[0, 2, 1, 3, 3]])


@pytest.mark.reference
def test_the_classes_that_pad_on_the_left_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    names = {name for name in TOKENIZER_MAPPING_NAMES.values() if name}
    classes = {name: getattr(transformers, name, None) for name in names | PAD_LEFT}
    left = {name for name, x in classes.items() if getattr(x, "padding_side", "") == "left"}
    assert left == PAD_LEFT


# The cleaning of open_clip.


CLEANED = {
    "It’s “fine”": 'it\'s "fine"',
    "salt &amp; pepper": "salt & pepper",
    "&quot;so&quot;": '"so"',
    "salt &amp;amp; pepper": "salt & pepper",
    "Ｆｕｌｌ Ｗｉｄｔｈ": "full width",
    "ﬁne ﬂag": "fine flag",
    "cafÃ© dâ€™or": "café d'or",
    "\ufeffmarked": "marked",
    "ΟΔΟΣ": "οδος",
    "cafe\u0301": "café",
    "  two \t words\n": "two words",
}


@pytest.mark.parametrize("text", CLEANED)
def test_texts_are_cleaned_as_open_clip_does(text):
    assert CLEANINGS["lower"](text) == CLEANED[text]
    assert CLEANINGS["whitespace"](text).lower() == CLEANED[text]
    assert CLEANINGS["none"](text) == text


def test_canonical_texts_have_no_punctuation():
    assert CLEANINGS["canonicalize"]("It’s_a  “Cat”, &amp; so on!") == "its a cat so on"


def test_the_cleaning_comes_before_the_tokens(tmp_path):
    write(tmp_path)
    keywords = dict(context_length=6, vocab_size=5)
    tokenize = load_tokenizer(tmp_path, **keywords, cleaning="lower")
    np.testing.assert_array_equal(tokenize(["Ａ &amp;#98;"]), [[0, 2, 3, 1, 1, 1]])
    with pytest.raises(ValueError, match=r"cleaning must be one of none, .* got 'upper'"):
        load_tokenizer(tmp_path, **keywords, cleaning="upper")


def test_what_was_converted_without_its_cleaning_is_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(ValueError, match="convert the checkpoint again"):
        load_tokenizer(tmp_path, context_length=5, vocab_size=5)
    (tmp_path / "config.json").write_text("{}")  # as where files of both libraries lie
    load_tokenizer(tmp_path, context_length=5, vocab_size=5)


@pytest.mark.reference
def test_tokens_are_those_of_open_clip(tmp_path):
    """By the tokenizer.json with which its checkpoints are published, which is Hugging Face's."""
    pytest.importorskip("torch")
    prepare_libraries()
    original = pytest.importorskip("open_clip.tokenizer").SimpleTokenizer()
    transformers = pytest.importorskip("transformers")
    named = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {named.get(token, token): i for token, i in original.encoder.items()}
    merges = list(original.bpe_ranks)
    transformers.CLIPTokenizer(vocab=vocabulary, merges=merges).save_pretrained(tmp_path)
    tokenize = load_tokenizer(
        tmp_path, context_length=77, vocab_size=len(vocabulary), cleaning="lower"
    )
    for text in (*CLEANED, *TEXTS, "a &lt;b&gt; ö", "ŁÓDŹ’s №1 ½", "schÃ¶n â€œgutâ€\x9d"):
        end = vocabulary["<|endoftext|>"]
        expected = original([text])[0].tolist()
        expected = expected[: expected.index(end) + 1]
        actual = tokenize([text])[0].tolist()
        assert actual[: len(expected)] == expected, text
        assert set(actual[len(expected) :]) <= {end}  # where open_clip has zeros, to no effect
    assert (
        tokenize(["ΟΔΟΣ"]).tolist()
        != load_tokenizer(tmp_path, context_length=77, vocab_size=len(vocabulary))(
            ["ΟΔΟΣ"]
        ).tolist()
    )


@pytest.mark.reference
def test_tokens_of_clip_are_those_of_transformers(tmp_path):
    """Greek's final sigma too, of which transformers and open_clip make different tokens."""
    transformers = pytest.importorskip("transformers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(f"{x}</w>" for x in alphabet)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    original = transformers.CLIPTokenizer(vocab=vocabulary, merges=[])
    original.save_pretrained(tmp_path)
    settings = dict(padding="max_length", truncation=True, max_length=60)
    tokenize = load_tokenizer(tmp_path, context_length=60, vocab_size=len(vocabulary))
    texts = [*CLEANED, *TEXTS]
    np.testing.assert_array_equal(tokenize(texts), original(texts, **settings)["input_ids"])


# SigLIP.


@pytest.mark.parametrize(
    "fields, expected",
    [
        (dict(tokenizer_class="CLIPTokenizer"), [0, 4, 4, 3, 4, 1]),
        (dict(do_lower_case=True), [0, 2, 4, 3, 4, 1]),
        (dict(tokenizer_class="Siglip2Tokenizer"), [0, 2, 4, 3, 4, 1]),
        (dict(processor_class="SiglipProcessor"), [0, 2, 4, 3, 4, 1]),
        (dict(tokenizer_class="SiglipTokenizer"), [0, 2, 3, 1, 1, 1]),
        (dict(tokenizer_class="SiglipTokenizer", do_lower_case=False), [0, 4, 3, 1, 1, 1]),
    ],
)  # fmt: skip
def test_case_and_punctuation_as_the_model_was_trained(tmp_path, fields, expected):
    configure(write(tmp_path), **fields)
    tokenize = load_tokenizer(tmp_path, context_length=6, vocab_size=5)
    np.testing.assert_array_equal(tokenize(["A, b!"]), [expected])


def test_spiece_model_without_its_package_names_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "spiece.model").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ValueError, match="pip install sentencepiece"):
        load_tokenizer(tmp_path, context_length=5, vocab_size=5)


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    """A folder with a sentencepiece model of the special tokens of SigLIP's."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("spiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a photo of a cat", "two dogs playing in the park", "naïve"] * 9),
        model_prefix=str(folder / "spiece"),
        vocab_size=40,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return folder


@pytest.mark.reference
@pytest.mark.parametrize("fields", [{}, dict(do_lower_case=False), dict(pad_token="<unk>")])
def test_spiece_model_is_read_as_transformers_does(spiece, fields):
    transformers = pytest.importorskip("transformers")
    configure(spiece, tokenizer_class="SiglipTokenizer", **fields)
    original = transformers.SiglipTokenizer.from_pretrained(spiece)
    settings = dict(padding="max_length", truncation=True, max_length=24)
    tokenize = load_tokenizer(spiece, context_length=24, vocab_size=60)
    np.testing.assert_array_equal(tokenize(TEXTS), original(TEXTS, **settings)["input_ids"])


@pytest.mark.reference
def test_spiece_model_needs_no_config_and_refuses_what_does_not_fit(spiece):
    (spiece / "tokenizer_config.json").unlink(missing_ok=True)
    tokenize = load_tokenizer(spiece, context_length=4, vocab_size=60)
    np.testing.assert_array_equal(tokenize(["!?"]), [[1, 1, 1, 1]])
    with pytest.raises(ValueError, match="but the model 9"):
        load_tokenizer(spiece, context_length=4, vocab_size=9)
    configure(spiece, pad_token="<none>")
    with pytest.raises(ValueError, match="lacks one of the tokens"):
        load_tokenizer(spiece, context_length=4, vocab_size=60)


@pytest.mark.reference
@pytest.mark.parametrize("fixed_padding", [True, False])
def test_gemma_tokenizer_of_siglip2_is_read_as_transformers_does(tmp_path, fixed_padding):
    transformers = pytest.importorskip("transformers")
    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    vocabulary = {
        token: i for i, token in enumerate((*special, "▁", *"actTοδσς", "at", "▁a", "cat"))
    }
    merges = [("a", "t"), ("▁", "a"), ("c", "at")]
    transformers.Siglip2Tokenizer(vocab=vocabulary, merges=merges).save_pretrained(tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.normalizer = tokenizers.normalizers.Replace(" ", "▁")  # as published
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    fields = {} if fixed_padding else dict(padding_side="right")
    if fixed_padding:
        tokenizer.enable_padding(length=64, pad_id=0, pad_token="<pad>")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    configure(
        tmp_path, tokenizer_class="Siglip2Tokenizer", pad_token="<pad>", eos_token="<eos>", **fields
    )
    original = transformers.AutoTokenizer.from_pretrained(tmp_path)
    settings = dict(padding="max_length", truncation=True, max_length=24)
    tokenize = load_tokenizer(tmp_path, context_length=24, vocab_size=len(vocabulary))
    np.testing.assert_array_equal(tokenize(TEXTS), original(TEXTS, **settings)["input_ids"])
