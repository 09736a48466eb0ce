"""For how much of its time training waits for data: real steps from record sets, beside the same steps from noise.

    python benchmarks/stall.py --device cuda --output stall.jsonl [--case faces,imagenet] [--steps 120]

Made images (docs/benchmark-loader.md) lie in the page cache as a record set. `megaclass train` trains on them, and
on noise that lies on the device already. Each leaves a row: `wait_percent` is what the run logged after the warm-up,
the mean over the logged intervals and the worst of them, and for what (disk, decode, copy). It counts what the loop
waited for batches even while the GPU had steps left to do, so it is rather too high than too low. `slower_percent` is
how much longer a step took than on noise: all that data costs, waiting or not.

An interval is ten steps, and `samples_ms` has the mean step of each. Heads have ten classes, as the made sets have:
a real head makes a step longer, and the same wait a smaller part of it.
"""

import argparse
import datetime
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean, median
from typing import Any

from megaclass.bench.old_loader.cases import WORKLOADS
from megaclass.bench.old_loader.images import write_images
from megaclass.train.stall import CAUSES

from megaclass.errors import UserError, lookup
from megaclass.results.events import Event, StartEvent, StepEvent, read_events
from megaclass.results.machine import usable_cores
from megaclass.results.rows import Row, RowWriter, timed

LIMIT_PERCENT = 2.0  # what is claimed
LOG_EVERY = 10
CLASSES = "10"
# Recipe, global batch, and what of the recipe is changed. Rates are small: nothing is to be learned here.
CASES: dict[str, tuple[str, int, list[str]]] = {
    "faces": ("faces_r50", 512, []),
    "imagenet": ("resnet50_imagenet", 256, ["--evaluate.task", "none", "--evaluate.path", ""]),
}


def words_of_run(case: str, data: list[str], run: Path, options: Any) -> list[str]:
    """What `megaclass` is told."""
    recipe, batch_size, changes = CASES[case]
    settings = {
        "data.global_batch_size": options.batch_size or batch_size,
        "optim.lr": 0.001,
        "precision.compute": options.precision,
        "run.device": options.device,
        "run.log_every": LOG_EVERY,
        "run.output": run,
        "run.tensorboard": "false",
        "schedule.steps": options.steps,
    }
    told = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return ["train", recipe, *data, *told, *changes, *options.settings]


def row_of_run(case: dict[str, Any], events: list[Event], warmup: int) -> Row:
    """What the intervals after the warm-up say."""
    start = next(event for event in events if isinstance(event, StartEvent))
    steps = [event for event in events if isinstance(event, StepEvent) and event.step - LOG_EVERY >= warmup]
    batch_size = start.config["data"]["global_batch_size"]
    waits = [(event.wait_percent or 0.0, event.wait_cause) for event in steps]
    work = {
        "wait_percent": fmean(wait for wait, _ in waits),
        "worst_wait_percent": max(wait for wait, _ in waits),
    }
    for cause in CAUSES:
        work[f"wait_percent_{cause}"] = sum(wait for wait, why in waits if why == cause) / len(waits)
    samples_ms = [
        round(1000 * batch_size / event.samples_per_second, 4) for event in steps if event.samples_per_second
    ]
    return Row(
        implementation="megaclass",
        benchmark="stall",
        case=case | {"batch_size": batch_size},
        status="ok",
        work={name: round(value, 4) for name, value in work.items()},
        environment=start.environment,
        measured_at=now(),
        **timed(samples_ms, batch_size),
    )


def trained(case: str, source: str, directory: Path, records: Path, options: Any) -> Row:
    """The row of one run."""
    made = {"data.source": source, "data.path": str(records.parent)}
    if source == "synthetic":
        made = {"data.source": source, "data.num_classes": CLASSES}
    data = [word for name, value in made.items() for word in (f"--{name}", value)]
    run = directory / f"run-{source}"
    words = words_of_run(case, data, run, options)
    told = {"workload": case, "source": source, "device": options.device, "precision": options.precision}
    facts = told | {"steps": options.steps, "warmup": options.warmup, "recipe": CASES[case][0]}
    ended = subprocess.run(
        [sys.executable, "-m", "megaclass", *words], stderr=subprocess.PIPE, text=True, check=False
    )
    if ended.returncode:
        said = (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1]
        return Row(
            implementation="megaclass",
            benchmark="stall",
            case=facts,
            status="failed",
            reason=said,
            measured_at=now(),
        )
    return row_of_run(facts, read_events(run / "events.jsonl"), options.warmup)


def with_noise(row: Row, noise: Row) -> Row:
    """The row, and by how much its median step was longer than that of the run on noise."""
    if "ok" == row.status == noise.status:
        row.work["slower_percent"] = round(100 * (median(row.samples_ms) / median(noise.samples_ms) - 1), 4)
    return row


def verdict(row: Row) -> str:
    """For a person, in a line."""
    name = f"{row.case['workload']} from {row.case['source']}"
    if row.status != "ok":
        return f"{name}: {row.status}: {row.reason}"
    work = row.work
    shares = ", ".join(f"{cause} {work[f'wait_percent_{cause}']:.2f}" for cause in CAUSES)
    text = f"{name}: {row.samples_per_second:,.0f} images/s; waited {work['wait_percent']:.2f}% of the time ({shares})"
    text += f", in the worst interval {work['worst_wait_percent']:.2f}%"
    if "slower_percent" in work:
        text += f"; {work['slower_percent']:+.2f}% a step over noise"
    if row.case["source"] == "synthetic":
        return text
    kept = "below" if work["wait_percent"] < LIMIT_PERCENT else "NOT below"
    return f"{text}: {kept} {LIMIT_PERCENT:g}%"


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def parsed(words: list[str]) -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="", help="JSON lines file to which the rows are appended")
    parser.add_argument("--case", default=",".join(CASES), help="faces, imagenet or both")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--batch-size", type=int, default=0, help="0: 512 faces, 256 photographs")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--warmup", type=int, default=20, help="steps that do not count")
    parser.add_argument("--images", type=int, default=0, help="distinct images; 0: as in `bench loader`")
    parser.add_argument("settings", nargs="*", help="after --: further settings of `megaclass train`")
    options = parser.parse_args(words)
    for case in options.case.split(","):
        lookup(CASES, case, "case")
    if options.steps < options.warmup + LOG_EVERY:
        raise UserError(f"--steps: {options.steps} leaves no interval of {LOG_EVERY} after the warm-up")
    return options


def main(words: list[str]) -> None:
    options = parsed(words)
    with RowWriter(options.output) as writer:
        for case in options.case.split(","):
            with tempfile.TemporaryDirectory(prefix="megaclass-stall-") as name:
                images = write_images(
                    WORKLOADS[case],
                    Path(name),
                    data="",
                    images=options.images,
                    seed=0,
                    threads=usable_cores(),
                )
                noise = trained(case, "synthetic", Path(name), images.records, options)
                row = trained(case, "records", Path(name), images.records, options)
            for found in (noise, with_noise(row, noise)):
                writer.write(found)
                print(verdict(found), flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"stall.py: error: {error}")
