"""Imports go downwards only: a room may use those above it in this list, and nothing else of ours."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import megaclass

ROOMS = [
    "__init__", "errors", "files", "config", "parallel", "results", "data", "models", "heads", "checkpoint",
    "evaluation", "plan", "train", "inference", "export", "gallery", "serve", "bench", "doctor", "report", "jobs",
    "cli", "__main__",
]  # fmt: skip

SOURCE = Path(megaclass.__file__).parent
ROWS = str(Path(__file__).parents[1] / "benchmarks/results/infer-cpu.jsonl")
REPORT = ["report", ROWS, "--against", "arcface-a100", "--output"]


def name_of(path):
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def room_of(module):
    room = module.partition(".")[2].partition(".")[0]
    return ROOMS.index(room if room in ROOMS else "__init__")


def imported(node):
    """The absolute names of all modules that the code imports, wherever it does."""
    for statement in ast.walk(node):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"line {statement.lineno}: imports are absolute"
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)


def test_imports_go_down_and_in_no_circle():
    modules = {name_of(path): path for path in SOURCE.rglob("*.py")}
    graph = {}
    for name, path in modules.items():
        found = {n if n in modules else n.rpartition(".")[0] for n in imported(ast.parse(path.read_text()))}
        graph[name] = found & modules.keys() - {name}
        assert [other for other in graph[name] if room_of(other) > room_of(name)] == [], name
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    "code",
    [
        "import megaclass; megaclass.load_recipe('glyphs'); megaclass.UserError",
        "from megaclass.cli import main; main(['--help'])",
        "from megaclass.cli import main; main(['show', 'glyphs', '--all'])",
        "from megaclass.cli import main; main(['train', '--optim.lrr', '1'])",
        f"from megaclass.cli import main; assert not main({[*REPORT, '.']})",
        "import megaclass.report.curves",
    ],
)
def test_no_torch_where_none_is_needed(tmp_path, code):
    code = f"import sys; sys.path.insert(0, {str(SOURCE.parent)!r}); {code}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_load_when_first_used():
    assert {*megaclass.__all__} == {*dir(megaclass)} and len(megaclass.__all__) > 10
    for name in megaclass.__all__:
        assert getattr(megaclass, name) is not None
    with pytest.raises(AttributeError, match="'ArcFac'"):
        _ = megaclass.ArcFac
