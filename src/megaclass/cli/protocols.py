"""``megaclass evaluate`` by the protocols of :data:`megaclass.evaluate.PROTOCOLS`."""

import contextlib
import importlib
import json
from pathlib import Path
from typing import Any

from megaclass.cli.common import progress_bar, tell, whole_file
from megaclass.cli.parsing import RUN_OPTIONS, make_parser, new_file, parse_with_settings
from megaclass.errors import UserError
from megaclass.evaluate import PROTOCOLS


def evaluate(words: list[str]) -> None:
    """``words[0]`` is one of ``PROTOCOLS``."""
    protocol = importlib.import_module(f"megaclass.evaluate.{PROTOCOLS[words[0]]}")
    flags = "".join(
        f" [--{name}{'' if default is False else ' ..'}]" for name, (default, _) in protocol.OPTIONS.items()
    )
    parser = make_parser(
        f"megaclass evaluate {words[0]} IMAGES (--run-dir DIR | --embeddings FILE){flags} [--output FILE] "
        "[--section.key VALUE ...]",
        str(protocol.__doc__).split("\n\n")[0],
        {"kind": words[0], "images": "x"},
        RUN_OPTIONS
        | {
            "embeddings": (
                "",
                "instead of a model: a file of its embeddings, a row for each image in order",
            ),
            "output": ("", "write the metrics to this JSON file too"),
        }
        | protocol.OPTIONS,
    )
    options, given = parse_with_settings(parser, words)
    if bool(options.run_dir) == bool(options.embeddings):
        raise UserError("name the model by one of --run-dir and --embeddings")
    output = new_file(options.output)

    from megaclass.evaluate.blocks import showing
    from megaclass.inference.load import open_model
    from megaclass.inference.scoring import model_embeddings, stored_embeddings
    from megaclass.parallel import groups

    run: dict[str, Any] = {"device": "auto", "timeout_s": 600.0, "heartbeat_s": 0.0} | given.get("run", {})
    facts = {f"--{name}": str(value) for name, value in vars(options).items()}
    with groups.started(run["device"], run["timeout_s"], run["heartbeat_s"], facts) as world:
        prepared = groups.together(lambda: protocol.prepare(options.images, vars(options)))
        nothing = contextlib.nullcontext(lambda done, total: None)
        with progress_bar("evaluating", "nothing was written") if world.is_main else nothing as show:
            if options.embeddings:
                rows = groups.together(lambda: stored_embeddings(Path(options.embeddings), prepared))
            else:
                model = groups.together(
                    lambda: open_model(options.run_dir, options.checkpoint, given | {"run": run})
                )
                rows = model_embeddings(model, prepared)
            with showing(show):
                metrics = prepared.measure(rows)
        if world.is_main:
            _report(words[0], metrics, output)


def _report(kind: str, metrics: dict[str, Any], output: Path | None) -> None:
    from rich.console import Console

    from megaclass.report.console import protocol_table

    for name, found in ({"": metrics} | metrics.get("groups", {})).items():
        Console().print(protocol_table(found, f"{kind} of {name}" if name else kind))
    if output:
        with whole_file("--output", output) as part:
            part.write_text(json.dumps({kind: metrics}, indent=2) + "\n", encoding="utf-8")
        tell(f"output    {output}")
