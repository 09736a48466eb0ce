"""The tables of loader rows and their comparison."""

from rich.console import Console

from megaclass.report.loader import comparisons, loader_tables
from megaclass.results.rows import Row, timed

CASE = {"workload": "faces", "batch_size": 128, "threads": 2, "image_bytes": 5400, "image_pixels": 12544,
        "data": "made", "source": "folder"}  # fmt: skip


def row(implementation, source, cpu_ms, stages=(), case=None, **words):
    cpu_us = 1000 * sorted(cpu_ms)[len(cpu_ms) // 2] / 1000
    work = {"cpu_us": cpu_us, "samples_per_cpu_second": 1e6 / cpu_us}
    work |= {
        f"cpu_us_{n}": us
        for n, us in zip(("read", "decode", "augment", "assemble", "copy"), stages, strict=False)
    }
    return Row(implementation=implementation, benchmark="loader", case=CASE | {"source": source} | (case or {}),
               status="ok",
               work=work, cpu_ms=cpu_ms, **timed([ms / 2 for ms in cpu_ms], 1000),
               **{"group": "1"} | words)  # fmt: skip


BARE = row("simplejpeg", "folder", [80.0, 84.0, 88.0])
OURS = row("megaclass", "records", [100.0, 105.0, 110.0], [2.0, 82.0, 10.0, 11.0, -1.0])
SYNTHETIC = row("megaclass", "synthetic", [1.0, 1.0, 1.0])
SLOW = row("dali", "folder", [200.0, 210.0, 220.0])
FAST = row("dali", "records", [150.0, 157.5, 165.0])
PILLOW = Row(implementation="pillow", benchmark="loader", case=CASE, status="skipped", reason="not here")


def test_the_tables_fit_a_terminal(capsys):
    Console(width=80).print(loader_tables([BARE, OURS, SYNTHETIC, SLOW, FAST, PILLOW]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "faces, batch 128, 2 threads; made: 5.4 kB, 12.54 kpx"
    assert lines[2].split() == ["bare", "decode", "23,810", "11,905", "100%"]
    assert lines[3].split() == ["megaclass", "records", "19,048", "9,524", "80%"]
    assert lines[4].split() == ["megaclass", "synthetic", "2,000,000", "1,000,000"]  # decodes nothing
    assert lines[7].split() == ["pillow", "folder", "skipped"]
    assert lines[9].split() == ["megaclass", "records", "2.0", "82.0", "10.0", "11.0", "-1.0"]
    assert lines[10].split() == ["██████", "█", "█"] and len(lines) == 11


def test_ours_is_compared_with_bare_decode_and_the_best_of_each_other():
    assert comparisons([BARE, OURS, SYNTHETIC, SLOW, FAST, PILLOW]) == [
        "megaclass records: 0.80 (0.80 to 0.80) of bare decode in a CPU second",
        "megaclass records: 1.50 (1.50 to 1.50) times the images of dali records in a CPU second",
    ]
    assert comparisons([OURS, PILLOW]) == [] == comparisons([BARE, SYNTHETIC])


def test_what_delivers_to_a_gpu_is_compared_by_the_clock_on_the_wall(capsys):
    gpu = {"device": "cuda"}
    ours = row("megaclass", "records", [100.0, 105.0, 110.0], case=gpu)  # half of that on the wall
    dali = row("megaclass", "records", [40.0, 42.0, 44.0], case=gpu | {"loader": "dali"})
    nvjpeg = row("nvjpeg", "records", [50.0, 52.5, 55.0], case=gpu)
    assert comparisons([BARE, ours, dali, nvjpeg]) == [
        "megaclass records to GPU: 0.80 (0.80 to 0.80) of bare decode in a CPU second",
        "megaclass records to GPU: 0.40 (0.40 to 0.40) times the images of megaclass records dali to GPU in a second",
        "megaclass records to GPU: 0.50 (0.50 to 0.50) times the images of nvjpeg records to GPU in a second",
    ]
    Console(width=80).print(loader_tables([BARE, ours, dali, nvjpeg]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].endswith("80%") and lines[4].split()[:6] == [
        "megaclass",
        "records",
        "dali",
        "to",
        "GPU",
        "47,619",
    ]
    assert not lines[4].endswith("%") and not lines[5].endswith("%")  # the GPU decodes, the processors wait


def test_rows_of_other_runs_are_not_paired():
    other = row("simplejpeg", "folder", [80.0, 84.0, 88.0, 92.0, 96.0], group="2")
    (line,) = comparisons([other, OURS])
    assert line.startswith("megaclass records: 0.84 (")
