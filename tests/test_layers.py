"""Imports go downwards only. The table is the house; a new module gets its place in it."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import megaclass

LAYERS = [
    # 0: standard library only
    {
        "__init__",
        "version",
        "errors",
        "config",
        "schedule",
        "events",
        "rundir",
        "classnames",
        "rows",
        "stats",
        "verdict",
        "published",
    },
    {
        "distributed",
        "rendezvous",
        "heartbeat",
        "gradients",
        "runtime",
        "permutation",
        "environment",
        "traffic",
    },  # 1: leaves on torch
    {"data", "models", "heads", "optim"},  # 2: parts, which know nothing of one another
    {"checkpoint", "arcface_torch", "evaluate", "console"},  # 3: services, which know no part
    {
        "evaluation",
        "averaging",
        "backbone",
        "compilation",
        "build",
        "progress",
        "runlog",
        "stall",
        "state",
        "train",
        "batches",
        "scoring",
        "predict",
    },  # 4: composition
    {"export", "bench"},  # 5: measurement
    {"report"},  # 6: reads files, on a laptop without torch
    {"cli", "__main__"},  # 7: one short function a verb
]
MINGLE = {0, 1, 4, 7}  # layers whose modules may import one another, without a cycle
LAYER_OF = {unit: number for number, units in enumerate(LAYERS) for unit in units}

SOURCE = Path(megaclass.__file__).parent
FILES = {path.relative_to(SOURCE).as_posix(): path for path in sorted(SOURCE.rglob("*.py"))}


def unit_of(file):
    return file.partition("/")[0].removesuffix(".py")


def imported(node):
    """The absolute names of all modules that the code imports, wherever it does."""
    for statement in ast.walk(node):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"line {statement.lineno}: imports are absolute"
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)


def ours_and_others(node):
    """The units of this package, and the names of other packages, that the code imports."""
    units, others = set(), set()
    for name in imported(node):
        package, *rest = name.split(".")
        if package == "megaclass":
            units.add(rest[0] if rest and rest[0] in LAYER_OF else "__init__")
        else:
            others.add(package)
    return units, others


def test_every_module_has_a_layer():
    missing = {unit_of(file) for file in FILES} - LAYER_OF.keys()
    assert not missing, f"{missing}: add to LAYERS in {Path(__file__).name} at the lowest layer that holds"
    gone = LAYER_OF.keys() - {unit_of(file) for file in FILES}
    assert not gone, f"{gone}: remove from LAYERS in {Path(__file__).name}"


@pytest.mark.parametrize("file", FILES)
def test_imports_go_down(file):
    unit = unit_of(file)
    layer = LAYER_OF[unit]
    units, others = ours_and_others(ast.parse(FILES[file].read_text()))
    for other in units - {unit}:
        below = LAYER_OF[other] < layer or (LAYER_OF[other] == layer and layer in MINGLE)
        assert below, f"{unit} (layer {layer}) imports {other} (layer {LAYER_OF[other]})"
    if layer == 0:
        assert others <= sys.stdlib_module_names
    if unit == "report":
        assert "torch" not in others and all(LAYER_OF[other] == 0 for other in units - {unit})


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


def test_the_command_line_starts_on_the_standard_library():
    tree = ast.parse(FILES["cli/__init__.py"].read_text())
    at_start = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    units, others = ours_and_others(at_start)
    assert others <= sys.stdlib_module_names and all(LAYER_OF[unit] == 0 for unit in units)


@pytest.mark.parametrize(
    "code",
    [
        "import megaclass; megaclass.load_recipe('glyphs'); megaclass.UserError",
        "from megaclass.cli import main; main(['--help'])",
        "from megaclass.cli import main; main(['show', 'glyphs', '--all'])",
        "from megaclass.cli import main; main(['train', '--optim.lrr', '1'])",
        "import megaclass.report.table, megaclass.report.curves",
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
