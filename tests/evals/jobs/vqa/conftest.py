"""What tests of questions share: files beside a tiny LLaVA, questions, and a bench."""

import importlib
import json

import pytest
import tokenizers

from evals.data.questions import read_questions
from evals.jobs.vqa.asking import Bench, prompt_form
from evals.running.pretrained import Answering
from models import registry
from models.inputs.chat import load_chat
from models.llava import LLaVA
from tests.evals.conftest import write_image
from tests.models.inputs.test_prompts import PREPROCESSOR
from tests.models.tiny_llava import IMAGE, SIDE, config_of

WORDS = ["<s>", "</s>", "<unk>", "USER", "ASSISTANT", "How", "many", "cats", "dogs", "<image>"]
TEMPLATE = (
    "{{ bos_token }} USER {% for m in messages %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %} ASSISTANT"
)
SIZES = ((90, 70), (30, 40), (50, 50), (28, 90), (60, 60))


@pytest.fixture(scope="module")
def companions(tmp_path_factory):
    """The files beside the checkpoint of a tiny LLaVA."""
    folder = tmp_path_factory.mktemp("companions")
    words = WORDS + [f"word{i}" for i in range(31 - len(WORDS))]
    assert words[IMAGE] == "<image>"
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "</s>", "<unk>", "<image>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    files = {
        "tokenizer_config.json": {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "chat_template": TEMPLATE,
        },
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": SIDE},
            "crop_size": {"height": SIDE, "width": SIDE},
        },
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def chat(companions):
    return load_chat(companions, vocab_size=31)


@pytest.fixture
def pope(tmp_path):
    """Five questions of POPE's form, each about an image of its own."""
    lines = []
    for i, size in enumerate(SIZES):
        write_image(tmp_path / "images" / f"{i}.png", size=size, seed=i)
        word = ("cats", "dogs")[i % 2]
        entry = {"question_id": i, "image": f"{i}.png", "text": f"How many {word}"}
        lines.append(json.dumps(entry | {"label": ("yes", "no")[i % 2]}))
    (tmp_path / "pope.json").write_text("\n".join(lines))
    return tmp_path


@pytest.fixture
def config(pope):
    config = importlib.import_module("configs.vqa").get_config()
    config.model, config.dataset = "/nowhere", "pope"
    config.questions, config.images = str(pope / "pope.json"), str(pope / "images")
    config.max_new_tokens, config.batch_size, config.repeats = 3, 2, 1
    config.fna.num_landmarks, config.fna.methods = (8,), ("fps",)
    config.landmark_cache.num_landmarks, config.dropping.kept = (4,), (50,)
    config.prefill.num_landmarks, config.prefill.run_lengths = (6,), (3,)
    return config


class Scripted(Bench):
    """Answers without a model: the last words of each prompt."""

    def written(self, view, arm, prompts, **settings):
        return prompts.tokens[:, -3:-1]


@pytest.fixture
def bench(config, chat):
    """The questions, and a model without weights."""
    model = registry.abstract_model(LLaVA, config_of("1.5"))
    backbone = Answering("tiny", model, PREPROCESSOR, chat=chat)
    questions = read_questions("pope", config.questions, images=config.images)
    form = prompt_form(chat, IMAGE)
    return Scripted(backbone, questions, form, config.batch_size, config.max_new_tokens)
