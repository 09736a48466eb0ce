"""``megaclass checkpoint``: what checkpoints hold, and whether they are whole."""

from pathlib import Path

from megaclass.cli.common import read_options, tell
from megaclass.cli.parsing import verb_asked
from megaclass.errors import UserError, in_bytes

_PATH = "run directory, its checkpoints directory, or one checkpoint"


_VERBS = {
    "info": "what each holds",
    "verify": "the same, and every file against its checksum",
}


def checkpoint(words: list[str]) -> int | None:
    """Run the verb that the first word names. Returns its exit status, None being 0."""
    verb = verb_asked("checkpoint", _VERBS, words)
    return _tell_of(verb, words[1:]) if verb else None


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
