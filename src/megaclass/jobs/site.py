"""What differs from one cluster to the next, read from a TOML file: strict, and errors with the line."""

import dataclasses
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megaclass.errors import UserError, lookup, near_match
from megaclass.files import open_regular

SITES = Path(__file__).parent / "sites"
_FORMS = {
    "scheduler": "slurm|pbs|gridengine",
    "container": "none|apptainer|singularity",
    "local": r"[A-Za-z_]\w*",
}
_NAMES = {str: "a text of one line", list: "a list of texts of one line", int: "a whole number"}
_MAX_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Site:
    """A cluster. In directives and in ``launch``, ``{nodes}`` and ``{devices}`` are put in.

    nodes: by kind of node, the first being the default, and by devices of a node: the directives that ask for it.
    directives: those of every job. account: the flag of the command that submits; empty: the scheduler's. setup: lines
    of shell, before modules are loaded. local: the variable that names the node's own disk. container: what runs an
    image. binds: directories that it sees besides. launch: what starts a command once on each node; empty: the
    scheduler's. notice_s: seconds before the limit at which a run is told to end.
    """

    scheduler: str = ""
    nodes: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    directives: list[str] = field(default_factory=list)
    account: str = ""
    setup: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    local: str = "TMPDIR"
    container: str = "none"
    binds: list[str] = field(default_factory=list)
    launch: str = ""
    notice_s: int = 120

    def resources(self, kind: str, devices: int) -> list[str]:
        """The directives for nodes with so many devices, or more where no others are."""
        found = lookup(self.nodes, kind or next(iter(self.nodes)), "kind of node")
        most = max(found, key=int)
        if devices > int(most):
            raise UserError(f"--devices: {devices} are more than the {most} of a node; raise --nodes instead")
        return [*found[min((count for count in found if int(count) >= devices), key=int)], *self.directives]


def load_site(name: str) -> Site:
    """A site that comes with the package, or a path to a TOML file. UserError names the file and the line."""
    known = {path.stem: path for path in sorted(SITES.glob("*.toml"))}
    path, text = Path(name) if name.endswith(".toml") else lookup(known, name, "site"), ""
    try:
        with open_regular(path, _MAX_BYTES, encoding="utf-8") as file:
            text = file.read()
        tree = tomllib.loads(text)
    except OSError as error:
        raise UserError(f"--site: {path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        line = re.search(r"at line (\d+)", str(error))
        number = line[1] if line else max(1, text.count("\n"))
        raise UserError(f"{path}:{number}: not valid TOML: {error}") from None
    for keys, what in _faults(tree):
        raise UserError(f"{path}:{_line(text, keys)}: {'.'.join(keys)}: {what}")
    return Site(**tree)


def _faults(tree: dict[str, Any]) -> Iterator[tuple[list[str], str]]:
    """What is wrong, each with the keys that lead to it."""
    defaults = dataclasses.asdict(Site())
    for name, value in tree.items():
        if name not in defaults:
            yield [name], f"there is no such key{near_match(name, list(defaults))}"
        elif name != "nodes" and not _is_like(defaults[name], value):
            yield [name], f"{value!r} is not {_NAMES[type(defaults[name])]}"
        elif name in _FORMS and not re.fullmatch(_FORMS[name], value, re.ASCII):
            yield [name], f"{value!r} is not {_FORMS[name]}"
        elif name == "notice_s" and not 1 <= value <= 65535:  # what SLURM takes
            yield [name], f"{value} is not from 1 to 65535"
    for name in ("scheduler", "nodes"):
        if not tree.get(name):
            yield [name], "is missing"
    nodes = tree["nodes"] if isinstance(tree["nodes"], dict) else {"KIND": None}
    for kind, counts in nodes.items():
        for count, lines in counts.items() if isinstance(counts, dict) and counts else [("N", None)]:
            if not (re.fullmatch(r"[1-9]\d{0,5}", count, re.ASCII) and _is_like([], lines)):
                yield ["nodes", kind, count], f"not a number of devices = {_NAMES[list]}"


def _is_like(default: Any, value: Any) -> bool:
    """A line feed would end a directive, and begin another line of the script."""
    texts = value if isinstance(value, list) else [value] if isinstance(value, str) else []
    printable = all(isinstance(text, str) and text.isprintable() for text in texts)
    return type(value) is type(default) and printable


def _line(text: str, keys: list[str]) -> int:
    """The line of the last of these keys, each below the one before, that can be found; from 1."""
    found, at = text.splitlines(), 0
    for key in keys:
        begins = re.compile(rf'\s*(\[[^\]#]*)?["\']?{re.escape(key)}["\']?\s*[.=\]]')
        at = next((i for i in range(at, len(found)) if begins.match(found[i])), at)
    return at + 1
