"""The table of inference rows."""

from dataclasses import replace

from rich.console import Console

from megaclass.report.infer import comparisons, infer_tables
from megaclass.results.rows import Row, timed

CASE = {"recipe": "resnet50_imagenet", "backbone": "resnet50", "num_classes": 1000, "image_size": 224,
        "batch_size": 256, "precision": "fp16", "tf32": False, "engine": "cudagraph", "device": "cuda",
        "threads": 1}  # fmt: skip
OK = Row(implementation="megaclass", benchmark="infer", case=CASE, status="ok", work={"compile_s": 41.26},
         data_ms=[0.5, 1.5], rates={"total": 23272.7, "compute": 25600.0, "data": 256000.0},
         **timed([10.0, 12.0], 256))  # fmt: skip
OOM = Row(implementation="megaclass", benchmark="infer", case=CASE, status="oom", reason="full")


def test_the_table_has_every_percentile_and_fits_a_terminal(capsys):
    Console(width=80).print(infer_tables([OK, OOM]))
    title, head, line, full = capsys.readouterr().out.splitlines()
    assert title.strip() == "resnet50_imagenet resnet50, 224 px, 1,000 classes, cuda"
    assert head.split()[2:] == ["batch", "images/s", "mean", "p50", "p90", "p95", "p99", "p100", "data"]
    assert line.split() == [
        "cudagraph",
        "fp16",
        "256",
        "23,273",
        "11",
        "11",
        "11.8",
        "11.9",
        "11.98",
        "12",
        "1",
    ]
    assert full.split() == ["cudagraph", "fp16", "256", "oom"]


def test_another_model_another_table(capsys):
    faces = replace(
        OK, case=CASE | {"num_classes": 0, "device": "cpu", "threads": 4, "tf32": True}, data_ms=[0.0]
    )
    Console(width=100).print(infer_tables([OK, faces]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].strip() == "resnet50_imagenet resnet50, 224 px, embeddings, cpu (4 threads)"
    assert lines[5].split()[1] == "fp16+tf32" and lines[5].split()[-1] == "<0.01"


def test_engines_that_compile_say_how_long():
    assert comparisons([OK, OOM]) == ["ready after 41.3 s, its first step included"]
    assert comparisons([replace(OK, case=CASE | {"engine": "eager"}, work={})]) == []
