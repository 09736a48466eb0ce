"""What README and docs say, as a test can run it: blocks of commands, Python and recipes, by page."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"sh", "python", "toml", "text"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the page at which it begins."""

    language: str
    text: str
    line: int


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        found.append(Block(match[1], match[2], text[: match.start()].count("\n") + 2))
    return found


def commands(text: str) -> list[str]:
    """The commands of a block of shell: continued lines joined, comments and empty lines left out."""
    lines = text.replace("\\\n", " ").splitlines()
    found = [re.sub(r"(^|\s)#.*", "", line).strip() for line in lines]
    return [part.strip() for line in found if line for part in line.split("&&")]


def words(command: str) -> list[str]:
    """A command as a shell splits it, without the variables set in front of it."""
    split = shlex.split(command)
    while split and re.match(r"[A-Z_]+=", split[0]):
        split = split[1:]
    return split


def megaclass_words(split: list[str]) -> list[str] | None:
    """What megaclass is given, alone or under a starter; None where something else is started."""
    if split[0] == "megaclass":
        return split[1:]
    if "megaclass" in split and split[split.index("megaclass") - 1] == "-m":
        return split[split.index("megaclass") + 1 :]
    return None
