"""README and docs do what they say: each page is run from top to bottom in a folder of tiny data.

Commands of megaclass run in this process, training for two steps of a narrow network. What needs a GPU, several
processes, a peer or minutes is only parsed: its recipe, flags and settings must be accepted.
"""

import contextlib
import io
import json
import os
import re
import shutil
import sys
import tarfile
import types
import zipfile
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import fake_peer
import tiny
from documents import LANGUAGES, PAGES, ROOT, Block, blocks, commands, megaclass_words, name_of, words
from megaclass import PartialFC
from megaclass.bench import BENCHMARKS
from megaclass.cli import main
from megaclass.config import load_recipe, options
from megaclass.heads import margins
from megaclass.models import registry
from megaclass.results import published

CLASSES, SAMPLES = 30, 4
RESULTS = ROOT / "benchmarks" / "results"

# What training is shortened by, where the command does not say otherwise.
SHORT = {
    "run.device": "cpu", "run.threads": "1", "run.tensorboard": "false", "data.workers": "1",
    "data.global_batch_size": "8", "data.num_classes": "0", "data.image_size": "32", "schedule.steps": "2",
    "precision.compute": "fp32", "evaluate.batch_size": "8", "evaluate.every_epochs": "0", "evaluate.every": "0",
}  # fmt: skip
# Numbers of examples that are too large for a test.
SMALLER = {"1_000_000": "1_000", '"head/weight", 0, 1000': '"head/weight", 0, 10'}


# What the page tells to enter in a registry, once its code has made it.
REGISTERED: dict[str, tuple[dict, str]] = {
    "TinyNet": (registry.BACKBONES, "tinynet"),
    "RelativeMargin": (margins.MARGINS, "relative"),
    "BENCHMARK": (BENCHMARKS, "order"),
}


# -- a folder in which the commands find what they name ----------------------------------------------------


def picture(label: int, sample: int, size: int = 32) -> bytes:
    """An image of its class, as JPEG."""
    random = np.random.default_rng(label)
    pattern = random.integers(0, 200, (4, 4, 3)).repeat(size // 4, 0).repeat(size // 4, 1)
    noise = np.random.default_rng(1000 * label + sample + 1).integers(0, 56, pattern.shape)
    return cv2.imencode(".jpg", (pattern + noise).astype(np.uint8))[1].tobytes()


def write_folder(folder: Path, names: list[str]) -> None:
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for sample in range(SAMPLES):
            (folder / name / f"{name.rpartition('/')[2]}_{sample + 1:04}.jpg").write_bytes(
                picture(label, sample)
            )


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_imagenet(folder: Path, wnids: list[str]) -> None:
    """The archives of ILSVRC: a tar of class tars, and a tar of images with a file of numbers."""
    for label, wnid in enumerate(wnids):
        write_tar(folder / f"{wnid}.tar", {f"{wnid}_{n}.JPEG": picture(label, n) for n in range(SAMPLES)})
    write_tar(
        folder / "ILSVRC2012_img_train.tar",
        {f"{wnid}.tar": (folder / f"{wnid}.tar").read_bytes() for wnid in wnids},
    )
    names = [f"ILSVRC2012_val_{n:08}.JPEG" for n in range(len(wnids))]
    write_tar(folder / "ILSVRC2012_img_val.tar", {name: picture(n, 9) for n, name in enumerate(names)})
    numbers = "".join(f"{n + 1}\n" for n in range(len(wnids)))
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(numbers)
    (folder / "map_clsloc.txt").write_text("".join(f"{w} {n + 1} name\n" for n, w in enumerate(wnids)))


def write_omniglot(folder: Path) -> None:
    for part in ("background", "evaluation"):
        write_folder(folder / f"images_{part}", [f"Greek/character{n:02}" for n in range(CLASSES)])
    bits = np.random.default_rng(0).integers(0, 2, (CLASSES * SAMPLES * 2, 105, 105)).astype(bool)
    np.savez(
        folder / "omniglot_105_bits.npz",
        bits=np.packbits(bits.reshape(len(bits), -1), axis=1),
        label=np.arange(len(bits)) // SAMPLES,
        background=np.arange(len(bits)) < len(bits) // 2,
    )


def run(*arguments: str) -> str:
    """A command of ours that must end well; returns what it printed."""
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with contextlib.redirect_stdout(printed):
        assert main([*map(str, arguments)]) == 0, " ".join(map(str, arguments))
    return printed.buffer.getvalue().decode()  # type: ignore[attr-defined]


def shortened(recipe: str, given: list[str]) -> list[str]:
    """Settings that make a training of that recipe short, without those that the command gives itself."""
    config = load_recipe(recipe)
    short = dict(SHORT)
    if config.model.name.startswith("resnet"):
        short |= {"model.name": "resnet18", "model.width": "8"}
    else:
        short |= {"model.name": "convnet", "model.width": "8", "model.embedding_dim": "16"}
    if config.data.start_size:
        short["data.start_size"] = "16"
    if config.data.source in ("glyphs", "synthetic"):
        short |= {"data.source": "records", "data.path": "data/ms1m", "evaluate.task": "none"}
    if recipe == "imagenette" or recipe.startswith("resnet"):
        short |= {"evaluate.resize": "0"}
    return [f"--{key}={value}" for key, value in short.items() if f"--{key}" not in given]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that pages name, made once."""
    root = tmp_path_factory.mktemp("documents")
    data = root / "data"
    identities = [f"shoe-{n:04}" for n in range(CLASSES)]
    write_folder(data / "products", identities)
    (root / "table.csv").write_text("".join(f"{name}/{name}_0001.jpg,{name}\n" for name in identities))
    tiny.write_records(data / "packed", CLASSES, SAMPLES)
    for name in ("ms1m", "glint", "ms1mv3", "glint360k", "ms1m-retinaface-t1"):
        shutil.copytree(data / "packed", data / name)
    shutil.copytree(data / "ms1m", root / "network" / "ms1m")
    wnids = [f"n0144076{n}" for n in range(4)]
    for name in ("imagenet", "imagenette"):
        write_folder(data / name / "train", wnids)
        write_folder(data / name / "val", wnids)
    write_imagenet(root, wnids)
    write_omniglot(root)
    write_folder(root / "photos", ["some"])
    (root / "photo.jpg").write_bytes(picture(1, 1))
    (root / "names.txt").write_text("".join(f"{wnid} name\n" for wnid in wnids))
    with contextlib.chdir(root):
        write_results(root, data)
    return root


def write_results(root: Path, data: Path) -> None:
    """What earlier commands left: runs, checkpoints of arcface_torch, verification sets, rows."""
    trained = {"faces_r50": "packed", "glyphs": "packed", "imagenette": "imagenette/train"}
    for recipe, path in (*trained.items(), ("resnet50_imagenet_90ep", "imagenet/train")):
        source = "folder" if "/" in path else "records"
        given = ["--data.path", str(data / path), "--data.source", source, "--evaluate.task", "none"]
        run("train", recipe, *given, *shortened(recipe, given), "--run.output", f"runs/{recipe}-001")
    checkpoints = root / "runs" / "glyphs-001" / "checkpoints"
    shutil.copytree(checkpoints / "step-00000002", checkpoints / "step-00002000")
    run("export", "arcface_torch", "runs/faces_r50-001", "OLD", "--ranks", "2")
    weights = torch.load("OLD/checkpoint_gpu_0.pt", weights_only=True)["state_dict_backbone"]
    torch.save(weights, "backbone.pth")
    run("data", "pairs", "data/products", "--pairs", "40", "--folds", "2", "--output", "pairs.bin")
    run("data", "pairs", "data/products", "--pairs", "40", "--folds", "2", "--output", "pairs.txt")
    for name in ("lfw.bin", "faces.bin", "data/ms1mv3/lfw.bin", "data/ms1m-retinaface-t1/lfw.bin",
                 "data/ms1m-retinaface-t1/agedb_30.bin"):  # fmt: skip
        shutil.copy("pairs.bin", name)
    with zipfile.ZipFile("lfw.zip", "w") as archive:
        for path in (data / "products").rglob("*.jpg"):
            archive.write(path, path.relative_to(data / "products"))
    suite = RESULTS / "suite-arcface-a100-cpu" / "rows.jsonl"
    (root / "runs" / "suite-arcface-a100").mkdir()
    shutil.copy(suite, root / "runs" / "suite-arcface-a100" / "rows.jsonl")
    for name in ("insightface", "DIR"):
        fake_peer.write(root / name)
    for name in ("rows", "before", "after", "old", "new"):
        shutil.copy(RESULTS / "train-faces-cpu.jsonl", f"{name}.jsonl")
    for name in ("head", "infer", "loader"):
        shutil.copy(RESULTS / f"{name}-cpu.jsonl", f"{name}.jsonl")
    shutil.copy(RESULTS / "train-imagenet-cpu.jsonl", "train.jsonl")


# -- commands ----------------------------------------------------------------------------------------------


def rooted(text: str) -> str:
    """Absolute paths of examples, inside the folder."""
    return re.sub(r"(?<![\w./])/(data|network|local|shared)\b", r"\1", text)


def parsed_training(arguments: list[str]) -> None:
    """A training that is not started: its recipe and settings are read."""
    run("show", *(word for word in arguments if word != "--resume"))


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
    position = {"pack": 3, "split": 3, "shuffle": 3, "merge": 2}
    outputs = [word for flag, word in pairwise(arguments) if flag in ("--output", "--sheet")]
    if arguments[0] == "data" and arguments[1] in position:
        outputs.append(arguments[position[arguments[1]]])
    if arguments[:2] == ["export", "arcface_torch"]:
        outputs.append(arguments[3])
    for output in map(Path, outputs):
        if output.is_dir() and output.name != "page":
            shutil.rmtree(output)
        elif output.is_file():
            output.unlink()


def megaclass_command(arguments: list[str], started_alone: bool) -> None:
    verb = arguments[0]
    if verb == "train" and not started_alone:
        parsed_training(arguments[1:])
    elif verb == "train":
        trained(arguments[1:])
    elif verb == "bench" and arguments[1] != "order":  # that of CONTRIBUTING is small enough
        parsed_benchmark(arguments[1:])
    elif verb == "show" or verb == "recipes":
        run(*arguments)
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
    if arguments[0] == "stability" and not BENCHMARKS["stability"].flags:
        return
    with mock.patch(place, side_effect=NotMeasuredError), pytest.raises(NotMeasuredError):
        run("bench", *arguments)


def other_command(split: list[str]) -> None:
    """A command of another program: that what it names exists."""
    program = Path(split[0]).name
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert split[1] in targets
    elif program == "pip":
        for extra in re.findall(r"megaclass\[(\w+)\]", " ".join(split)):
            assert f"{extra} = [" in (ROOT / "pyproject.toml").read_text()
    elif program == "pytest":
        assert all((ROOT / word).exists() for word in split if word.startswith("tests/"))
    elif program == "python" and split[1].endswith(".py"):
        assert (ROOT / split[1]).exists()
    else:
        assert program in ("python3.11", "cd"), f"what is {program}?"


def shell(text: str) -> None:
    for command in commands(rooted(text)):
        if re.match(r"\w+=\$\(", command):
            continue  # a variable of a job's script
        inner = re.search(r"\$\((megaclass [^)]*)\)", command)
        if inner:
            command = command.replace(inner[0], run(*words(inner[1])[1:]).strip())
        command = command.partition(" > ")[0]
        split = words(command)
        arguments = megaclass_words(split)
        if arguments is None:
            other_command(split)
        else:
            megaclass_command(arguments, started_alone=split[0] == "megaclass")


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


def recipe_file(text: str) -> None:
    """A recipe is read, and kept under the name that its first line says."""
    named = re.match(r"# (\w+\.toml)\n", text)
    path = Path(named[1] if named else "example.toml")
    path.write_text(rooted(text), encoding="utf-8")
    load_recipe(str(path))


def has_something_to_run(page: Path) -> bool:
    return any(block.language != "text" for block in blocks(page))


@pytest.mark.process
@pytest.mark.parametrize("page", [page for page in PAGES if has_something_to_run(page)], ids=name_of)
def test_a_page_works_from_top_to_bottom(
    page: Path, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shutil.copytree(template, tmp_path / "here"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "here"), prepend=os.pathsep)
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    module.__dict__.update(standins())
    for block in blocks(page):
        assert block.language in LANGUAGES, f"line {block.line}: a block says what it is"
        try:
            run_block(block, module.__dict__)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{name_of(page)}, block at line {block.line}: {error}") from error
        for name, (table, key) in REGISTERED.items():
            if name in module.__dict__:
                monkeypatch.setitem(table, key, module.__dict__[name])


def run_block(block: Block, namespace: dict) -> None:
    if block.language == "sh":
        shell(block.text)
    elif block.language == "python":
        python(block.text, namespace)
    elif block.language == "toml":
        recipe_file(block.text)


# -- links, and what is made from the code ----------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent == ROOT], ids=name_of)
def test_links_of_pages_outside_the_site_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    """Links between pages and to their headings, pictures, and the names whose docstrings are shown."""
    build = pytest.importorskip("mkdocs.commands.build")
    config = pytest.importorskip("mkdocs.config").load_config(
        str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path)
    )
    build.build(config)
    configuration = (tmp_path / "reference" / "configuration" / "index.html").read_text(encoding="utf-8")
    assert all(f"<code>{key}</code>" in configuration for key in options())
    recipes = (tmp_path / "reference" / "recipes" / "index.html").read_text(encoding="utf-8")
    assert "17,091,657" not in recipes and "360,232" in recipes  # the classes of Glint360K, from its recipe


def written(number: float) -> set[str]:
    """A number as the page may round it."""
    return {f"{number:,.0f}", f"{number:.1f}", f"{float(f'{number:.3g}'):,.0f}"}


def test_numbers_of_the_performance_page_are_those_of_rows() -> None:
    """Every number that stands alone in a cell of its tables: a median in ms, samples a second, or a peak of memory."""
    known = set()
    for path in RESULTS.glob("*.jsonl"):
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            measured = [row.get("step_ms", {}).get("p50"), row.get("samples_per_second")]
            measured += [row.get("memory_mb", {}).get("process")] if "memory_mb" in row else []
            measured += [row.get("work", {}).get("samples_per_cpu_second"), row["case"].get("batch_size")]
            known |= {text for number in measured if number for text in written(number)}
    page = (ROOT / "docs" / "explanation" / "performance.md").read_text(encoding="utf-8")
    cells = [
        cell.strip() for line in page.splitlines() if line.startswith("|") for cell in line.split("|")[2:-1]
    ]
    numbers = [
        cell for cell in cells if re.fullmatch(r"\d[\d,]*(\.\d)?", cell) and float(cell.replace(",", "")) > 16
    ]
    assert len(numbers) > 70
    assert [number for number in numbers if number not in known] == []


# -- what is named in passing ------------------------------------------------------------------------------

NOT_SETTINGS = {
    "model.pt",
    "head.draw",
    "head.step",
    "head.num_classes",
    "head.class_range",
    "head.load_state_dict",
}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_settings_named_in_a_sentence_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    sections = "|".join(sorted({key.partition(".")[0] for key in options()}))
    known = options().keys() | NOT_SETTINGS
    for code in re.findall(r"`([^`\n]+)`", text):
        for key in re.findall(rf"(?<![\w./-])(?:--)?((?:{sections})\.[a-z_0-9]+)(?=[\s=`]|$)", code):
            assert key in known, f"{name_of(page)}: {key}"


TO_BE_WRITTEN = {"src/megaclass/models/tinynet.py", "src/megaclass/bench/order.py"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_named_in_a_sentence_exist(page: Path) -> None:
    for path in re.findall(
        r"`((?:src|tests|benchmarks|examples)/[\w./-]+)`", page.read_text(encoding="utf-8")
    ):
        assert (ROOT / path).exists() or path in TO_BE_WRITTEN, f"{name_of(page)}: {path}"
