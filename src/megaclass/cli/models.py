"""Verbs about recipes and models: train, recipes, show, evaluate."""

import contextlib
import itertools
import json
import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, cast

from megaclass.cli import let_go
from megaclass.cli.common import progress_bar, show_pictures, tell
from megaclass.cli.parsing import (
    RUN_OPTIONS,
    Given,
    configured,
    make_parser,
    new_file_if_any,
    open_asked,
    parse,
    settings_asked,
)
from megaclass.config import (
    Config,
    absent,
    differences,
    find_recipe,
    from_mapping,
    load_recipe,
    recipe_names,
    to_toml,
)
from megaclass.errors import Interrupted, UserError, lookup, out_of_memory
from megaclass.evaluation import PROTOCOLS, protocol_of
from megaclass.results.rundir import UnwrittenError, choose


def train(words: list[str]) -> None:
    _listen()
    parser = make_parser(
        "megaclass train RECIPE [--resume] [--section.key VALUE ...]",
        "Train a model by a recipe; every setting can be changed by --section.key value.",
        {"recipe": "name of a recipe (see `megaclass recipes`) or a .toml file"},
        {"resume": (False, "continue the run in run.output, or the recipe's last")},
    )
    config, options = configured(parser, words, _recipe_or_stored)

    from megaclass.parallel import groups
    from megaclass.parallel.agreement import facts_of_config
    from megaclass.train import loop
    from megaclass.train.foresight import hindsight
    from megaclass.train.log import Lasting

    facts = facts_of_config(config) | {"--resume": str(options.resume)}
    started = groups.started(config.run.device, config.run.timeout_s, config.run.heartbeat_s, facts)
    with started as world, contextlib.redirect_stdout(cast(TextIO, Lasting(sys.stdout))):
        try:
            directory, result = loop.run(config, world, resume=options.resume)
        except UnwrittenError as error:
            if world.is_main:
                _show_numbers(error.result)
            raise
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise UserError(hindsight(config, world, error)) from None
        if world.is_main:
            _show_result(directory.path, result)
    let_go(sys.stdout)


def _listen() -> None:
    """To signals while everything is loaded; later :mod:`megaclass.train.interruption` does."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    raise Interrupted(signal.Signals(number))


def recipes(words: list[str]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    from megaclass.models.registry import BACKBONES

    every = {"all": (False, "what each variant of a file trains, a line each")}
    about = "List the recipes, by file, and the backbones."
    options = parse(make_parser("megaclass recipes [--all]", about, options=every), words)
    table = Table(Column("recipe", no_wrap=True), "what it trains", box=None)
    for path, names in itertools.groupby(recipe_names(), find_recipe):
        name, *variants = names
        table.add_row(name, load_recipe(name).description)
        if options.all:
            for variant in variants:
                table.add_row(f"  {variant}", load_recipe(variant).description, style="dim")
        elif variants:
            table.add_row("", " ".join(variant.removeprefix(path.stem) for variant in variants), style="dim")
    console = Console(highlight=False)
    console.print(table)
    if not options.all:
        console.print("\n_NAME is a variant, as in glint360k_r100; --all says what each trains.")
    console.print(f"\nbackbones (model.name): {', '.join(BACKBONES)}, and timm/NAME for each of timm's")


def show(words: list[str]) -> None:
    parser = make_parser(
        "megaclass show RECIPE [--all] [--section.key VALUE ...]",
        "Print a recipe as TOML: what differs from the defaults.",
        {"recipe": "name of a recipe or a .toml file"},
        {"all": (False, "every setting, with what it means")},
    )
    config, options = configured(parser, words, lambda options, _: load_recipe(options.recipe, complete=False))
    print(to_toml(config, only_changed=not options.all, docs=options.all), end="")


def evaluate(words: list[str]) -> None:
    about = "Score a model: `verification` by pairs of images, `classification` by top-1 and top-5 accuracy."
    own: dict[str, tuple[Any, str]] = {
        "pairs": ("", "pairs.txt as LFW's; without it pairs are drawn"),
        "names": ("", "classes of --model.weights in label order, as `megaclass predict` takes them"),
    }
    if words and not words[0].startswith("-"):
        lookup(dict.fromkeys(("verification", "classification", *PROTOCOLS)), words[0], "evaluation")
        if words[0] in PROTOCOLS:
            about, own = protocol_of(words[0]).__doc__.split("\n\n")[0], protocol_of(words[0]).OPTIONS
    parser = make_parser(
        "megaclass evaluate KIND IMAGES (--run-dir RUN | --onnx FILE | --recipe RECIPE --model.weights FILE | "
        f"--embeddings FILE) [{'] ['.join(f'--{name}' for name in own)}] [--section.key VALUE ...]",
        about,
        {
            "kind": f"verification, classification, {', '.join(PROTOCOLS)}: --help of each tells its options",
            "images": "record set, directory of class directories, .bin file (several with ':' between), or images of "
            "--pairs (zip too)",
        },
        RUN_OPTIONS
        | {
            "onnx": ("", "instead of a run: a network in this file, as --run-dir FILE"),
            "embeddings": (
                "",
                "instead of a model: what it made of the images (.npz, .npy, .safetensors, .parquet)",
            ),
            "output": ("", "write the metrics to this JSON file too"),
        }
        | own,
    )
    config, options = configured(parser, words, _model_of_any_kind)
    pairs = getattr(options, "pairs", "")
    if options.kind == "classification" and (pairs or options.embeddings):
        raise UserError("--pairs and --embeddings go with verification")
    output = new_file_if_any(options.output)

    from megaclass.evaluation.blocks import showing
    from megaclass.inference.evaluate import measured, of_embeddings
    from megaclass.parallel import groups
    from megaclass.parallel.agreement import facts_of_config

    facts = facts_of_config(config) | {"KIND": options.kind, "--checkpoint": options.checkpoint}
    with groups.started(config.run.device, config.run.timeout_s, config.run.heartbeat_s, facts) as world:
        given, flips = options.given, "flip" in options.given["evaluate"]
        given["run"] = given.get("run", {}) | {"device": str(world.device)}
        config = from_mapping(given, config)
        if options.embeddings:
            if flips:
                raise UserError("--evaluate.flip: embeddings are what they are; leave it out")
            model = groups.together(lambda: of_embeddings(options.embeddings))
        else:
            model = groups.together(lambda: open_asked(options, given, config))
        of_itself: dict[str, Any] = {"pairs_file": pairs} if pairs else {}
        if not flips and not options.recipe and model.head is None:
            of_itself["flip"] = model.about.flip
        config = replace(config, evaluate=replace(config.evaluate, **of_itself))
        with progress_bar("evaluating", "nothing was measured", shown=world.is_main) as show, showing(show):
            found = measured(config, model, options.kind, options.images, vars(options))
        if world.is_main:
            _print_metrics(found.kind, found.metrics)
            if output:
                output.write_text(json.dumps({found.kind: found.metrics}, indent=2) + "\n", encoding="utf-8")


def _model_of_any_kind(options: Any, given: Given) -> Config:
    config = settings_asked(options, given, "run_dir", "onnx", "recipe", "embeddings")
    options.run_dir, options.given = options.run_dir or options.onnx, given
    if options.images.endswith(".bin"):  # it has pairs of its own, whatever list the run was evaluated by
        given["evaluate"].setdefault("pairs_file", "")
    return config


def _recipe_or_stored(options: Any, given: Given) -> Config:
    """The recipe; on a resume the settings that the run was started with, so that they need not be repeated."""
    recipe = load_recipe(options.recipe, complete=False)
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        if not (recipe.run.output or given.get("run", {}).get("output")):
            raise UserError(
                "run.output: torchrun may start this job again (--max-restarts), and it has to know where to go on; "
                "name the run's directory"
            )
        options.resume |= os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if not options.resume:
        return recipe
    where = {"run": given.get("run", {})}  # the others may hang on what the run has
    directory = choose(from_mapping(where, recipe, complete=False), resume=True)
    if not directory.config.is_file():
        return recipe
    stored = load_recipe(str(directory.config), complete=False, stored=True)
    stored = replace(stored, run=replace(stored.run, output=str(directory.path)))  # it may have been moved
    named = {f"{section}.{name}" for section, values in given.items() for name in values} | {"run.output"}
    named |= absent(stored).keys()
    for key, (theirs, ours) in differences(recipe, stored).items():
        if key not in named and os.environ.get("RANK", "0") == "0":
            tell(f"{key} stays {ours!r} as the run has it ({options.recipe}: {theirs!r}; --{key} changes it)")
    return stored


def _show_result(path: Path, result: dict[str, Any]) -> None:
    """The table of metrics, the pictures, and where everything lies."""
    _show_numbers(result)
    tell(f"result    {path / 'result.json'}")
    show_pictures("draw_run", path)


def _show_numbers(result: dict[str, Any]) -> None:
    for kind in ("verification", "classification"):
        if kind in result:
            _print_metrics(kind, result[kind])
    print(f"{result['steps']} steps, {result['seconds']:.1f} s, {result['samples_per_second']:.1f} samples/s")


def _print_metrics(kind: str, metrics: dict[str, Any]) -> None:
    from rich.console import Console

    from megaclass.report.console import classification_table, protocol_table, verification_table

    if kind == "classification":
        Console().print(classification_table(metrics))
        return
    if kind in PROTOCOLS:
        for name, found in ({"": metrics} | metrics.get("groups", {})).items():
            Console().print(protocol_table(found, f"{kind} of {name}" if name else kind))
        return
    sets = {metrics.get("name", ""): metrics} | metrics.get("others", {})
    for name, found in sets.items():
        Console().print(verification_table(found, f"Verification on {name}" if name else "Verification"))
