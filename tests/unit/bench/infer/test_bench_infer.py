"""`megaclass bench infer` as a user meets it."""

import pytest

from megaclass.bench.old_infer import onnx_engine
from megaclass.cli import main
from megaclass.results.rows import read_rows

SMALL = ["--recipe", "glyphs", "--iterations", "2", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)


def bench(*words):
    return main(["bench", "infer", *SMALL, *map(str, words)])


def test_a_sweep_measures_each_batch_size_and_goes_on_where_it_stopped(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    assert bench("-b", "2,1", "-e", 3, "--backbone", "convnet", "--output", path) == 0
    first, second = read_rows(path)
    assert [row.case["batch_size"] for row in (first, second)] == [2, 1]
    for row in (first, second):
        assert (row.status, row.reason) == ("ok", "")
        assert row.case["backbone"] == "convnet" and row.case["image_size"] == 48
        assert (row.case["epochs"], row.case["warmup"], len(row.samples_ms)) == (2, 1, 4)
        step = row.step_ms
        assert 0 < step["p50"] <= step["p90"] <= step["p95"] <= step["p99"] <= step["p100"]
        assert len(row.data_ms) == 4 and all(
            0 <= d < s for d, s in zip(row.data_ms, row.samples_ms, strict=True)
        )
        assert len(row.epochs) == 2 and row.rates["compute"] >= row.rates["total"] > 0
        # An epoch is its steps and next to nothing besides.
        assert row.rates["total"] == pytest.approx(row.case["batch_size"] / step["mean"] * 1000, rel=0.1)
        assert row.memory_mb.keys() == {"allocated", "reserved", "driver", "process"}
        assert row.environment["torch_threads"] == row.case["threads"] == 1
    said = capsys.readouterr().out
    assert "case 2 of 2" in said and "p99" in said and "images/s" in said

    assert bench("-b", "2,1,4", "-e", 3, "--output", path) == 0  # convnet is the recipe's
    assert [row.case["batch_size"] for row in read_rows(path)] == [2, 1, 4]
    assert "2 of 3 cases are in" in capsys.readouterr().out


def test_what_cannot_be_measured_is_a_row_with_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_engine, "PACKAGES", ("no_such_package",))
    path = tmp_path / "rows.jsonl"
    words = ("-b", 1, "--engine", "cudagraph,onnx", "--dtype", "float32,bfloat16", "--output", path)
    assert bench(*words) == 0
    rows = read_rows(path)
    assert {row.status for row in rows} == {"skipped"} and len(rows) == 4
    assert [row.case["precision"] for row in rows] == ["fp32", "bf16", "fp32", "bf16"]
    graph, _, lacking, narrow = (row.reason for row in rows)
    assert "CUDA" in graph and "no_such_package" in lacking and "bf16" in narrow


def test_no_memory_is_a_row_and_the_sweep_goes_on(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert bench("-b", "100M,1", "--output", path) == 0
    full, fits = read_rows(path)
    assert (full.status, fits.status) == ("oom", "ok") and "memory" in full.reason


@pytest.mark.slow
def test_torch_compile_says_how_long_it_took(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert bench("-b", 2, "--engine", "compiled", "--dtype", "bf16", "--output", path) == 0
    (row,) = read_rows(path)
    assert (row.status, row.reason) == ("ok", "") and len(row.samples_ms) == 2
    assert row.work["compile_s"] > row.step_ms["p50"] / 1000


@pytest.mark.slow
def test_a_machine_without_a_compiler_gets_a_row_that_says_so(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    monkeypatch.setenv("CXX", str(tmp_path / "no_such_compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    assert bench("-b", 1, "--engine", "compiled", "--output", path) == 0
    (row,) = read_rows(path)
    assert row.status == "failed" and "no_such_compiler" in row.reason and "\n" not in row.reason


@pytest.mark.slow
@pytest.mark.skipif(bool(onnx_engine.missing("cpu")), reason=onnx_engine.missing("cpu") or "here")
def test_onnx_runtime(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert bench("-b", 2, "--engine", "onnx", "--output", path) == 0
    (row,) = read_rows(path)
    assert (row.status, row.reason) == ("ok", "") and not row.case["channels_last"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--recipe", "glyph"], "did you mean 'glyphs'"),
        (["--backbone", "convnets"], "convnet"),
        (["-b", "0"], "--batch-size: 0"),
        (["-b", "few"], "--batch-size: 'few'"),
        (["--dtype", "float8"], "float16"),
        (["--engine", "tensorrt"], "onnx"),
        (["--epochs", "1"], "--epochs: 1"),
        (["--warmup", "-1"], "--epochs: 2 with -1"),
        (["--iterations", "-1"], "--iterations: -1"),
        (["--image-size", "7"], "data.image_size: 7"),
        (["--data-root", "nowhere"], "--data-root: nowhere"),
        (["--device", "tpu"], "--device: 'tpu'"),
        (["--timeout", "0"], "--timeout"),
    ],
)
def test_bad_input_is_one_line(words, part, capfd):
    assert bench("--output", "rows.jsonl", *words) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("megaclass: error: ") and part in lines[0]
