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
from megaclass.errors import UserError, make_room
from megaclass.files import sync_directory

DEFAULT_ROOT = Path("runs")
_MOST_NAME_BYTES = 200  # file systems take 255, a number behind it included
_PARTS = ".*.part"
# Names of classes are those of directories: any bytes but NUL, which stands for a line feed where that ends a line.
_WRITTEN, _READ = {ord("\n"): "\0"}, {0: "\n"}


def write_whole(path: Path, content: str | bytes, errors: str = "strict") -> None:
    """Write the file, or leave what was there (OSError), also where the power goes. A link is replaced, and not what it
    names."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content.encode("utf-8", errors) if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    with contextlib.suppress(OSError):  # not every file system does this for a directory
        sync_directory(path.parent)


class UnwrittenError(UserError):
    """A run has ended well, and its numbers found no place on the disk."""

    agreed = True

    def __init__(self, message: str, result: dict[str, Any]) -> None:
        super().__init__(message)
        self.result = result


class RunDirectory:
    """Where everything of a run lies; the directory need not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.events = path / "events.jsonl"
        self.log = path / "train.log"
        self.bad_batches = path / "bad_batches.jsonl"
        self.classes = path / "classes.txt"
        self.checkpoints = path / "checkpoints"
        self.result = path / "result.json"
        self.tensorboard = path / "tensorboard"
        self._seen = self._state()

    def _state(self) -> tuple[int, int] | None:
        """Changes with every event of a run."""
        try:
            found = self.events.stat()
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns

    def _refused(self, error: OSError) -> UserError:
        why = f"{error.strerror}; {make_room(error)}name another"
        return UserError(f"run.output: cannot write into {self.path}: {why}")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Make the directory and keep other processes from training in it. UserError if one does already, or has since
        this object was made: what was found there then is no longer true."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise self._refused(error) from None
        with lock:  # closing, or the end of the process, however it comes, gives the lock back
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"run.output: another process is training in {self.path}; wait for it, or name another directory"
                ) from None
            except OSError:
                pass  # a file system without locks, as some over a network
            if self._state() != self._seen:
                raise UserError(
                    f"run.output: another process has trained in {self.path} meanwhile; start again to go on from there"
                )
            for left in self.path.glob(_PARTS):  # by a process that was killed
                with contextlib.suppress(OSError):
                    left.unlink()
            yield

    def write_config(self, config: Config, class_names: list[str] | None) -> None:
        """Write the complete configuration and, one a line, the names of the classes."""
        text = to_toml(replace(config, run=replace(config.run, output=str(self.path))), docs=True)
        names = "".join(f"{name.translate(_WRITTEN)}\n" for name in class_names or ())
        try:
            write_whole(self.config, text, errors="surrogateescape")
            if names:
                write_whole(self.classes, names, errors="surrogateescape")
        except OSError as error:
            raise self._refused(error) from None

    def read_classes(self, count: int | None = None) -> list[str] | None:
        """The names in label order; None where the data had none. UserError for another number than ``count``."""
        if not self.classes.is_file():
            return None
        try:
            text = self.classes.read_bytes().decode("utf-8", "surrogateescape")
        except OSError as error:
            raise UserError(f"{self.classes} cannot be read: {error.strerror}; mend that") from None
        names = [name.translate(_READ) for name in text.removesuffix("\n").split("\n")] if text else []
        if count not in (None, len(names)):
            raise UserError(
                f"{self.classes}: {len(names):,} names for {count:,} classes; bring back the file that the run wrote, "
                "or move it away"
            )
        return names

    def write_result(self, result: dict[str, Any]) -> str:
        """Returns why it cannot be written, as one line, or an empty string."""
        try:
            write_whole(self.result, json.dumps(result, indent=2, allow_nan=False) + "\n")
        except OSError as error:
            return f"{self.result}: cannot be written ({error.strerror}); mend that, and --resume writes it"
        return ""


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
        others = sorted(p.name for p in path.iterdir() if p.name != ".lock" and not p.match(_PARTS))
        if others:
            raise UserError(f"run.output: {path} holds other files ({others[0]}); name a directory of its own")
    return directory


def _numbers(recipe: str) -> list[int]:
    pattern = re.compile(re.escape(recipe) + r"-(\d{3,})")
    if not DEFAULT_ROOT.is_dir():
        return []
    return [int(m[1]) for p in DEFAULT_ROOT.iterdir() if (m := pattern.fullmatch(p.name))]
