"""Imports go downwards only: a room may use those above it in this list, and nothing else of ours."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import megaclass

ROOMS = [
    "__init__", "errors", "config", "parallel", "results", "data", "models", "heads", "checkpoint", "evaluate",
    "train", "inference", "bench", "report", "cli", "__main__",
]  # fmt: skip
WITHOUT_TORCH = {"errors", "config", "results", "report"}  # they run on a laptop that has none

SOURCE = Path(megaclass.__file__).parent
FILES = {path.relative_to(SOURCE).as_posix(): path for path in sorted(SOURCE.rglob("*.py"))}


def room_of(file):
    return file.partition("/")[0].removesuffix(".py")


def imported(node):
    """The absolute names of all modules that the code imports, wherever it does."""
    for statement in ast.walk(node):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"line {statement.lineno}: imports are absolute"
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)


def test_imports_go_down():
    for file, path in FILES.items():
        room = room_of(file)
        for name in imported(ast.parse(path.read_text())):
            package, *rest = name.split(".")
            if package == "megaclass":
                other = rest[0] if rest and rest[0] in ROOMS else "__init__"
                assert ROOMS.index(other) <= ROOMS.index(room), f"{file} imports {name}"


def test_no_module_imports_itself_in_a_circle():
    modules = {
        "megaclass." + file.removesuffix(".py").replace("/", "."): path for file, path in FILES.items()
    }
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    graph = {}
    for name, path in modules.items():
        found = {n if n in modules else n.rpartition(".")[0] for n in imported(ast.parse(path.read_text()))}
        graph[name] = found & modules.keys() - {name}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    "code",
    [
        "import megaclass; megaclass.load_recipe('glyphs'); megaclass.UserError",
        "from megaclass.cli import main; main(['--help'])",
        "from megaclass.cli import main; main(['show', 'glyphs', '--all'])",
        "from megaclass.cli import main; main(['train', '--optim.lrr', '1'])",
        "import megaclass.report.page, megaclass.report.curves",
    ],
)
def test_no_torch_where_none_is_needed(code):
    code = f"import sys; sys.path.insert(0, {str(SOURCE.parent)!r}); {code}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_public_names_load_when_first_used():
    assert {*megaclass.__all__} == {*dir(megaclass)} and len(megaclass.__all__) > 10
    for name in megaclass.__all__:
        assert getattr(megaclass, name) is not None
    with pytest.raises(AttributeError, match="'ArcFac'"):
        _ = megaclass.ArcFac
