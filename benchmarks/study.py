"""Variants of a recipe trained with several seeds: a row a run; tables for docs/explanation/losses.md.

PYTHONPATH=src python benchmarks/study.py --tables | --study NAME [--only VARIANT] [--seeds 0,1,2] [--parallel 2]

Rows are appended to benchmarks/results/study-NAME.jsonl. Kill it whenever you like: started again it passes over runs
that have their row, and goes on with those that have begun. A changed variant is another run, and its old rows stay.
"""

import ctypes
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from megaclass.bench import stability
from megaclass.bench.recipes import with_settings
from megaclass.config import load_recipe
from megaclass.results.rows import Row, RowWriter, read_rows, setting_text
from megaclass.results.rundir import RunDirectory

ROOT = Path(__file__).resolve().parents[1]
ROWS, PAGE = ROOT / "benchmarks/results", ROOT / "docs/explanation/losses.md"
TRAIN = [sys.executable, "-m", "megaclass", "train"]
OFTEN = {"run.checkpoint_minutes": 3.0, "run.keep_last": 1, "run.track": "none"}
RUN = re.compile(r"{run:([^}]+)}")
PLACE = re.compile(r"(<!-- study.py: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
# In a variant, "recipe" is another one; {run:VARIANT} is the run directory of one above it, same seed, which stays.
PAIRS = {"pair_accuracy": "pairs, %", "one_shot_20way": "one-shot, %", "tar_at_far_1e-4": "TAR@1e-4, %"}
TOPS = {"top1": "top-1, %", "top5": "top-5, %"}
NAMES = "arcface cosface sphereface adaface elastic_arcface elastic_cosface population magface curricularface"
SAMPLED = {f"arcface-{rate}": {"head.margin": "arcface", "head.sample_rate": rate} for rate in (0.3, 0.1)}
OTHERS = {"recipe": {}, "sub-centres": {"head.margin": "arcface", "head.sub_centres": 3}}
MARGINS = {name: {"head.margin": name} for name in NAMES.split()} | SAMPLED | OTHERS
UNFILTERED = {"head.filter_threshold": 0.0}  # it would take what some margins weigh
LADDER = {f"epochs-{n}": {"schedule.epochs": float(n)} for n in (12, 48)}
LARGER = {"data.image_size": 160, "data.start_size": 96, "evaluate.image_size": 192}
LADDER["hour"] = LARGER | {"schedule.epochs": 50.0}
BOTH = {"data.path": "data/omniglot/old:data/omniglot/new"}
GROWN = BOTH | {"schedule.epochs": 1.375, "model.weights": "{run:old}", "head.weights": "{run:old}"}
CAREFUL = GROWN | {"optim.freeze_backbone_epochs": 0.25, "optim.layer_decay": 0.8}
FINETUNE = {"scratch": BOTH, "old": {"data.path": "data/omniglot/old"}, "grown": GROWN}
FINETUNE |= {"random": GROWN | {"head.new_classes": "random"}, "careful": CAREFUL}
STUDIES = {  # recipe, settings of all, variants, metrics
    "margins-omniglot": ("omniglot", {"schedule.epochs": 1.0} | UNFILTERED, MARGINS, PAIRS),
    "margins-glyphs": ("glyphs", {"schedule.epochs": 1.0}, MARGINS, PAIRS),
    "imagenette": ("imagenette", {"evaluate.every_epochs": 0.0}, LADDER, TOPS),
    "omniglot": ("omniglot", {}, {"recipe": {}, "longer": {"schedule.epochs": 7.5}}, PAIRS),
    "finetune-omniglot": ("omniglot", {}, FINETUNE, PAIRS),
}


class Run(NamedTuple):
    study: str
    variant: str
    seed: int

    @property
    def settings(self):
        recipe, common, variants, _ = STUDIES[self.study]
        return {"recipe": recipe} | common | variants[self.variant]

    @property
    def key(self):
        """The same where the same is trained."""
        settings = sorted(self.settings.items())
        return hashlib.sha256(repr([self.study, settings, self.seed]).encode()).hexdigest()[:16]

    @property
    def needs(self):
        """The runs from whose directories this one starts."""
        return {self._replace(variant=name) for name in RUN.findall(json.dumps(self.settings))}

    @property
    def directory(self):
        return Path(f"{self.study}-{self.variant}-{self.seed}-{self.key[:6]}").absolute()

    def case(self):
        recipe = load_recipe(self.settings["recipe"])
        config = with_settings(recipe, {key: value for key, value in self.settings.items() if "." in key})
        return stability.case_of(config, recipe, self.seed, 1)

    def start(self, threads):
        """The process that trains it, or goes on. Where this one dies, that one is told to save and to end."""
        settings = self.settings | OFTEN | {"run.seed": self.seed, "run.output": str(self.directory)}
        words = [settings.pop("recipe"), f"--run.threads={threads}", f"--data.workers={threads}"]
        for key, value in settings.items():
            there = RUN.sub(lambda one: str(self._replace(variant=one[1]).directory), setting_text(value))
            words.append(f"--{key}={there}")
        if self.directory.is_dir():
            words.append("--resume")
            with (self.directory / ".lock").open("a") as lock:  # one that is still saving
                fcntl.flock(lock, fcntl.LOCK_EX)
        with Path(f"{self.directory}.log").open("ab") as log:
            how = {"stdout": log, "stderr": log, "start_new_session": True}  # Ctrl-C is for this process
            how["preexec_fn"] = lambda: ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
            return subprocess.Popen([*TRAIN, *words], **how)

    def row(self, threads, cpu_seconds):
        """cpu_seconds: None where it was not trained in one piece."""
        case = self.case().parameters() | {"threads": threads, "study": self.study, "variant": self.variant}
        left = stability.left_by(RunDirectory(self.directory), case["global_batch_size"])
        left["result"] |= {"cpu_seconds": cpu_seconds}
        left |= {"case": case, "measured_at": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())}
        return Row(implementation="megaclass", benchmark="stability", status="ok", key=self.key, **left)


def train(name, only="", seeds=(0, 1, 2), parallel=1, keep=False):
    """In the working directory. Returns how many runs have failed."""
    threads = 1 if parallel > 1 else len(os.sched_getaffinity(0))
    plan = [Run(name, variant, seed) for seed in seeds for variant in STUDIES[name][2]]
    used, running, failed, begin = {need for run in plan for need in run.needs}, {}, 0, time.monotonic()
    with RowWriter(ROWS / f"study-{name}.jsonl") as writer:
        rows = {row.key for row in read_rows(writer.path)}
        queue = [run for run in plan if run.key not in rows and only in ("", run.variant)]
        total = len(queue)
        while queue or running:
            busy = {one for one, _, _ in running.values()}
            if queue and len(running) < parallel and not queue[0].needs & busy:
                run = queue.pop(0)
                is_fresh, child = not run.directory.exists(), run.start(threads)
                running[child.pid] = run, is_fresh, child
                continue
            pid, status, usage = os.wait4(-1, 0)
            run, is_fresh, child = running.pop(pid)
            child.returncode = os.waitstatus_to_exitcode(status)
            if not (run.directory / "result.json").exists():
                failed, said = failed + 1, f"FAILED, see {run.directory}.log"
            else:
                writer.write(row := run.row(threads, usage.ru_utime + usage.ru_stime if is_fresh else None))
                said = f"{row.case['metric']} {row.result.get(row.case['metric'])}, {row.result['seconds']:.0f} s"
                if run not in used and not keep:
                    shutil.rmtree(run.directory)
            left = len(queue) + len(running)
            hours = (time.monotonic() - begin) / 3600 / (total - left) * left
            print(f"{run.variant} {run.seed}: {said}; {left} of {total} left, {hours:.1f} h", flush=True)
    return failed


def cell(rows, key, unit):
    """Mean and deviation of ``key``, in ``unit``, over the rows that have it."""
    found = [value / unit for row in rows if (value := (row.result | row.step_ms).get(key)) is not None]
    return " ± ".join(f"{one(found):.2f}" for one in (fmean, stdev)[: len(found)])


def table(name):
    """A line for each variant as it now is, of a seed the latest row."""
    _, _, variants, metrics = STUDIES[name]
    path, seeds = ROWS / f"study-{name}.jsonl", {variant: {} for variant in variants}
    for row in read_rows(path) if path.exists() else []:
        run = Run(name, row.case["variant"], row.case["seed"])
        if run.variant in seeds and run.key == row.key:
            seeds[run.variant][run.seed] = row
    shown = [row for runs in seeds.values() for row in runs.values()]
    told = {f"{row.environment['cpu']}, threads: {row.case['threads']}" for row in shown}
    times = {"p50": ("step, ms", 1), "cpu_seconds": ("CPU time, min", 60)}
    heads = [*metrics.values(), "n", *(title for title, _ in times.values())]
    lines = [f"| variant | {' | '.join(heads)} |", "|---" + "|---:" * len(heads) + "|"]
    for variant, runs in seeds.items():
        if runs:
            cells = [*(cell(runs.values(), key, 0.01) for key in metrics), str(len(runs))]
            cells += [cell(runs.values(), key, unit) for key, (_, unit) in times.items()]
            lines.append(f"| {' | '.join([variant, *cells])} |")
    return "\n".join([*lines, "", "; ".join(sorted(told))] if told else ["Not trained yet."]) + "\n"


def written():
    page = PAGE.read_text(encoding="utf-8")
    return PLACE.sub(lambda place: place[1] + table(place[2]) + place[3], page)


def main():
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", action="store_true", help="write the tables of the page")
    parser.add_argument("--study", choices=STUDIES)
    parser.add_argument("--only", default="", metavar="VARIANT")
    parser.add_argument("--seeds", type=lambda text: [*map(int, text.split(","))], default=[0, 1, 2])
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time, each with one thread")
    parser.add_argument("--data", type=Path, default=Path("data"), help="what the recipes call data")
    parser.add_argument("--work", type=Path, default=Path("runs/study"), help="run directories")
    parser.add_argument("--keep", action="store_true", help="run directories stay")
    options = parser.parse_args()
    if options.tables:
        PAGE.write_text(written(), encoding="utf-8")
    if options.study:
        if options.only and options.only not in (known := STUDIES[options.study][2]):
            parser.error(f"--only: {options.only!r} is none of {', '.join(known)}")
        options.work.mkdir(parents=True, exist_ok=True)
        (link := options.work / "data").unlink(missing_ok=True)
        link.symlink_to(options.data.absolute())
        os.environ["PYTHONPATH"] = str(ROOT / "src")
        os.chdir(options.work)
        sys.exit(bool(train(options.study, options.only, options.seeds, options.parallel, options.keep)))


if __name__ == "__main__":
    main()
