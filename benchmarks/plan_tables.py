"""The tables of docs/how-to/plan.md and docs/explanation/scale.md, from `megaclass plan`'s formulas and measured rows.

PYTHONPATH=src python benchmarks/plan_tables.py [--write]
"""

import sys
from pathlib import Path

from megaclass.bench.train import case_of, fit_of, job_of
from megaclass.config import from_mapping, load_recipe
from megaclass.errors import in_bytes
from megaclass.plan.devices import REACHED, Device
from megaclass.plan.memory import Job, memory_of
from megaclass.plan.speed import roofline, work_of
from megaclass.plan.whole import between
from megaclass.plan.wire import collectives
from megaclass.results.published import load
from megaclass.results.rows import read_rows

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "benchmarks/results"
PAGES = [ROOT / "docs/how-to/plan.md", ROOT / "docs/explanation/scale.md"]


def case_text(case):
    words = [
        case.backbone,
        case.precision,
        f"batch {case.global_batch_size}",
        f"{case.num_classes:,} classes",
    ]
    words += [f"rate {case.sample_rate}"] * (case.sample_rate < 1) + [case.storage] * (case.storage != "fp32")
    return ", ".join([*words, *(f"`{key}={value}`" for key, value in case.settings.items())])


def rows_of(name):
    rows = [row for row in read_rows(ROWS / name) if row.status == "ok"]
    return [(row, case_of(row)) for row in rows]


def memory_measured():
    yield "| case | measured, MB | planned, MB | planned / measured |\n|---|---:|---:|---:|"
    for row, case in rows_of("plan-memory-cpu.jsonl"):
        measured, planned = row.memory_mb["process"] * 2**20, memory_of(job_of(case)).total
        yield f"| {case_text(case)} | {measured / 1e6:,.0f} | {planned / 1e6:,.0f} | {planned / measured:.2f} |"


def speed_measured():
    rows = rows_of("plan-speed-cpu.jsonl")
    fit = fit_of([row for row, _ in rows[:3]], "the first three", "cpu", "bf16")
    yield "| case | measured, images/s | planned, images/s | planned / measured |\n|---|---:|---:|---:|"
    for place, (row, case) in enumerate(rows):
        measured, planned = row.samples_per_second, case.global_batch_size / fit.step_s(job_of(case))
        ratio = "fitted" if place < 3 else f"{planned / measured:.2f}"
        yield f"| {case_text(case)} | {measured:.1f} | {planned:.1f} | {ratio} |"


def faces(classes, batch, ranks, node_ranks, model="iresnet50", compute="bf16", **head):
    sections = {"model": {"name": model}, "data": {"global_batch_size": batch}, "head": head}
    return Job(
        from_mapping(sections, load_recipe("faces_r50"), complete=False),
        compute,
        classes,
        ranks,
        node_ranks,
        "cuda",
    )


def memory_published():
    """GB a GPU of 8 V100: published beside ours, without the context of CUDA."""
    methods = {
        "Data Parallel": {"parallelism": "data"}, "Model Parallel": {}, "Partial FC 0.1": {"sample_rate": 0.1},
    }  # fmt: skip
    report = load("partial-fc-v100")
    table = next(table for table in report.tables if table.name == "memory")
    names = [f"{name}: {what}" for name in methods for what in ("theirs", "ours")]
    yield f"| identities | {' | '.join(names)} |\n|---:{'|---:' * len(names)}|"
    for line in table.rows:
        classes, cells = int(line[0].text), []
        for cell, head in zip(line[1:], methods.values(), strict=True):
            job = faces(classes, 1024, 8, 8, compute="fp16", kernels="torch", precision="fp32", **head)
            ours = memory_of(job).total / 1e9
            fits = ours <= 32
            cells += [
                f"{cell.value / 1e3:.1f}" if cell.value else "-",
                f"{ours:.1f}" if fits else f"({ours:.0f})",
            ]
        yield f"| {classes:,} | {' | '.join(cells)} |"


def scale():
    """The step of 128 images a GPU, IResNet-100 in bf16, rate 0.1, on H100s of eight a node."""
    h100 = Device.named("h100")
    yield (
        "| classes, storage | GPUs | classes a GPU | tables, GB | gathered batch, GB | all memory, GB | backbone, ms | "
        "head: products, ms | head: traffic, ms | step, ms | images/s a GPU |\n|---|" + "---:|" * 10
    )
    for classes, storage in ((80_000_000, "fp32"), (1_000_000_000, "int8_rowwise")):
        for ranks in (8, 64, 512, 4096):
            job = scale_job(classes, storage, ranks)
            memory, work = memory_of(job), work_of(job)
            peak = h100.rates["bf16"]
            backbone = [1e3 * work.backbone / (share * peak) for share in reversed(REACHED["backbone"])]
            products = [1e3 * work.head / (share * peak) for share in reversed(REACHED["products"])]
            traffic = [1e3 * work.moved / (share * h100.memory_rate) for share in reversed(REACHED["memory"])]
            step = [1e3 * seconds for seconds in roofline(job, h100, collectives(job))]
            speed = [128e3 / ms for ms in reversed(step)]
            sizes = (memory.centres + memory.momentum + memory.owed, memory.batch, memory.total)
            cells = [f"{size / 1e9:.2f}" for size in sizes]
            cells += [between(pair) for pair in (backbone, products, traffic, step, speed)]
            yield f"| {classes / 1e6:,.0f} M, {storage} | {ranks:,} | {job.rows:,} | {' | '.join(cells)} |"


def scale_job(classes, storage, ranks, **head):
    """Classes over all GPUs unless told."""
    head = {"sample_rate": 0.1, "storage": storage, "precision": "bf16"} | head
    return faces(classes, 128 * ranks, ranks, 8, model="iresnet100", **head)


def scale_wire():
    h100, ranks = Device.named("h100"), (8, 64, 512, 4096)
    yield f"| collective, 80 M classes | {' | '.join(f'{n:,} GPUs' for n in ranks)} |\n|---|{'---:|' * len(ranks)}"
    jobs = [collectives(scale_job(80_000_000, "fp32", n)) for n in ranks]
    for alike in zip(*jobs, strict=True):
        yield f"| {alike[0].name} ({alike[0].kind}) | {' | '.join(wire_cell(one, h100) for one in alike)} |"


def scale_nodes():
    """Classes over the GPUs of a node: the gradient of centres travels between nodes."""
    h100 = Device.named("h100")
    yield "| 80 M classes, shared by | GPUs | gathered, GB | all memory, GB | step, ms |\n|---|---:|---:|---:|---:|"
    for group in ("world", "node"):
        for ranks in (512, 4096):
            job = scale_job(80_000_000, "fp32", ranks, shard_group=group)
            step = between([1e3 * seconds for seconds in roofline(job, h100, collectives(job))])
            memory = memory_of(job)
            yield f"| {group} | {ranks:,} | {memory.batch / 1e9:.2f} | {memory.total / 1e9:.1f} | {step} |"


def wire_cell(one, kind):
    many = f"{one.count} x " if one.count > 1 else ""
    return f"{many}{in_bytes(one.bytes)}, {between([1e3 * seconds for seconds in one.seconds(kind)])} ms"


TABLES = [memory_measured, speed_measured, memory_published, scale, scale_wire, scale_nodes]


def written(page):
    """The page with each table that it has a place for as it is now."""
    for table in TABLES:
        begin, end = f"<!-- plan_tables.py: {table.__name__} -->\n", "<!-- end -->"
        if begin in page:
            before, rest = page.split(begin)
            page = before + begin + "\n".join(table()) + "\n" + end + rest.split(end, 1)[1]
    return page


def main():
    for page in PAGES:
        found = written(page.read_text(encoding="utf-8"))
        if "--write" in sys.argv:
            page.write_text(found, encoding="utf-8")
        else:
            print(found)


if __name__ == "__main__":
    main()
