"""A sweep: from options to planned cases; one after the other, each a list of rows; what an earlier go has measured is
left out."""

import datetime
import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from megaclass.bench.case import Benchmark, Implementation, Planned, benchmark_of
from megaclass.bench.flags import cases_of
from megaclass.bench.turns import OnStep, run_case, skipped
from megaclass.errors import UserError
from megaclass.results import machine
from megaclass.results.rows import Row, RowWriter, read_rows
from megaclass.results.verdict import BUSY_PERCENT

# Of an environment: where these are alike, a number need not be taken again.
_SAME = (
    "system", "cpu", "cpu_threads_usable", "memory_mb", "gpu", "gpu_count", "driver", "cuda", "cudnn", "nccl",
    "pytorch", "packages", "revision", "variables",
)  # fmt: skip


# -- what is measured ---------------------------------------------------------------------------------


def plan(benchmark: Benchmark, options: Any) -> list[Planned]:
    """Every case that the options ask for, and who takes turns in it. UserError: options that make no sense."""
    cases = benchmark.cases(options) if benchmark.cases else cases_of(benchmark.case, options)
    device = device_type(options.device)
    found = []
    for case in cases:
        case = resolved(case, device)
        found.append(planned(case, benchmark_of(case).implementations(case, options)))
    return found


def device_type(name: str) -> str:
    """``cpu`` or ``cuda`` for what ``--device`` says. UserError: not on this machine."""
    from megaclass.parallel import groups

    if name.startswith("cuda:"):
        raise UserError(f"--device: {name!r} is one GPU; say cuda, and choose with CUDA_VISIBLE_DEVICES")
    try:
        return groups.pick_device(name).type
    except UserError as error:
        raise UserError(str(error).replace("run.device", "--device")) from None


def resolved(case: Any, device: str) -> Any:
    """The case on this device (``cpu`` or ``cuda``), with everything said. UserError: it makes no sense."""
    case = replace(case, device=device)
    case.check()
    case = case.resolved()
    return replace(case, threads=case.threads or _share_of_cores(case.world_size))


def _share_of_cores(processes: int) -> int:
    """Of one process; alone it follows ``OMP_NUM_THREADS``, as training does."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if processes == 1 and asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return max(1, machine.usable_cores() // processes)


def planned(case: Any, found: Sequence[Implementation] = (Implementation(),), **more: Any) -> Planned:
    """A resolved case as it is measured on this machine."""
    import torch

    skip = case.why_skipped(torch.cuda.device_count())
    return Planned(case=case, implementations=tuple(found), skip=skip, **more)


# -- what was measured before -------------------------------------------------------------------------


def keys_of(one: Planned) -> list[str]:
    """Of the rows that it leaves, by which they are known as the answer to what was asked: a hash of all of it."""
    found = []
    for who in one.implementations:
        case = one.original_case or replace(one.case, **who.changes)
        more = {"suite": one.suite} | who.extra | one.identity
        asked = [who.name, case.benchmark, case.parameters(), {k: v for k, v in more.items() if v}]
        text = json.dumps(asked, sort_keys=True, default=str)
        found.append(hashlib.sha256(text.encode()).hexdigest()[:16])
    return found


def measured(plan: Sequence[Planned], path: str) -> dict[int, list[Row]]:
    """The rows of a file that need not be taken again, by the number of their case: all of it, of this machine and this
    source, with a number or without the memory for one. Those that were left out stay where the reason is the same."""
    if not path or not Path(path).exists():
        return {}
    rows = {row.key: row for row in read_rows(path) if row.key}
    here = machine.snapshot() if rows else {}
    found = {}
    for number, one in enumerate(plan):
        pairs = [(rows.get(key), who) for key, who in zip(keys_of(one), one.implementations, strict=True)]
        if all(row and _counts(row, who, one.skip or who.missing, here) for row, who in pairs):
            found[number] = [row for row, _ in pairs if row]
    return found


def _counts(row: Row, who: Implementation, left_out: str, here: dict[str, Any]) -> bool:
    if left_out:
        return row.status == "skipped" and row.reason == left_out
    variables = here["variables"] | who.variables
    here = here | {"variables": {k: v for k, v in variables.items() if v is not None}}
    return row.status in ("ok", "oom") and all(row.environment.get(name) == here[name] for name in _SAME)


# -- measuring ----------------------------------------------------------------------------------------


def measure(one: Planned, timeout_s: float, on_step: OnStep = lambda done, total: None) -> list[Row]:
    """The rows of a case. One that fails is a row; of one that is skipped nothing begins."""
    if one.skip:
        rows = [skipped(one.case, who, one.skip) for who in one.implementations]
    else:
        with benchmark_of(one.case).surroundings(one) as there:
            rows = list(run_case(there.case, there.implementations, timeout_s, on_step))
    asked = one.original_case.parameters() if one.original_case else {}
    return [replace(row, key=key, asked=asked, suite=one.suite) for row, key in zip(rows, keys_of(one), strict=True)]


def sweep(
    plan: Sequence[Planned],
    output: str,
    timeout_s: float,
    *,
    again: bool = False,
    heading: Any = None,
) -> list[Row]:
    """Measure what ``output`` does not have yet, print the rows as they come and append them; returns the rows of the
    whole plan. heading: is printed first, and tells of what is left out."""
    where = f"rows appended to {output}" if output else "rows not kept: no --output FILE.jsonl"
    console = Console(highlight=False, soft_wrap=True)
    say = partial(console.print, markup=False)
    with RowWriter(output) as writer, console.status("", refresh_per_second=1) as bar:
        if heading:
            console.print(heading)
        found = {} if again else measured(plan, output)
        if found:
            say(f"{len(found)} of {len(plan)} cases are in {output} already, measured here; --again measures them too")
        todo = [number for number in range(len(plan)) if number not in found]
        begin, begun, total = time.monotonic(), 0, sum(not plan[number].skip for number in todo)
        try:
            for number in todo:
                one = plan[number]
                if not one.skip:
                    left_s = (time.monotonic() - begin) / max(begun, 1) * (total - begun)
                    left = f", {datetime.timedelta(seconds=round(left_s))} left" if begun else ""
                    begun += 1
                    bar.update("starting")
                    say(f"case {begun} of {total}{left}: {one.case.text}")
                elif not heading:
                    say(f"left out: {one.case.text}: {one.skip}")
                rows = measure(one, timeout_s, lambda part, of: bar.update(f"{part / of:.0%} of this case"))
                for row in rows:
                    writer.write(row)
                for line in [] if one.skip else _told(one, rows):
                    say(f"  {line}")
                found[number] = rows
        except KeyboardInterrupt:
            on = "; the same command goes on from there" if output else ""
            raise KeyboardInterrupt(f"{where}{on}") from None
        say(where if todo else f"nothing was left to measure; the rows are in {output}")
    return [row for number in range(len(plan)) for row in found[number]]


def _told(one: Planned, rows: Sequence[Row]) -> list[str]:
    """Of each row its median step, and what the benchmark's pages begin with."""
    headline, lines = benchmark_of(one.case).leading, []
    for row, who in zip(rows, one.implementations, strict=True):
        said = [f"{row.status}: {row.reason}"] if row.reason else []
        if step := row.step_ms:
            said.append(f"{step['p50']:.4g} ms (p90 {step['p90']:.4g})")
        if row.status == "ok" and (value := headline.read(row)) is not None:
            said.append(f"{headline.title} {value:,.4g}")
        lines.append(f"{who.text}: {', '.join(said)}")
    if (waited := max(row.cpu_wait_percent or 0.0 for row in rows)) > BUSY_PERCENT:
        lines.append(f"  other programs were busy: processors were waited for in {waited:.0f}% of the time")
    return lines
