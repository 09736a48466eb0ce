"""The directory of a run: what lies where, and that nothing in it is ever overwritten."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megaclass.config import Config, to_toml
from megaclass.errors import UserError

DEFAULT_ROOT = Path("runs")


@dataclass(frozen=True)
class RunDirectory:
    """``config.toml``, ``events.jsonl``, ``checkpoints/``, ``result.json`` and pictures."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def prepare(self, config: Config) -> None:
        """Make the directory and write the complete configuration."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.config.write_text(to_toml(replace(config, run=replace(config.run, output=str(self.path))), docs=True),
                               encoding="utf-8")  # fmt: skip

    def write_result(self, result: dict[str, Any]) -> None:
        part = self.result.with_suffix(".json.part")
        part.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        part.replace(self.result)


def choose(config: Config, resume: bool) -> RunDirectory:
    """The directory that the configuration names, or the next free (resuming: the last) of its recipe.

    UserError if it holds a run already and this is not a resume.
    """
    if config.run.output:
        path = Path(config.run.output)
    else:
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
    return directory


def _numbers(recipe: str) -> list[int]:
    pattern = re.compile(re.escape(recipe) + r"-(\d{3,})")
    if not DEFAULT_ROOT.is_dir():
        return []
    return [int(m[1]) for p in DEFAULT_ROOT.iterdir() if (m := pattern.fullmatch(p.name))]
