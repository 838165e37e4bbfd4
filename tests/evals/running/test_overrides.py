"""Overrides of every field of every config: set with its own type, or refused by name."""

import importlib
import pathlib

import ml_collections
import pytest

import configs
from evals.running.overrides import Override, apply_overrides, split_overrides

NAMES = sorted(file.stem for file in pathlib.Path(configs.__path__[0]).glob("*.py"))
BAD = {  # texts that a type does not take
    int: ["a", "", "8.0", "1e3", "-1", "true", "(8,)", "99999999999", "9" * 5000, "None", True],
    float: ["a", "", "nan", "-inf", "1,5", "(1.0,)", True],
    bool: ["a", "", "2", "None", "(True,)"],
    str: [True, False],
    object: [True, False],
}
ODD = ["a", "", "3", "-1", "1.5", "true", "None", "(", "()", "(1,", "(1, 'a')", "{}", "{1: 2}"]
ODD += ["[[1]]", "('a', None)", "a,b", "=", "é'\"", "'\\d'", "1if 2else 3", "(" * 300, True, False]


def fields(config, prefix=""):
    """Dotted names with their default and type."""
    for name in config:
        if isinstance(config[name], type(config)):
            yield from fields(config[name], f"{prefix}{name}.")
        else:
            yield prefix + name, config[name], config.get_type(name)


def settings(name):
    return importlib.import_module(f"configs.{name}").get_config()


def overridden(name, *arguments):
    """The config after arguments of the command line, locked as main.py has it."""
    config = settings(name).lock()
    others, overrides = split_overrides(arguments)
    assert not others
    apply_overrides(config, overrides)
    return config


@pytest.mark.parametrize("name", NAMES)
def test_a_value_of_another_type_is_refused_by_the_fields_name(name):
    config = settings(name)
    before = config.to_dict()
    for field, default, kind in fields(settings(name)):
        texts = BAD.get(kind, [])
        if kind is tuple and default and type(default[0]) is not str:
            texts = [text for text in BAD[type(default[0])] if text != f"({text},)"]
            texts = [text for text in texts if isinstance(text, bool) or not text.startswith("(")]
        for text in texts:
            if default is None and text == "None":
                continue
            with pytest.raises(ValueError, match=rf"^--config\.{field} must be ") as caught:
                apply_overrides(config, [Override(field, text)])
            assert "\n" not in str(caught.value)
    assert config.to_dict() == before


@pytest.mark.parametrize("name", NAMES)
def test_what_is_set_has_the_fields_type(name):
    for field, default, kind in fields(settings(name)):
        config = settings(name)
        for text in ODD:
            try:
                apply_overrides(config, [Override(field, text)])
            except ValueError as error:
                assert str(error).startswith(f"--config.{field} must be ")
                continue
            value = {one: found for one, found, _ in fields(config)}[field]
            assert isinstance(value, kind) or (default is None and value is None)
            if kind is tuple and value is not None:
                of = type(default[0]) if default else str
                assert all(type(element) is of for element in value)
            if kind is object:
                assert isinstance(value, str) or all(isinstance(one, str) for one in value)
            config = settings(name)


@pytest.mark.parametrize(
    "typed, likely",
    [
        ("batch-size", "batch_size"),
        ("Batch_size", "batch_size"),
        ("batch_size.x", "batch_size"),
        ("batch_size[0]", "batch_size"),
        ("tasks[0]", "tasks"),
        ("[0].tasks", None),
        ("fna.num_landmark", "fna.num_landmarks"),
        ("num_landmarks", "fna.num_landmarks"),
        ("fna.seeds.0", "fna.seeds"),
        ("fna['layers']", "fna.layers"),
        ("fna.", "fna.layers"),
        ("fna", "fna.layers"),
        ("", None),
        (".", None),
        ("tasks ", "tasks"),
        ("__class__", None),
        ("lock", None),
        ("to_dict", None),
        ("1", None),
        ("zzz", None),
    ],
)
def test_a_mistyped_field_is_named_with_the_likely_one(typed, likely):
    with pytest.raises(ValueError) as caught:
        overridden("eval", f"--config.{typed}=8")
    message = str(caught.value)
    assert "\n" not in message and repr(typed) in message
    if likely:
        assert likely in message.partition("Known:")[0]


@pytest.mark.parametrize(
    "name, arguments, field, value",
    [
        ("eval", ["--config.batch_size=8"], "batch_size", 8),
        ("eval", ["--config.batch_size", "8"], "batch_size", 8),
        ("eval", ["-config.batch_size=8"], "batch_size", 8),
        ("eval", ["--config.batch_size=7", "--config.batch_size=8"], "batch_size", 8),
        ("eval", ["--config.fna.layers=(3,4)"], "fna.layers", "(3,4)"),
        ("eval", ["--config.data=a=b, c"], "data", "a=b, c"),
        ("eval", ["--config.fna.seeds=(0,)"], "fna.seeds", (0,)),
        ("eval", ["--config.fna.seeds=[3, 4]"], "fna.seeds", (3, 4)),
        ("eval", ["--config.fna.seeds=3,4"], "fna.seeds", (3, 4)),
        ("eval", ["--config.fna.seeds=3", "--config.fna.seeds=4"], "fna.seeds", (3, 4)),
        ("eval", ["--config.tasks=knn"], "tasks", ("knn",)),
        ("eval", ["--config.tasks=knn,zero_shot"], "tasks", ("knn", "zero_shot")),
        ("eval", ["--config.tasks=(knn, zero_shot)"], "tasks", ("knn", "zero_shot")),
        ("eval", ["--config.tasks=('knn', 'zero_shot')"], "tasks", ("knn", "zero_shot")),
        ("eval", ['--config.templates=("a {}.",)'], "templates", ("a {}.",)),
        ("eval", ["--config.templates=a {}, big"], "templates", ("a {}, big",)),
        ("eval", ["--config.revision=None"], "revision", None),
        ("eval", ["--config.num_workers=None"], "num_workers", None),
        ("eval", ["--config.templates=None"], "templates", None),
        ("eval", ["--config.cache=a", "--config.cache=None"], "cache", None),
        ("eval", ["--config.model=None"], "model", "None"),  # whose default is a text
        ("eval", ["--config.fna.resample"], "fna.resample", True),
        ("eval", ["--config.fna.resample=FALSE"], "fna.resample", False),
        ("eval", ["--noconfig.fna.resample"], "fna.resample", False),
        ("sweep", ["--config.grid.resample=true"], "grid.resample", (True,)),
        ("sweep", ["--config.grid.layers=((3, 4),)"], "grid.layers", ("(3, 4)",)),
        ("segment", ["--config.segmentation.stride=1"], "segmentation.stride", 1.0),
        ("train", ["--config.model.vision.patch_size=8"], "model.vision.patch_size", 8),
        ("analyze", ["--config.images=a"], "images", "a"),
        ("analyze", ["--config.images", "('a', 'b')"], "images", ("a", "b")),
        ("analyze", ["--config.images=a, b"], "images", "a, b"),
        ("analyze", ["--config.blocks=(0,1)"], "blocks", "(0,1)"),
    ],
)
def test_a_value_is_read_as_its_field_holds_it(name, arguments, field, value):
    config = overridden(name, *arguments)
    assert {one: found for one, found, _ in fields(config)}[field] == value


def test_what_no_argument_can_say_is_left_to_the_file():
    config = ml_collections.ConfigDict({"pairs": ((1, 2), (3, 4)), "names": ["a"]})
    for field in config:
        with pytest.raises(ValueError, match=f"^--config.{field} must be set in the config's file"):
            apply_overrides(config, [Override(field, "1")])


def test_nothing_is_set_where_one_is_refused():
    config = settings("eval")
    with pytest.raises(ValueError):
        apply_overrides(config, [Override("batch_size", "8"), Override("fna.seeds", "a")])
    assert config.to_dict() == settings("eval").to_dict()


def test_other_arguments_are_left_alone():
    arguments = [
        "--config",
        "eval.py",
        "--configs.x=1",
        "--workdir=w",
        "config.x=1",
        "--noconfig=3",
    ]
    assert split_overrides(arguments) == (arguments, [])
