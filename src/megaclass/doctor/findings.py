"""Findings, and probes that give them: each bounded in time, and none able to end the others."""

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from megaclass.errors import UserError, first_line

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """What was looked at, and what was found there. ``advice``: what to do, "" where all is well."""

    mark: str  # ok, warn or fail
    what: str
    found: str
    advice: str = ""


def judged(what: str, found: str, *faults: tuple[bool, str, str]) -> Finding:
    """A finding with the mark and the advice of the first ``(holds, mark, advice)`` that holds; ok without one."""
    mark, advice = next(((mark, advice) for holds, mark, advice in faults if holds), (OK, ""))
    return Finding(mark, what, found, advice)


def told(mark: str, what: str, message: object) -> Finding:
    """An error or a warning of ours, which ends in what to do."""
    found, _, advice = str(message).rpartition("; ")
    return Finding(mark, what, found or advice, advice if found else "")


def look(what: str, limit_s: float, probe: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What ``probe`` finds within ``limit_s`` seconds; that it fails, or does not end, is a finding too.

    It works in a thread of its own, which cannot be stopped: one that hangs, as on a dead network disk, is left alone.
    """
    found: list[Finding] = []

    def work() -> None:
        try:
            for finding in probe():
                found.append(finding)  # one at a time: what was found before an error counts
        except UserError as error:
            found.append(told(FAIL, what, error))
        except Exception as error:  # libraries, drivers and disks of any state are looked at
            message = f"{type(error).__name__}: {first_line(error)}; training would meet that too: mend it first"
            found.append(told(FAIL, what, message))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        message = f"no answer within {limit_s:g} s; is the machine busy, or a disk or driver stuck?"
        found = [*found, told(WARN, what, message)]
    yield from found
