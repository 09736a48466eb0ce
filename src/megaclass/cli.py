"""The command line: one short function a verb, with its imports inside, so that each starts fast."""

import json
import logging
import os
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from megaclass.config import (
    SECTIONS,
    Config,
    documented,
    from_mapping,
    load_recipe,
    recipe_names,
    require_known,
    to_toml,
)
from megaclass.config import options as settings
from megaclass.errors import LostRankError, UserError, lookup
from megaclass.rundir import choose
from megaclass.version import __version__

Given = dict[str, dict[str, Any]]

USAGE = """\
megaclass: train image recognition models with very many classes, and measure it

  megaclass train RECIPE [--resume] [--section.key value ...]
        train a model; several processes: torchrun --nproc-per-node N -m megaclass train ...
  megaclass recipes                     list the recipes and the backbones
  megaclass show RECIPE [--all]         print a recipe, or with --all the complete commented configuration
  megaclass evaluate verification IMAGES [--pairs FILE] [--run-dir DIR] [...]
        score a model on pairs of images it was not trained on
  megaclass evaluate classification IMAGES --run-dir DIR
        top-1 and top-5 accuracy
  megaclass export arcface_torch SOURCE OUTPUT [--ranks N]
        write a run, or checkpoints of arcface_torch, as checkpoints of arcface_torch for N processes
  megaclass data pack SOURCE OUTPUT     pack a folder of images or an .npz into record files
  megaclass bench head [--num-classes 100K,1M] [--peer arcface_torch --peer-path DIR] [--output FILE.jsonl]
        measure a step of the head: time, memory, and how near the limits of the machine it comes

`megaclass VERB --help` says more. Wrong input ends with one line and exit status 2.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if words else 2
    if words[0] in ("--version", "version"):
        print(f"megaclass {__version__}")
        return 0
    try:
        verb: Callable[[list[str]], None] = lookup(VERBS, words[0], "command")  # type: ignore[arg-type]
        verb(words[1:])
    except UserError as error:
        if os.environ.get("RANK", "0") == "0" or not error.agreed:
            print(f"megaclass: error: {error}", file=sys.stderr)
        return 2
    except LostRankError as error:
        print(f"megaclass: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        hint = str(interrupt) or "--resume continues from the last checkpoint"
        print(f"megaclass: interrupted; {hint}", file=sys.stderr)
        return 130
    return 0


# -- verbs --------------------------------------------------------------------------------------------


def train(words: list[str]) -> None:
    parser = _parser(
        "megaclass train RECIPE [--resume] [--section.key VALUE ...]",
        "Train a model by a recipe; every setting can be changed by --section.key value.",
    )
    parser.add_argument("recipe", type=str, help="name of a recipe (see `megaclass recipes`) or a .toml file")
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in run.output, or the recipe's last"
    )
    config, options = _configured(parser, words, _recipe_or_stored)

    from megaclass import distributed
    from megaclass import train as training

    with distributed.started(config.run.device, config.run.timeout_s) as world:
        directory, result = training.run(config, world, resume=options.resume)
        if world.is_main:
            _show_result(directory.path, result)


def recipes(words: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from megaclass.models.registry import BACKBONES

    _parse(_parser("megaclass recipes", "List the recipes and the backbones."), words)
    table = Table("recipe", "what it trains", box=None)
    for name in recipe_names():
        table.add_row(name, load_recipe(name).description)
    console = Console()
    console.print(table)
    console.print(f"\nbackbones (model.name): {', '.join(BACKBONES)}", highlight=False)


def show(words: list[str]) -> None:
    parser = _parser(
        "megaclass show RECIPE [--all] [--section.key VALUE ...]",
        "Print a recipe as TOML: what differs from the defaults.",
    )
    parser.add_argument("recipe", type=str, help="name of a recipe or a .toml file")
    parser.add_argument("--all", action="store_true", help="every setting, with what it means")
    config, options = _configured(parser, words, lambda options, _: load_recipe(options.recipe))
    print(to_toml(config, only_changed=not options.all, docs=options.all), end="")


def evaluate(words: list[str]) -> None:
    kinds: dict[str, Any] = {"verification": None, "classification": None}
    if words and not words[0].startswith("-"):
        lookup(kinds, words[0], "evaluation")
    parser = _parser(
        "megaclass evaluate KIND IMAGES [--pairs FILE] [--run-dir DIR | --recipe RECIPE] [--section.key VALUE ...]",
        "Score a model: `verification` by pairs of images, `classification` by top-1 and top-5 accuracy.",
    )
    parser.add_argument("kind", type=str, help="verification or classification")
    parser.add_argument(
        "images", type=str, help="record set, directory of class directories, or images of --pairs (zip too)"
    )
    parser.add_argument(
        "--pairs", type=str, default="", help="LFW-style pairs.txt; without it pairs are drawn"
    )
    parser.add_argument("--run-dir", type=str, default="", help="run directory whose model is scored")
    parser.add_argument(
        "--checkpoint", type=str, default="best", help="of that run: best, latest or a step-NNNNNNNN"
    )
    parser.add_argument("--output", type=str, default="", help="write the metrics to this JSON file too")
    parser.add_argument(
        "--recipe", type=str, default="", help="recipe instead of a run: an untrained model, or model.weights"
    )
    config, options = _configured(parser, words, _run_or_recipe)
    if options.pairs and options.kind == "classification":
        raise UserError("--pairs goes with verification")
    output = _new_file(options.output)

    from megaclass import distributed
    from megaclass.scoring import score

    with distributed.started(config.run.device, config.run.timeout_s) as world:
        found = score(
            config, world, options.kind, options.images, options.pairs, options.run_dir, options.checkpoint
        )
        if world.is_main:
            _print_metrics(found.kind, found.metrics)
            if output:
                output.write_text(json.dumps({found.kind: found.metrics}, indent=2) + "\n", encoding="utf-8")


def _naming(words: list[str], known: str, what: str) -> list[str]:
    """The words of a verb that has parts, of which so far there is one: its help is that of the verb."""
    if words[:1] in (["-h"], ["--help"]):
        return [known, "--help"]
    if not words:
        raise UserError(f"which {what}? known: {known}")
    lookup({known: None}, words[0], what)
    return words


def data(words: list[str]) -> None:
    words = _naming(words, "pack", "data command")
    parser = _parser(
        "megaclass data pack SOURCE OUTPUT [OPTIONS]",
        "Pack images into record files (train.rec, train.idx, property).",
    )
    parser.add_argument(
        "source", type=str, help="directory of class directories, or an .npz of images and labels"
    )
    parser.add_argument("output", type=str, help="directory for the record set; must not hold one")
    parser.add_argument(
        "--image-size", type=int, default=0, help="resize to a square of this many pixels; 0: as they are"
    )
    parser.add_argument(
        "--quality", type=int, default=95, help="JPEG quality of images that are encoded anew"
    )
    parser.add_argument(
        "--where", type=str, default="", help=".npz: rows with name=value, e.g. background=true"
    )
    parser.add_argument(
        "--unpack-bits", type=str, default="", help=".npz: HEIGHTxWIDTH of images stored by np.packbits"
    )
    parser.add_argument(
        "--class-depth", type=int, default=1, help="folder: 2 for alphabet/character/image.png"
    )
    parser.add_argument("--invert", action="store_true", help="swap dark and bright")
    options = _parse(parser, words[1:])

    from rich.progress import Progress

    from megaclass.data.pack import pack

    with Progress(transient=True, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task("packing", total=None)
        summary = pack(
            options.source,
            options.output,
            image_size=options.image_size or None,
            quality=options.quality,
            where=options.where or None,
            unpack_bits=_size(options.unpack_bits),
            invert=options.invert,
            class_depth=options.class_depth,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    megabytes = summary.rec_bytes / 1e6
    print(
        f"packed {summary.images:,} images of {summary.classes:,} classes into {summary.path} ({megabytes:.1f} MB)"
    )


def export(words: list[str]) -> None:
    words = _naming(words, "arcface_torch", "format")
    parser = _parser(
        "megaclass export arcface_torch SOURCE OUTPUT [OPTIONS]",
        "Write the checkpoint_gpu_RANK.pt files from which arcface_torch's training script resumes.",
    )
    parser.add_argument(
        "source", type=str, help="run directory, or directory of checkpoint_gpu_RANK.pt files"
    )
    parser.add_argument("output", type=str, help="directory for the files; must not hold any")
    parser.add_argument(
        "--ranks", type=int, default=0, help="processes that will read them; 0: as many as wrote the source"
    )
    parser.add_argument(
        "--layout", type=str, default="arcface_torch", help="dropin: for the script with our head in it"
    )
    parser.add_argument(
        "--checkpoint", type=str, default="latest", help="of a run: best, latest or a step-NNNNNNNN"
    )
    options = _parse(parser, words[1:])

    from megaclass.arcface_torch import LAYOUTS
    from megaclass.export import to_rank_files

    lookup(dict.fromkeys(LAYOUTS), options.layout, "layout")
    paths = to_rank_files(
        options.source, options.output, ranks=options.ranks, layout=options.layout, which=options.checkpoint
    )
    print(f"wrote {paths[0]}" + (f" and those of {len(paths) - 1} more ranks" if len(paths) > 1 else ""))


def bench(words: list[str]) -> None:
    words = _naming(words, "head", "benchmark")
    parser = _parser(
        "megaclass bench head [--num-classes 100K,1M] [--sample-rate 1,0.1] [--output FILE.jsonl] [...]",
        "Measure whole steps of the head: forward, backward to the embeddings, update. LIST is one value or "
        "several with commas between; every combination is measured, each in processes of its own.",
    )
    _bench_head_options(parser)
    options = _parse(parser, words[1:])

    from megaclass.bench.console import SweepConsole
    from megaclass.bench.head import measure, planned
    from megaclass.report.head import comparisons, head_tables
    from megaclass.rows import Row, RowWriter

    plan = planned(options)
    where = (
        f"rows appended to {options.output}" if options.output else "rows not kept: no --output FILE.jsonl"
    )
    rows: list[Row] = []
    with RowWriter(options.output) as writer, SweepConsole() as console:
        try:
            for found in measure(plan, options.timeout, console):
                for row in found:
                    writer.write(row)
                    console.row(row)
                for line in comparisons(found):
                    console.print(f"  {line}")
                rows += found
        except KeyboardInterrupt:
            raise KeyboardInterrupt(where) from None
        console.print(head_tables(rows))
        console.print(where)


def _bench_head_options(parser: Any) -> None:
    lists = {
        "num-classes": ("100K", "classes of the whole job; K, M and B are understood"),
        "embedding-dim": ("512", "columns of an embedding"),
        "batch-size": ("128", "rows of the global batch: what every shard of the classes sees"),
        "sample-rate": ("1", "fraction of the classes scored in a step"),
        "precision": ("fp32", "operands of products: fp32, tf32, bf16 or fp16"),
        "storage": ("fp32", "centres and momentum: fp32, bf16, int8; with _rowwise behind it no momentum"),
        "world-size": ("1", "processes, each with its share of classes, batch, and cores or GPUs"),
    }
    for name, (default, text) in lists.items():
        parser.add_argument(f"--{name}", type=str, default=default, metavar="LIST", help=text)
    others = {
        "simulate-ranks": (1, "one process does one rank's share of N: 1/N of the classes, the whole batch"),
        "device": ("auto", "auto, cpu or cuda"),
        "threads": (0, "of each process on a CPU; 0: its share of the cores"),
        "steps": (20, "timed steps"),
        "warmup": (3, "steps before them that are not timed"),
        "margin": ("arcface", "arcface or cosface"),
        "kernels": ("auto", "auto, triton or torch"),
        "placement": ("device", "of the centres: device, or host for host memory"),
        "seed": (0, "of embeddings, labels and centres"),
        "timeout": (600.0, "seconds that an implementation may take for a case"),
        "output": ("", "JSON lines file to which a row is appended for each measurement"),
        "peer": ("", "another implementation that takes turns with ours, step by step: arcface_torch"),
        "peer-path": ("", "directory with the peer's code, which is not changed"),
        "peer-malloc": (
            "both",
            "the peer's allocator on a CPU: tuned to keep freed memory, untuned, or both",
        ),
    }
    for name, (value, text) in others.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=text)


VERBS = {
    "train": train,
    "recipes": recipes,
    "show": show,
    "evaluate": evaluate,
    "data": data,
    "export": export,
    "bench": bench,
}


# -- parsing ------------------------------------------------------------------------------------------


def _parser(usage: str, description: str) -> Any:
    """A parser whose usage is one line: the settings alone would fill a screen."""
    from jsonargparse import ArgumentParser

    program = " ".join(word for word in usage.split() if word.islower() and word[0].isalpha())
    return ArgumentParser(
        prog=program, usage=usage, description=description, exit_on_error=False, allow_abbrev=False
    )


def _parse(parser: Any, words: list[str]) -> Any:
    from jsonargparse import ArgumentError

    try:
        return parser.parse_args(words)
    except ArgumentError as error:
        raise UserError(f"{_one_line(error)}; see `{parser.prog} --help`") from None


def _configured(parser: Any, words: list[str], base: Callable[[Any, Given], Config]) -> tuple[Config, Any]:
    """Parse the verb's own options and every ``--section.key``, which is put into what ``base`` returns."""
    try:
        options, given = _parsed(parser, words)
        return from_mapping(given, base(options, given)), options
    except UserError as error:
        error.agreed = True  # all ranks were given the same words
        raise


def _parsed(parser: Any, words: list[str]) -> tuple[Any, Given]:
    """The verb's own options, and the settings given by ``--section.key`` as a nested mapping."""
    fields = settings()
    for name, section in SECTIONS.items():
        group = parser.add_argument_group(f"{name}: {(section.__doc__ or '').splitlines()[0]}")
        for key, f in fields.items():
            if key.startswith(f"{name}."):
                group.add_argument(
                    f"--{key}", type=f.type, default=SUPPRESS, help=documented(f).replace("%", "%%")
                )
    for word in words:
        if word.startswith("--") and "." in (key := word[2:].partition("=")[0]):
            require_known(key)
    options = _parse(parser, words)
    given: Given = {}
    for key in fields:
        if (value := options.get(key)) is not None:
            section_name, option_name = key.split(".")
            given.setdefault(section_name, {})[option_name] = value
    return options, given


def _recipe_or_stored(options: Any, given: Given) -> Config:
    """The recipe; on a resume the settings that the run was started with, so that they need not be repeated."""
    config = load_recipe(options.recipe)
    if options.resume:
        directory = choose(from_mapping(given, config), resume=True)
        if directory.config.is_file():
            stored = load_recipe(str(directory.config))
            return replace(
                stored, run=replace(stored.run, output=str(directory.path))
            )  # it may have been moved
    return config


def _run_or_recipe(options: Any, given: Given) -> Config:
    if bool(options.run_dir) == bool(options.recipe):
        raise UserError(
            "name the model by one of --run-dir (a trained one) and --recipe (untrained, or model.weights)"
        )
    if options.checkpoint != "best" and not options.run_dir:
        raise UserError("--checkpoint goes with --run-dir")
    return load_recipe(f"{options.run_dir}/config.toml" if options.run_dir else options.recipe)


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__


def _size(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    height, x, width = text.partition("x")
    if not (x and height.isdigit() and width.isdigit()):
        raise UserError(f"--unpack-bits: {text!r} is not HEIGHTxWIDTH, e.g. 105x105")
    return int(height), int(width)


# -- output -------------------------------------------------------------------------------------------


def _show_result(path: Any, result: dict[str, Any]) -> None:
    """The table of metrics, the pictures, and where everything lies."""
    from megaclass.report.curves import draw_run

    pictures = draw_run(path)
    for kind in ("verification", "classification"):
        if kind in result:
            _print_metrics(kind, result[kind])
    print(f"{result['steps']} steps, {result['seconds']:.1f} s, {result['samples_per_second']:.1f} samples/s")
    print(f"result    {path / 'result.json'}")
    for picture in pictures:
        print(f"picture   {picture}")


def _print_metrics(kind: str, metrics: dict[str, Any]) -> None:
    from rich.console import Console

    from megaclass.report.table import classification_table, verification_table

    make = verification_table if kind == "verification" else classification_table
    Console().print(make(metrics))


def _new_file(name: str) -> Path | None:
    """The path to write to, if any: asked before the work, so that none is lost."""
    if name and Path(name).exists():
        raise UserError(f"--output: {name} exists; name another file")
    if not Path(name).parent.is_dir():
        raise UserError(f"--output: {Path(name).parent} is not a directory; make it, or name another file")
    return Path(name) if name else None
