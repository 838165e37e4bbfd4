"""Token ids of texts and dialogues, by files that may be anybody's."""

import json

import numpy as np
import pytest
import tokenizers

from models.inputs.chat import load_chat

WORDS = ("<s>", "</s>", "<unk>", "[INST]", "[/INST]", "count", "the", "sevens", "two", "user", "a")
CHATML = """\
{% for message in messages %}
<|{{ message['role'] }}|>{{ message['content'] | trim }}
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}"""
INST = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}"
    "{% endif %}{% endfor %}"
)
DIALOGUE = [
    {"role": "user", "content": "count the sevens "},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "a"},
]


@pytest.fixture
def folder(tmp_path):
    """A checkpoint's files but its weights: words between blanks, and a token that begins texts."""
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "</s>", "<unk>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.enable_padding(length=99)  # left in the file by whoever trained with it
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    end = {"__type": "AddedToken", "content": "</s>"}
    config = {"bos_token": "<s>", "eos_token": end, "chat_template": INST}
    write(tmp_path / "tokenizer_config.json", config)
    return tmp_path


def write(file, values):
    file.write_text(json.dumps(values))


def test_texts_are_padded_on_the_left(folder):
    tokens, key_mask = load_chat(folder, vocab_size=11).encode(["count the sevens", "two"])
    np.testing.assert_array_equal(tokens, [[0, 5, 6, 7], [0, 0, 0, 8]])
    np.testing.assert_array_equal(key_mask, [[True] * 4, [False, False, True, True]])
    assert tokens.dtype == np.int32


def test_ids_become_texts_without_what_is_special_or_no_token(folder):
    chat = load_chat(folder, vocab_size=11)
    assert chat.decode([[0, 5, 6, 7, 1], [8, 1, -1, -1, -1]]) == ["count the sevens", "two"]


def test_a_dialogue_is_written_by_the_template(folder):
    chat = load_chat(folder, vocab_size=11)
    prompt = chat.prompt(DIALOGUE)
    assert prompt == "<s>[INST] count the sevens  [/INST] two</s>[INST] a [/INST]"
    tokens, _ = chat.encode([prompt.replace("<s>", "<s> ")], special_tokens=False)
    assert tokens[0, :2].tolist() == [0, 3]  # one <s>: the template's


def test_a_file_of_its_own_comes_before_the_config(folder):
    (folder / "chat_template.jinja").write_text(CHATML)
    chat = load_chat(folder, vocab_size=11)
    expected = "<|user|>count the sevens\n<|assistant|>two\n<|user|>a\n"
    assert chat.prompt(DIALOGUE, answer=False) == expected
    assert chat.prompt(DIALOGUE) == expected + "<|assistant|>\n"


@pytest.mark.parametrize(
    "template, prompt",
    [
        ([{"name": "tools", "template": "x"}, {"name": "default", "template": "y"}], "y"),
        ([3, {"name": ["default"]}, {"name": "default", "template": "y"}], "y"),
        ("{{ [1, 'é'] | tojson }}{% for i in range(9) %}{% break %}{% endfor %}", '[1, "é"]'),
        ("{{ '-' * 3 }}{{ 2 * 3 }}", "---6"),
        ("{% generation %}{% set x = 1 %}a{{ x }}{% endgeneration %}{{ x is defined }}", "a1False"),
        ("{{ strftime_now('%Y') | length }}{{ unk_token }}{{ tools is defined }}", "4False"),
    ],
)
def test_what_templates_are_written_for(folder, template, prompt):
    write(folder / "tokenizer_config.json", {"chat_template": template})
    assert load_chat(folder, vocab_size=11).prompt(DIALOGUE) == prompt


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now.__globals__.x }}",
        "{% set _ = messages.append(1) %}",
        "{% set _ = messages[0].update({'role': 'x'}) %}",
        "{{ 'a' * 1000000000 }}",
        "{{ [1] * 1000000000 }}",
        "{{ 9 ** 999999999 }}",
        "{% for i in range(1000000000) %}{% endfor %}",
        "{{ ''.__class__ }}{{ ''.format.__globals__.x }}",
        "{% include '/etc/passwd' %}",
        "{% if %}",
        "{{ messages[99].content.x }}",
        "{{ 1 / 0 }}",
        "{{ raise_exception('first line\nand second') }}",
    ],
)
def test_hostile_and_broken_templates_end_in_one_line(folder, template):
    write(folder / "tokenizer_config.json", {"chat_template": template})
    chat = load_chat(folder, vocab_size=11)
    messages = [dict(message) for message in DIALOGUE]
    with pytest.raises(ValueError, match=r"the chat template in .* cannot be used") as error:
        chat.prompt(messages)
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 600
    assert messages == DIALOGUE


def test_a_template_may_refuse_a_dialogue(folder):
    with pytest.raises(ValueError, match="roles must alternate"):
        load_chat(folder, vocab_size=11).prompt(DIALOGUE[1:])


def test_a_missing_template_is_named(folder):
    write(folder / "tokenizer_config.json", {})
    with pytest.raises(ValueError, match=r"has no chat template .* write the prompt yourself"):
        load_chat(folder, vocab_size=11).prompt(DIALOGUE)


@pytest.mark.parametrize(
    "generation, config, tokenizer_config, expected",
    [
        ({"eos_token_id": [1, 8]}, {"eos_token_id": 2}, {"eos_token": "</s>"}, (1, 8)),
        ({}, {"eos_token_id": 2}, {"eos_token": "</s>"}, (2,)),
        (None, {"eos_token_id": None}, {"eos_token": "</s>"}, (1,)),
        (None, None, {"eos_token": "elsewhere"}, ()),
        (None, None, {}, ()),
    ],
)
def test_stop_tokens_are_of_the_first_file_that_tells(
    folder, generation, config, tokenizer_config, expected
):
    write(folder / "tokenizer_config.json", tokenizer_config)
    for name, values in (("generation_config.json", generation), ("config.json", config)):
        if values is not None:
            write(folder / name, values)
    assert load_chat(folder, vocab_size=11).stop_tokens == expected


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("tokenizer.json", "{", "is not a tokenizer"),
        ("tokenizer_config.json", "[", "tokenizer_config.json cannot be used"),
        ("tokenizer_config.json", "[]", "must hold an object, got list"),
        ("tokenizer_config.json", '{"eos_token": 3}', "must be a string, got 3"),
        ("tokenizer_config.json", '{"chat_template": 3}', "must be text, got int"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja cannot be used: UnicodeDecodeError"),
        ("generation_config.json", '{"eos_token_id": [99]}', r"ids below 11, got \[99\]"),
        ("config.json", '{"eos_token_id": "</s>"}', r"ids below 11, got \['</s>'\]"),
        ("config.json", '{"eos_token_id": true}', r"ids below 11, got \[True\]"),
    ],
)
def test_damaged_files_are_named(folder, name, content, words):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=words):
        load_chat(folder, vocab_size=11)


def test_another_models_tokenizer_and_none_are_refused(folder):
    with pytest.raises(ValueError, match="has 11 tokens, but the model 10: not its tokenizer"):
        load_chat(folder, vocab_size=10)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.model .* save_pretrained writes it"):
        load_chat(folder, vocab_size=11)
