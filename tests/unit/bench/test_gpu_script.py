"""benchmarks/gpu.py without a GPU: its list is well formed, and nothing stops the next part."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

import fake_peer
from megaclass.bench import BENCHMARKS, sweep
from megaclass.cli.bench import options_of, options_of_suite
from megaclass.parallel import groups
from megaclass.results import published

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu.py"


@pytest.fixture
def load(tmp_path, monkeypatch):
    for name in ("PYTHONPATH", "COLUMNS", "PYTHONUNBUFFERED", "MEGACLASS_REVISION"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # the script sets them

    def call(rehearsal):
        monkeypatch.setenv("OUT", str(tmp_path / "out"))
        monkeypatch.setenv("PEER_PATH", str(fake_peer.write(tmp_path / "peer")))
        monkeypatch.setenv("REHEARSAL", rehearsal)
        spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
        gpu = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(gpu)
        return gpu

    return call


@pytest.mark.parametrize("rehearsal", "01")
def test_the_list_is_well_formed(load, rehearsal, monkeypatch):
    gpu = load(rehearsal)
    names = [part[1] for part in gpu.PARTS]
    assert len({*names}) == len(names) and not {*names} & {part[0] for part in gpu.PARTS}
    for call in "123":
        assert sum(int(limit_s) for group, _, limit_s, _ in gpu.PARTS if group == call) <= 540
    monkeypatch.setattr(groups, "pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr("megaclass.bench.train.classes_of", lambda config: 10)  # of what a part draws
    rows, suites = {}, set()
    for _, name, _, command in gpu.PARTS:
        words = gpu.words_of(name, command)[3:]
        if words[:2] == ["bench", "suite"]:
            suites.add(options_of_suite(words[2:]).name)
        elif words[:1] == ["bench"]:
            plan = sweep.plan(BENCHMARKS[words[1]], options_of(BENCHMARKS[words[1]], words[2:]))
            rows[name] = sum(len(one.implementations) for one in plan)
            assert all(one.case.device == "cuda" for one in plan)
    assert suites <= {*published.names()} and len(suites) == 5 and min(rows.values()) >= 1
    assert rows["head"] == 4 and rows["beside"] % 4 == 0 and rows["graphs"] == 2


@pytest.mark.process
def test_nothing_stops_the_next_part(load, tmp_path, monkeypatch):
    gpu = load("0")
    commands = {"slow": "sleep 9", "absent": "no-such", "wrong": "python -c 1/0", "right": "echo the end"}
    commands["none"] = "echo 3 skipped in 1 s"
    monkeypatch.setattr(gpu, "PARTS", [["1", name, "1", command] for name, command in commands.items()])
    assert gpu.main(["2"]) == 2  # no such group
    monkeypatch.setattr(gpu, "surroundings", lambda: ("", "revision"))
    assert gpu.main(["1"]) == 2 and not (tmp_path / "out").exists()  # no GPU
    monkeypatch.setattr(gpu, "surroundings", lambda: ("card", "revision"))
    assert gpu.main(["1"]) == 1
    table = (tmp_path / "out/summary.md").read_text().partition("## ")[0].split("|")
    ends = [table[table.index(name) + 1].split(",")[0] for name in commands]
    assert ends == ["rc 124", "rc 127", "rc 1", "rc 0", "skipped"]
    assert "the end" in table and "ZeroDivisionError" in (tmp_path / "out/log").read_text()
    assert gpu.main(["right"]) == 0
