"""README and docs do what they say: each page is run from top to bottom in a folder of tiny data.

Commands of megaclass run in this process, training for two steps of a narrow network. What needs a GPU, several
processes, a peer or minutes is only parsed: its recipe, flags and settings must be accepted.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import sys
import types
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import nn

import document_folder
from document_folder import CLASSES, RESULTS, ROOT, run, shortened
from megaclass import PartialFC
from megaclass.bench import BENCHMARKS
from megaclass.config import load_recipe, options
from megaclass.doctor import machine
from megaclass.heads import margins
from megaclass.models import registry
from megaclass.results import published
from megaclass.results.rows import read_rows

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)

# Numbers of examples that are too large for a test.
SMALLER = {"1_000_000": "1_000", '"head/weight", 0, 1000': '"head/weight", 0, 10'}


# What the page tells to enter in a registry, once its code has made it.
REGISTERED: dict[str, tuple[dict, str]] = {
    "TinyNet": (registry.BACKBONES, "tinynet"),
    "RelativeMargin": (margins.MARGINS, "relative"),
    "BENCHMARK": (BENCHMARKS, "order"),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("documents")
    document_folder.write_all(root)
    return root


# -- commands ----------------------------------------------------------------------------------------------


def rooted(text: str) -> str:
    """Absolute paths of examples, inside the folder."""
    return re.sub(r"(?<![\w./])/(data|network|local|shared)\b", r"\1", text)


def trained(arguments: list[str]) -> None:
    recipe = arguments[0]
    if "--resume" in arguments:  # with the settings of its run
        run("train", *arguments, "--schedule.steps", "3")
    else:
        keys = [word.partition("=")[0] for word in arguments]
        output = [] if "--run.output" in keys else ["--run.output", f"runs/of-{abs(hash(tuple(arguments)))}"]
        run("train", *arguments, *shortened(recipe, keys), *output)


def remove_outputs(arguments: list[str]) -> None:
    """What the template has already and the command is to make."""
    position = {"pack": 3, "split": 3}
    outputs = [word for flag, word in pairwise(arguments) if flag in ("--output", "--sheet")]
    if arguments[0] == "data" and arguments[1] in position:
        outputs.append(arguments[position[arguments[1]]])
    for output in map(Path, outputs):
        if output.is_dir() and output.name != "page":
            shutil.rmtree(output)
        elif output.is_file():
            output.unlink()


def megaclass_command(arguments: list[str], started_alone: bool) -> None:
    verb = arguments[0]
    if verb == "train" and not started_alone:  # its recipe and settings are read
        run("show", *(word for word in arguments[1:] if word != "--resume"))
    elif verb == "train":
        trained(arguments[1:])
    elif verb == "doctor":  # of this machine its disk alone; what the recipe asks for is there
        there = {f"megaclass.{part}.available_memory": 10**12 for part in ("doctor.recipe", "train.foresight")}
        with mock.patch.dict(machine._PROBES, clear=True), contextlib.ExitStack() as stack:
            for name, memory in there.items():
                stack.enter_context(mock.patch(name, return_value=memory))
            run(*arguments)
    elif verb == "bench" and arguments[1] == "order":  # that of CONTRIBUTING is small enough
        run(*arguments)
        assert {row.status for row in read_rows("order.jsonl")} == {"ok"}
    elif verb == "bench":
        parsed_benchmark(arguments[1:])
    else:
        remove_outputs(arguments)
        if verb == "evaluate" and "--recipe" in arguments:
            recipe = arguments[arguments.index("--recipe") + 1]
            arguments = [*arguments, *shortened(recipe, arguments)]
        run(*arguments)


class NotMeasuredError(Exception):
    """Raised in the place of what takes long."""


def parsed_benchmark(arguments: list[str]) -> None:
    """Nothing is measured: flags are read and cases planned, beside a stand-in for the peer. Of a suite, which counts
    operations of whole networks, the flags alone."""
    place = "megaclass.bench.sweep.sweep"
    if arguments == ["suite"]:
        run("bench", *arguments)
        return
    if arguments[0] == "suite":
        assert arguments[1] in published.names()
        place = "megaclass.bench.suite.plan"
    with mock.patch(place, side_effect=NotMeasuredError), pytest.raises(NotMeasuredError):
        run("bench", *arguments)


def other_command(words: list[str]) -> None:
    """A command of another program: that what it names exists."""
    program = Path(words[0]).name
    if program == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "pip":
        for extra in re.findall(r"megaclass\[(\w+)\]", " ".join(words)):
            assert f"{extra} = [" in (ROOT / "pyproject.toml").read_text()
    elif program == "pytest":
        assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))
    elif program == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).exists()
    else:
        assert program in ("python3.11", "cd", "tensorboard", "curl", "docker"), f"what is {program}?"


def commands(text: str) -> list[str]:
    """The commands of a block of shell: continued lines joined, comments and empty lines left out."""
    lines = text.replace("\\\n", " ").splitlines()
    found = [re.sub(r"(^|\s)#.*", "", line).strip() for line in lines]
    return [part.strip() for line in found if line for part in line.split("&&")]


def shell(text: str, _: dict) -> None:
    for command in commands(rooted(text)):
        if re.match(r"\w+=\$\(", command):
            continue  # a variable of a job's script
        if inner := re.search(r"\$\(megaclass ([^)]*)\)", command):
            command = command.replace(inner[0], run(*shlex.split(inner[1])).strip())
        words = shlex.split(re.sub(r"^([A-Z_]+=\S* )*", "", command.partition(" > ")[0]))
        if words[0] == "megaclass":
            megaclass_command(words[1:], started_alone=True)
        elif "megaclass" in words and words[words.index("megaclass") - 1] == "-m":  # under a starter
            megaclass_command(words[words.index("megaclass") + 1 :], started_alone=False)
        else:
            other_command(words)


# -- pages -------------------------------------------------------------------------------------------------


def standins() -> dict:
    """What the code of the reader's own program is, in blocks that show a part of it."""
    backbone = nn.Linear(512, 512)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    checkpoint: dict = {}
    return {
        "torch": torch,
        "backbone": backbone,
        "model": registry.build_backbone("convnet", image_size=32, width=8, embedding_dim=16),
        "images": torch.randn(4, 512),
        "labels": torch.arange(4),
        "cfg": SimpleNamespace(
            margin_list=(1.0, 0.5, 0.0),
            interclass_filtering_threshold=0.0,
            num_classes=CLASSES,
            embedding_size=16,
            sample_rate=1.0,
            seed=0,
            lr=0.1,
            weight_decay=5e-4,
        ),
        "head": PartialFC(CLASSES, 16),
        "amp": torch.amp.GradScaler(enabled=False),
        "lr_scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer),
        "checkpoint": checkpoint,
        "dict_checkpoint": checkpoint,
    }


def python(text: str, namespace: dict) -> None:
    for large, small in SMALLER.items():
        text = text.replace(large, small)
    if "BENCHMARK = " in text:  # its workers import the file
        Path("page.py").write_text(text, encoding="utf-8")
    exec(compile(rooted(text), "page", "exec", dont_inherit=True), namespace)


def recipe_file(text: str, _: dict) -> None:
    """A recipe is read, and kept under the name that its first line says."""
    named = re.match(r"# (\w+\.toml)\n", text)
    path = Path(named[1] if named else "example.toml")
    path.write_text(rooted(text), encoding="utf-8")
    load_recipe(str(path))


LANGUAGES = {"sh": shell, "python": python, "toml": recipe_file, "text": lambda text, _: None}


def blocks(page: Path) -> Iterator[tuple[str, str, int]]:
    """Of each fenced block its language, its text, and the line of the page at which it begins."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield match[1], match[2], text[: match.start()].count("\n") + 2


@pytest.mark.process
@pytest.mark.parametrize("page", [p for p in PAGES if {language for language, *_ in blocks(p)} - {"text"}], ids=name_of)
def test_a_page_works_from_top_to_bottom(
    page: Path, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shutil.copytree(template, tmp_path / "here"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "here"), prepend=os.pathsep)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    module.__dict__.update(standins())
    for language, text, line in blocks(page):
        try:
            LANGUAGES[language](text, module.__dict__)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{name_of(page)}, block at line {line}: {error}") from error
        for name, (table, key) in REGISTERED.items():
            if name in module.__dict__:
                monkeypatch.setitem(table, key, module.__dict__[name])


# -- links, and what is made from the code ----------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent == ROOT], ids=name_of)
def test_links_of_pages_outside_the_site_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    """Links between pages and to their headings, pictures, and the names whose docstrings are shown."""
    build = pytest.importorskip("mkdocs.commands.build")
    config = pytest.importorskip("mkdocs.config").load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path))
    build.build(config)
    configuration = (tmp_path / "reference" / "configuration" / "index.html").read_text(encoding="utf-8")
    assert all(f"<code>{key}</code>" in configuration for key in options())
    recipes = (tmp_path / "reference" / "recipes" / "index.html").read_text(encoding="utf-8")
    assert "17,091,657" not in recipes and "360,232" in recipes  # the classes of Glint360K, from its recipe


def test_numbers_of_the_performance_page_are_those_of_rows() -> None:
    """Every number that stands alone in a cell of its tables: a median in ms, samples a second, or a peak of memory."""
    known = set()
    for path in RESULTS.glob("*.jsonl"):
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            measured = [row.get("step_ms", {}).get("p50"), row.get("samples_per_second")]
            measured += [row.get("memory_mb", {}).get("process"), row["case"].get("batch_size")]
            measured.append(row.get("work", {}).get("samples_per_cpu_second"))
            for number in filter(None, measured):  # as the page may round it
                known |= {f"{number:,.0f}", f"{number:.1f}", f"{float(f'{number:.3g}'):,.0f}"}
    page = (ROOT / "docs" / "explanation" / "performance.md").read_text(encoding="utf-8")
    rows = [line.split("|")[2:-1] for line in page.splitlines() if line.startswith("|")]
    cells = [cell.strip() for row in rows for cell in row]
    numbers = [n for n in cells if re.fullmatch(r"\d[\d,]*(\.\d)?", n) and float(n.replace(",", "")) > 16]
    assert len(numbers) > 70
    assert [number for number in numbers if number not in known] == []


# -- what is named in passing ------------------------------------------------------------------------------

NOT_SETTINGS = {"model.pt", "model.safetensors"} | {
    f"head.{name}" for name in ("draw", "step", "num_classes", "class_range", "load_state_dict")
}
TO_BE_WRITTEN = {
    "src/megaclass/heads/margins/relative.py",
    "src/megaclass/models/tinynet.py",
    "src/megaclass/bench/order.py",
}


@every_page
def test_settings_and_files_named_in_a_sentence_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    sections = "|".join(sorted({key.partition(".")[0] for key in options()}))
    for code in re.findall(r"`([^`\n]+)`", text):
        keys = re.findall(rf"(?<![\w./-])(?:--)?((?:{sections})\.[a-z_0-9]+)(?=[\s=`]|$)", code)
        assert {*keys} <= options().keys() | NOT_SETTINGS
        if re.fullmatch(r"(src|tests|benchmarks|examples)/[\w./-]+", code):
            assert (ROOT / code).exists() or code in TO_BE_WRITTEN
