"""``megaclass checkpoint``: what checkpoints hold, whether they are whole, and files made from them."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megaclass.cli.common import read_options, tell, whole_file
from megaclass.cli.parsing import new_file
from megaclass.errors import UserError, in_bytes, lookup

_PATH = "run directory, its checkpoints directory, or one checkpoint"
_WHICH = {"checkpoint": ("latest", "of a run: best, latest or a step-NNNNNNNN")}


def checkpoint(words: list[str]) -> int | None:
    """Run the verb that the first word names. Returns its exit status, None being 0."""
    verbs: dict[str, Callable[[list[str]], int | None]] = {
        "info": _info, "verify": _verify, "slice": _slice, "convert": _convert
    }  # fmt: skip
    if words[:1] in (["-h"], ["--help"], ["help"]):
        print(
            "  megaclass checkpoint info PATH       steps, metric, size, classes, storage\n"
            "  megaclass checkpoint verify PATH     every file against its checksum\n"
            "  megaclass checkpoint slice           centres of some classes as one safetensors file\n"
            "  megaclass checkpoint convert         to one safetensors file, a backbone alone, or arcface_torch\n\n"
            "`megaclass checkpoint info --help` says more, as for each of them."
        )
        return None
    if not words:
        raise UserError(f"which checkpoint command? known: {', '.join(verbs)}")
    return lookup(verbs, words[0], "checkpoint command")(words[1:])


def _info(words: list[str]) -> None:
    options = read_options(
        words,
        "megaclass checkpoint info PATH",
        "What checkpoints hold, a line for each.",
        {"path": _PATH},
        {},
    )

    from rich.console import Console

    from megaclass import checkpoint as checkpoints
    from megaclass.report.console import ConsoleTable
    from megaclass.report.document import text_table

    paths = _named(Path(options.path))
    best = checkpoints.best(paths[0].parent)
    heads = ("checkpoint", "metric", "size", "ranks", "backbone", "parameters", "classes", "centres")
    lines = [_told(path, path == best) for path in paths]
    Console(highlight=False).print(ConsoleTable(text_table("", heads, lines)))
    for path in sorted(paths[0].parent.glob(".damaged-*")):
        tell(f"{path.name}: set aside, damaged")


def _told(path: Path, is_best: bool) -> list[str]:
    from megaclass.checkpoint import manifest, tensorfile
    from megaclass.inference.export import BUFFERS

    try:
        found = manifest.read(path)
        with manifest.blaming(path, manifest.REPLICATED) as file:
            tensorfile.check_size(file)
            shapes = tensorfile.shapes(file)
    except UserError as error:
        reason = error.reason if isinstance(error, manifest.DamagedError) else error
        return [path.name, f"not readable: {reason}", *[""] * 6]
    metric = "" if found.metric is None else f"{found.metric:.4f}{' (best)' if is_best else ''}"
    weights = [
        shape for name, shape in shapes.items() if name.startswith("backbone/") and not name.endswith(BUFFERS)
    ]
    centres = found.sharded.get("head/weight")
    storage = str(centres.dtype).removeprefix("torch.") if centres else "linear head"
    size = sum(entry.bytes for entry in found.files.values())
    identity = found.identity
    return [
        path.name, metric, in_bytes(size), str(found.world_size), str(identity.get("backbone", "")),
        f"{sum(map(math.prod, weights)):,}", str(identity.get("num_classes", "")), storage
    ]  # fmt: skip


def _verify(words: list[str]) -> int:
    options = read_options(
        words,
        "megaclass checkpoint verify PATH",
        "Compare every file of checkpoints with its size and checksum. Exit status 2 where one is damaged.",
        {"path": _PATH},
        {},
    )

    from megaclass import checkpoint as checkpoints
    from megaclass.checkpoint.manifest import DamagedError

    status = 0
    for path in _named(Path(options.path)):
        try:
            checkpoints.verify(path)
            tell(f"{path.name}  whole")
        except DamagedError as damage:
            status = 2
            tell(f"{path.name}  damaged: {damage.reason}")
    return status


def _slice(words: list[str]) -> None:
    options = read_options(
        words,
        "megaclass checkpoint slice SOURCE OUTPUT --classes START:STOP",
        "Write the centres of classes START to STOP-1, and their momentum where it was kept, as weight and momentum of "
        "one safetensors file, in fp32.",
        {"source": "run directory, or one checkpoint", "output": "new .safetensors file"},
        {"classes": (":", "START:STOP; one left out is the first or the last class"), **_WHICH},
    )
    output = _new_file(options.output, (".safetensors",))
    found = re.fullmatch(r"(\d{0,18}):(\d{0,18})", options.classes)
    if found is None:
        raise UserError(f"--classes: {options.classes!r} is no range; write START:STOP, such as 0:1000")
    start, stop = (int(text) if text else None for text in found.groups())

    from megaclass.checkpoint.tensorfile import write_tensors
    from megaclass.inference.export import read_model

    model = read_model(Path(options.source), options.checkpoint, slice(start, stop))
    if not model.centres:
        raise UserError(f"{options.source}: no class centres there, but a linear head or a backbone alone")
    with whole_file("OUTPUT", output) as part:
        write_tensors(part, model.centres)
    tell(f"wrote {output}: {' and '.join(model.centres)} of {model.centres['weight'].shape[0]:,} classes")


def _convert(words: list[str]) -> None:
    options = read_options(
        words,
        "megaclass checkpoint convert SOURCE OUTPUT [--to FORMAT] [OPTIONS]",
        "Write a checkpoint for other programs: one safetensors file (backbone.* and head.*, fp32 centres), the "
        "backbone's state dict alone (.safetensors, or .pt as arcface_torch's model.pt), or the checkpoint_gpu_RANK.pt "
        "files from which arcface_torch's training script resumes.",
        {
            "source": "run directory, one checkpoint, or of arcface_torch: a backbone's file, or the directory of "
            "checkpoint_gpu_RANK.pt or rank_RANK_softmax_weight.pt files",
            "output": "new file; for arcface_torch a directory, new or empty",
        },
        {
            "to": (["safetensors", "backbone", "arcface_torch"], "what to write (default safetensors)"),
            "ranks": (0, "arcface_torch: processes that will read them; 0: as many as wrote the source"),
            "layout": ("arcface_torch", "or dropin: for the script with our head in it"),
            **_WHICH,
        },
    )
    source = Path(options.source)
    if options.to == "arcface_torch":
        from megaclass.checkpoint.arcface_torch import LAYOUTS
        from megaclass.inference.export import to_rank_files

        lookup(dict.fromkeys(LAYOUTS), options.layout, "layout")
        given: dict[str, Any] = {
            "ranks": options.ranks,
            "layout": options.layout,
            "which": options.checkpoint,
        }
        paths = to_rank_files(source, options.output, **given)
        tell(f"wrote {paths[0]}" + (f" and those of {len(paths) - 1} more ranks" if len(paths) > 1 else ""))
        return
    alone = options.to == "backbone"
    output = _new_file(options.output, (".safetensors", ".pt", ".pth") if alone else (".safetensors",))

    from megaclass.inference.export import read_model, write_backbone, write_model

    model = read_model(source, options.checkpoint)
    with whole_file("OUTPUT", output) as part:
        if alone:
            write_backbone(part, model, as_torch=output.suffix != ".safetensors")
        else:
            write_model(part, model)
    tell(f"wrote {output}")


def _named(path: Path) -> list[Path]:
    """The checkpoints that a path means, whole or not, by rising step."""
    from megaclass.checkpoint import manifest
    from megaclass.checkpoint.directory import named

    if (path / manifest.NAME).exists() or manifest.COMPLETE.fullmatch(path.name):
        return [path]
    found = [path for _, path in named(path / "checkpoints" if (path / "checkpoints").is_dir() else path)]
    if not found:
        raise UserError(f"{path}: no checkpoint there; give {_PATH}")
    return found


def _new_file(name: str, suffixes: tuple[str, ...]) -> Path:
    if Path(name).suffix not in suffixes:
        raise UserError(f"OUTPUT: {name} ends with none of {', '.join(suffixes)}; name such a file")
    path = new_file(name, "OUTPUT")
    assert path is not None
    return path
