"""Imports run one way, and the method alone needs neither flax nor torch."""

import ast
import json
import pathlib
import subprocess
import sys
import tomllib

import pytest

import fna_jax
from tests.fna_jax import batch_parallel

ROOT = pathlib.Path(__file__).parents[2]
# What holds settings, and what computes nothing itself.
NO_FUNCTIONS = {"FNAConfig", "Landmarks", "Masking", "swap_attention"}
NO_FUNCTIONS |= {"CentroidKeyValue", "Clusters", "Windows"}
ORDER = ("fna_jax", "models", "convert", "evals", "training", "main")


def imported_packages(file):
    """Top-level names of all imports of a file, those inside functions included."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("package", ORDER)
def test_imports_run_one_way(package):
    files = list((ROOT / package).rglob("*.py")) + list(ROOT.glob(f"{package}.py"))
    forbidden = set(ORDER[ORDER.index(package) + 1 :])
    for file in files:
        assert not imported_packages(file) & forbidden, file


def test_the_method_imports_jax_and_numpy_only():
    allowed = {"fna_jax", "jax", "numpy", *sys.stdlib_module_names}
    for file in (ROOT / "fna_jax").rglob("*.py"):
        lazily = {"flax"} if file.name == "swap.py" else set()
        assert imported_packages(file) <= allowed | lazily, file


ABSENT = {  # after the import of a package, the earlier ones included
    "fna_jax": ["flax", "torch", "models"],
    "models": ["torch", "transformers", "tensorflow", "convert"],
    "convert": ["torch", "transformers", "tensorflow", "evals"],
    "convert.__main__": ["torch", "transformers", "tensorflow", "evals"],
}
PROGRAM = """
import importlib, json, sys
absent = json.loads(sys.argv[1])
loaded = {}
for package, others in absent.items():
    importlib.import_module(package)
    loaded[package] = [name for name in others if name in sys.modules]
print(json.dumps(loaded))
"""


@pytest.fixture(scope="module")
def loaded():
    """Which of `ABSENT` are there, by package; in one process, for Python and JAX take seconds."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(ABSENT)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("package", ABSENT)
def test_importing_a_package_leaves_others_alone(loaded, package):
    assert loaded[package] == []


@pytest.mark.slow
def test_the_zoo_lives_beside_another_package_called_models(tmp_path):
    """As docs/models.md says: a checkout in a folder of one's own project, and the wheel."""
    (tmp_path / "models.py").write_text("whose = 'mine'\n")
    (tmp_path / "third_party").mkdir()
    (tmp_path / "third_party" / "fna").symlink_to(ROOT)
    (tmp_path / "wheel").mkdir()
    (tmp_path / "wheel" / "fna_jax").symlink_to(ROOT / "fna_jax")
    code = "import models; from third_party.fna import models as zoo; "
    code += "print(models.whose, 'clip-vit-b-32' in zoo.list_models())"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": str(tmp_path / "wheel"), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.split() == ["mine", "True"], result.stderr


def test_what_is_installed_is_all_of_the_package():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    files = (ROOT / "fna_jax").rglob("*.py")
    packages = {".".join(file.parent.relative_to(ROOT).parts) for file in files}
    assert set(listed["tool"]["setuptools"]["packages"]) == packages


def test_every_public_function_is_covered():
    """By what splits a batch over devices, which test_eight_devices.py runs."""
    of_models = {"TokenMerging", "TokenDropping"}
    assert set(batch_parallel.CASES) == set(fna_jax.__all__) - NO_FUNCTIONS | of_models
