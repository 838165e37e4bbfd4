"""The rooms of `evals/` import one way."""

import ast
import pathlib

import pytest

import evals

EVALS = pathlib.Path(evals.__file__).parent
ORDER = ("data", "running", "tasks", "jobs")  # each imports only itself and those before it


def imported_rooms(file):
    """Rooms of all imports of a file, those inside functions included."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("evals.")}


@pytest.mark.parametrize("room", ORDER)
def test_imports_run_one_way(room):
    allowed = set(ORDER[: ORDER.index(room) + 1])
    for file in (EVALS / room).rglob("*.py"):
        assert imported_rooms(file) <= allowed, file


def test_every_module_is_in_a_room_that_the_docstring_names():
    modules = {file.stem for file in EVALS.glob("*.py")} - {"__init__"}
    rooms = {file.parent.name for file in EVALS.glob("*/__init__.py")}
    assert not modules and rooms == set(ORDER)
    assert " → ".join(reversed(ORDER)) in evals.__doc__
