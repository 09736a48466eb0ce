"""What all faults share: a tiny set of images, two recipes, and runs that nobody interrupted."""

import json
import shutil
import signal
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tiny
from faults import child
from faults.child import Plan
from faults.rules import Ended
from megaclass.config import to_toml
from ranks import SERVER, begin, free_port, meeting, wait_for

STEPS, EVERY = 12, 3
SAVED = 2 * EVERY  # the newest checkpoint of the run that was killed
LIMIT_S = 60.0  # after which a process counts as hung
# A save that holds the loop up has an order of calls that is always the same.
INLINE = ("--run.async_save", "false")


class Bench:
    """What all faults share: images, recipes, and runs that nobody interrupted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        common: dict[str, dict[str, Any]] = {
            "run": {"checkpoint_every": EVERY},
            "head": {"sample_rate": 0.5},
            "schedule": {"steps": STEPS},
        }
        recipes = {
            "plain": common | {"model": {"dropout": 0.2}, "augment": {"rotate_degrees": 10.0}},
            "smooth": common | {"model": {"name": "smooth", "sync_norm": True}},  # the same on any ranks
        }
        for name, sections in recipes.items():
            self.config = tiny.config(folder, **sections)
            (folder / f"{name}.toml").write_text(to_toml(self.config), encoding="utf-8")

    def value(self, setting: str) -> str:
        """What the recipe for several ranks says of a setting."""
        section, name = setting.split(".")
        return str(getattr(getattr(self.config, section), name))

    def train(
        self,
        folder: Path,
        attempt: int,
        *words: str,
        recipe: str = "plain",
        ranks: int = 1,
        plans: dict[int, Plan] | None = None,
        each: dict[int, Sequence[str]] | None = None,
    ) -> list[Ended]:
        """An attempt of the command on every rank, until all have ended; a stopped one is killed then.

        plans: what goes wrong on a rank. each: words for a rank alone.
        """
        folder.mkdir(exist_ok=True)
        plans, port, processes = plans or {}, free_port(), []
        for rank in range(ranks):
            path = recipe if recipe.endswith(".toml") else str(self.folder / f"{recipe}.toml")
            line = ["train", path, "--run.output", str(folder / "run")]
            line += [*words, *(each or {}).get(rank, ())]
            arguments = (line, folder / "run", folder / f"{attempt}-{rank}", plans.get(rank, Plan()))
            variables = meeting(rank, ranks, port) if ranks > 1 else {}
            processes.append(SERVER.Process(target=child.start, args=(*arguments, variables)))
            begin(processes[-1])
        stopped = {rank for rank, plan in plans.items() if plan.do == "SIGSTOP"}
        ended: dict[int, Ended] = {}
        deadline = time.monotonic() + LIMIT_S
        for rank in sorted(range(ranks), key=lambda rank: rank in stopped):
            process = processes[rank]
            status = wait_for(process, 0 if rank in stopped else max(0.1, deadline - time.monotonic()))
            now = time.time()
            process.kill()
            wait_for(process, LIMIT_S)
            if rank in stopped:
                status = None
            texts = [
                path.read_text(errors="replace") if path.exists() else ""
                for path in (folder / f"{attempt}-{rank}.{suffix}" for suffix in ("out", "err"))
            ]
            struck = [path.stat() for path in folder.glob(f"{attempt}-*.struck")]
            ended[rank] = Ended(status, *texts, now - min((s.st_mtime for s in struck if s.st_size), default=now))
        return [ended[rank] for rank in range(ranks)]

    def _whole(self, name: str, recipe: str = "plain", plan: Plan | None = None) -> Path:
        folder = self.folder / name
        (ended,) = self.train(folder, 1, *INLINE, recipe=recipe, plans={0: plan} if plan else None)
        if ended.status != (-signal.SIGKILL if plan else 0):
            raise RuntimeError(f"the run that others are compared with ended with {ended}")
        return folder

    @cached_property
    def plain(self) -> Path:
        return self._whole("whole-plain")

    @cached_property
    def smooth(self) -> Path:
        return self._whole("whole-smooth", "smooth")

    @cached_property
    def killed(self) -> Path:
        """A run that was killed two steps after its second checkpoint."""
        return self._whole("killed", plan=Plan("SIGKILL", step=SAVED + 2))

    @cached_property
    def calls(self) -> list[str]:
        """The names of all calls of a run that change something in its directory."""
        return _calls(self.plain / "1-0.calls")

    @cached_property
    def calls_of_resume(self) -> list[str]:
        folder = Path(shutil.copytree(self.killed, self.folder / "resumed"))
        self.train(folder, 2, *INLINE, "--resume")
        return _calls(folder / "2-0.calls")


def _calls(path: Path) -> list[str]:
    return [json.loads(line) for line in path.read_text().splitlines()]
