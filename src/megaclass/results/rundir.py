"""The directory of a run: what lies where, and that nothing in it is ever overwritten."""

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from megaclass.config import Config, to_toml
from megaclass.errors import UserError

DEFAULT_ROOT = Path("runs")
_MOST_NAME_BYTES = 200  # file systems take 255, a number behind it included
_PART = ".config.toml.part"
# Names are those of directories: any bytes but a line feed, which alone ends a line here.
_LINES: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": "\n"}


def write_whole(path: Path, text: str, errors: str = "strict") -> None:
    """Write the file, or leave what was there. A link is replaced, and not what it names."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8", errors=errors)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


class RunDirectory:
    """Where everything of a run lies; the directory need not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.events = path / "events.jsonl"
        self.classes = path / "classes.txt"
        self.checkpoints = path / "checkpoints"
        self.result = path / "result.json"
        self.tensorboard = path / "tensorboard"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Make the directory and keep other processes from training in it. UserError if one does already."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise UserError(
                f"run.output: cannot write into {self.path}: {error.strerror}; name another"
            ) from None
        with lock:  # closing, or the end of the process, however it comes, gives the lock back
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"run.output: another process is training in {self.path}; wait for it, or name another directory"
                ) from None
            yield

    def write_config(self, config: Config, class_names: list[str] | None) -> None:
        """Write the complete configuration and, one a line, the names of the classes."""
        text = to_toml(replace(config, run=replace(config.run, output=str(self.path))), docs=True)
        write_whole(
            self.config, text, errors="surrogateescape"
        )  # a resume reads it: a kill must not leave half of it
        if class_names:
            with self.classes.open("w", **_LINES) as file:
                file.writelines(f"{name}\n" for name in class_names)

    def read_classes(self) -> list[str] | None:
        """The names in label order; None where the data had none."""
        if not self.classes.is_file():
            return None
        try:
            with self.classes.open(**_LINES) as file:
                return [line.removesuffix("\n") for line in file]
        except OSError as error:
            raise UserError(f"{self.classes} cannot be read: {error.strerror}; mend that") from None

    def write_result(self, result: dict[str, Any]) -> None:
        write_whole(self.result, json.dumps(result, indent=2, allow_nan=False) + "\n")


def choose(config: Config, resume: bool) -> RunDirectory:
    """The directory that the configuration names, or the next free (resuming: the last) of its recipe.

    UserError if it holds a run already and this is not a resume.
    """
    if config.run.output:
        path = Path(config.run.output)
    else:
        if {"/", "\0"} & {*config.recipe} or len(os.fsencode(config.recipe)) > _MOST_NAME_BYTES:
            raise UserError(
                f"recipe: {config.recipe!r} cannot name a directory of runs; shorten it, or set --run.output"
            )
        numbers = _numbers(config.recipe)
        if resume and not numbers:
            raise UserError(
                f"--resume: no run of recipe {config.recipe!r} under {DEFAULT_ROOT}/; name it by --run.output"
            )
        number = max(numbers, default=0) + (0 if resume else 1)
        path = DEFAULT_ROOT / f"{config.recipe}-{number:03d}"
    directory = RunDirectory(path)
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            raise UserError(f"run.output: {part} is a file; name a directory")
    if not resume and (directory.events.exists() or directory.checkpoints.exists()):
        raise UserError(
            f"run.output: {path} holds a run already; add --resume to continue it, or name another directory"
        )
    if not directory.config.exists() and path.is_dir():
        others = sorted(p.name for p in path.iterdir() if p.name not in (".lock", _PART))
        if others:
            raise UserError(
                f"run.output: {path} holds other files ({others[0]}); name a directory of its own"
            )
    return directory


def _numbers(recipe: str) -> list[int]:
    pattern = re.compile(re.escape(recipe) + r"-(\d{3,})")
    if not DEFAULT_ROOT.is_dir():
        return []
    return [int(m[1]) for p in DEFAULT_ROOT.iterdir() if (m := pattern.fullmatch(p.name))]
