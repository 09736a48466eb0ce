"""``megaclass checkpoint``: what checkpoints hold, whether they are whole, and files made from them."""

import re
from pathlib import Path
from typing import Any

from megaclass.cli.common import read_options, tell, whole_file
from megaclass.cli.parsing import new_file, verb_asked
from megaclass.errors import UserError, in_bytes, lookup

_PATH = "run directory, its checkpoints directory, or one checkpoint"
_WHICH = {"checkpoint": ("latest", "of a run: best, latest or a step-NNNNNNNN")}


_VERBS = {
    "info": "what each holds",
    "verify": "the same, and every file against its checksum",
    "slice": "centres of some classes as one safetensors file",
    "convert": "to one safetensors file, a backbone alone, or arcface_torch",
}


def checkpoint(words: list[str]) -> int | None:
    """Run the verb that the first word names. Returns its exit status, None being 0."""
    verb = verb_asked("checkpoint", _VERBS, words)
    if verb in ("info", "verify"):
        return _tell_of(verb, words[1:])
    work = {"slice": _slice, "convert": _convert}.get(verb)
    return work(words[1:]) if work else None


def _tell_of(verb: str, words: list[str]) -> int:
    options = read_options(
        words,
        f"megaclass checkpoint {verb} PATH",
        "A line for each checkpoint: what it holds, and, with verify, whether every file has its size and checksum. "
        "Exit status 2 where one is damaged.",
        {"path": _PATH},
        {},
    )

    from megaclass import checkpoint as checkpoints
    from megaclass.checkpoint import manifest

    paths, status = _named(Path(options.path)), 0
    best = checkpoints.best(paths[0].parent)
    for path in paths:
        try:
            found = manifest.read(path)
            if verb == "verify":
                checkpoints.verify(path)
        except manifest.DamagedError as damage:
            status = 2
            tell(f"{path.name}  damaged: {damage.reason}")
            continue
        held = [str(found.identity.get("backbone", "")), f"{found.identity.get('num_classes', 0):,} classes"]
        held += [in_bytes(sum(entry.bytes for entry in found.files.values())), f"of {found.world_size} ranks"]
        if found.metric is not None:
            held.append(f"metric {found.metric:.4f}{' (best)' * (path == best)}")
        tell(f"{path.name}  {'whole: ' * (verb == 'verify')}{', '.join(held)}")
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
    from megaclass.export.weights import read_model

    model = read_model(Path(options.source), options.checkpoint, slice(start, stop))
    if not model.centres:
        raise UserError(f"{options.source}: no class centres there, but a linear head or a backbone alone")
    with whole_file("OUTPUT", output) as part:
        write_tensors(part, model.centres)
    what = "classes" if model.sub_centres == 1 else f"centres, {model.sub_centres} of each class"
    tell(f"wrote {output}: {' and '.join(model.centres)} of {model.centres['weight'].shape[0]:,} {what}")


def _convert(words: list[str]) -> None:
    options = read_options(
        words,
        "megaclass checkpoint convert SOURCE OUTPUT [--to FORMAT] [OPTIONS]",
        "Write a checkpoint for other programs: one safetensors file (backbone.* and head.*, fp32 centres), the "
        "backbone's state dict alone (.safetensors, or .pt as arcface_torch's model.pt), or the checkpoint_gpu_RANK.pt "
        "files from which arcface_torch's training script resumes.",
        {
            "source": "run directory, one checkpoint, or of arcface_torch: a backbone's file, or the directory of "
            "checkpoint_gpu_RANK.pt files",
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
        from megaclass.export.weights import to_rank_files

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

    from megaclass.export.weights import read_model, write_backbone, write_model

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
