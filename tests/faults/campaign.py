"""Faults against the real command, two at a time: ``python -m faults.campaign --write`` runs them all.

A row for each says what held. ``--only TEXT`` runs those whose kind or name holds the text, and ``--keep`` leaves their
folders, in which ``1-0.err`` is what the first attempt said on rank 0, ``2-0.err`` the resume, and so on.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

from faults import page
from faults.bench import EVERY, STEPS, Bench
from faults.kinds import KINDS, Kind
from faults.scenes import Fault, Found, folder_of
from megaclass.results.machine import snapshot

SEED = 0


def planned(bench: Bench, few: int = 0, only: str = "") -> list[tuple[Kind, Fault]]:
    """All faults, or ``few`` of each kind, which the seed draws."""
    found = []
    for kind in KINDS:
        faults = list(kind.faults(bench, random.Random(SEED)))
        if few:
            faults = random.Random(SEED).sample(faults, min(few, len(faults)))
        found += [(kind, fault) for fault in faults if only in f"{kind.name}: {fault.name}"]
    return found


def happen(bench: Bench, number: int, kind: Kind, fault: Fault, keep: bool = False) -> dict[str, Any]:
    """One fault, its resume, and the row of both."""
    began = time.monotonic()
    with folder_of(bench, f"fault-{number}", keep) as folder:
        try:
            found = fault.happen(bench, folder, kind.most_lost)
        except Exception:  # what breaks the rules themselves has not held either
            found = Found([" ".join(traceback.format_exc().split())[-300:]])
    return {
        "kind": kind.name,
        "fault": fault.name,
        "held": not found.failed,
        "failed": [reason.replace(f"{bench.folder}/", "") for reason in found.failed],
        "lost_steps": found.lost,
        "seconds": round(time.monotonic() - began, 2),
    }


def run(bench: Bench, few: int = 0, only: str = "", keep: bool = False) -> list[dict[str, Any]]:
    """The rows of the campaign; what does not hold is told at once."""
    faults, rows = planned(bench, few, only), []
    print(f"{len(faults)} faults in {bench.folder}", flush=True)
    _ = bench.plain, bench.smooth, bench.killed  # made once, before two need them
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(happen, bench, i, *each, keep) for i, each in enumerate(faults)]
        for number, future in enumerate(waiting):
            rows.append(row := future.result())
            if not row["held"]:
                reasons = "".join(f"\n    {reason}" for reason in row["failed"])
                print(f"fault-{number}  {row['kind']}: {row['fault']}{reasons}", flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--write", action="store_true", help="write tests/faults/rows.jsonl and docs/reliability.md anew"
    )
    parser.add_argument("--only", default="", help="those whose kind and name hold this text")
    parser.add_argument("--few", type=int, default=0, help="so many of each kind")
    parser.add_argument("--keep", action="store_true", help="leave the folders")
    options = parser.parse_args()
    began, environment = time.monotonic(), snapshot()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    rows = run(Bench(folder), options.few, options.only, options.keep)
    if not options.keep:
        shutil.rmtree(folder)
    head = {
        "date": date.today().isoformat(),
        "seed": SEED,
        "steps": STEPS,
        "interval": EVERY,
        "seconds": round(time.monotonic() - began),
        "environment": environment,
    }
    lines = [json.dumps(row) + "\n" for row in [head, *rows]]
    if options.write:
        page.ROWS.parent.mkdir(parents=True, exist_ok=True)
        page.ROWS.write_text("".join(lines), encoding="utf-8")
        page.PAGE.write_text(page.render(lines), encoding="utf-8")
    print("\n".join(page.table(rows)))
    print(f"{sum(row['held'] for row in rows)} of {len(rows)} held, in {head['seconds']} s")
    return 0 if all(row["held"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
