import inspect
import pathlib
import re

import benchmarks
from benchmarks import layer_tables, model_tables, tables

BENCHMARKS = [
    file.stem
    for file in pathlib.Path(benchmarks.__file__).parent.glob("*.py")
    if 'add_argument("--' in file.read_text() and file.stem != "rows"
]


def test_every_benchmark_has_a_test():
    here = pathlib.Path(__file__).parent
    imports = re.findall(r"^from benchmarks import (.*)$", _all_text(here), flags=re.MULTILINE)
    imported = {name for line in imports for name in re.findall(r"\w+", line)}
    assert len(BENCHMARKS) >= 9 and imported.issuperset(BENCHMARKS)


def test_committed_results_have_their_tables(capsys):
    tables.main()
    out = capsys.readouterr().out
    assert "results/attention.csv\n\n| tokens |" in out and "| 16,385 | 1,024 |" in out


def test_every_table_is_printed():
    printed = {table for of_file in tables.TABLES.values() for table in of_file}
    for module in (layer_tables, model_tables):
        own = [x for _, x in inspect.getmembers(module, inspect.isfunction)]
        own = [x for x in own if x.__module__ == module.__name__ and x.__name__[0] != "_"]
        assert own and printed.issuperset(own)


def _all_text(folder):
    return "\n".join(file.read_text() for file in folder.glob("test_*.py"))
