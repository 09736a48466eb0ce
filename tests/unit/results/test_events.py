import contextlib
import errno
import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaclass.errors import UserError
from megaclass.results.events import (
    SCHEMA_VERSION,
    CheckpointEvent,
    EndEvent,
    EvaluationEvent,
    EventWriter,
    StartEvent,
    StepEvent,
    WarningEvent,
    read_events,
)
from megaclass.results.jsonl import LineFile

STEP = {"epoch": 0, "samples": 8, "learning_rate": 0.1, "samples_per_second": 100, "wait_percent": 1.5}


def step(number, loss: float | None = 1.5):
    return StepEvent(step=number, loss=loss, grad_norm=None, skipped_steps=0, time_s=float(number), **STEP)


START = StartEvent(config={"train": {"steps": 40}}, environment={"os": "Linux"}, world_size=2)
RUN = [
    START,
    step(10),
    WarningEvent(message="one record is damaged"),
    CheckpointEvent(step=10, path="checkpoints/10"),
    step(20),
    EvaluationEvent(step=20, name="glyphs", metrics={"auc": 0.9}, roc={"far": [0.1], "tar": [0.8]}),
    CheckpointEvent(step=20, path="checkpoints/20"),
    step(30),
    WarningEvent(message="a step was skipped", step=31),
    EndEvent(reason="finished", steps=40, seconds=4.5),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.jsonl"


def write(path, events, **options):
    with EventWriter(path, **options) as writer:
        for event in events:
            writer.write(event)


def test_what_is_written_is_read_at_once(path):
    with EventWriter(path) as writer:
        for number, event in enumerate(RUN, start=1):
            writer.write(event)
            assert read_events(path) == RUN[:number]
    lines = path.read_text().splitlines()
    assert json.loads(lines[0])["schema_version"] == SCHEMA_VERSION
    assert [json.loads(line)["event"] for line in lines[:4]] == ["start", "step", "warning", "checkpoint"]


def test_values_that_json_lacks(path):
    metrics = {"array": np.array([1, 2]), "scalar": np.float32(0.5), "nan": np.nan, "inside": [np.inf, None]}
    write(path, [START, step(1, loss=float("nan")), EvaluationEvent(step=1, name="x", metrics=metrics)])
    _, first, evaluation = read_events(path)
    assert first.loss is None
    assert evaluation.metrics == {"array": [1, 2], "scalar": 0.5, "nan": None, "inside": [None, None]}
    assert "NaN" not in path.read_text()


@pytest.mark.parametrize(("resumed", "kept"), [(0, 1), (10, 4), (20, 7), (30, 8), (40, 10)])
def test_resuming_drops_what_was_logged_beyond_the_checkpoint(path, resumed, kept):
    write(path, RUN)
    again = StartEvent(config={}, environment={}, world_size=1, resumed_from_step=resumed)
    write(path, [again], resumed_from_step=resumed)
    assert read_events(path) == [*RUN[:kept], again]


@given(cut=st.integers(0, 400))
def test_a_half_written_last_line_is_left_out_and_dropped_on_resume(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("run") / "events.jsonl"
    write(path, RUN[:3])
    content = path.read_bytes()[:-1][: len(path.read_bytes()) - cut]
    path.write_bytes(content)
    whole = content.count(b"\n")
    assert read_events(path) == RUN[:whole]
    write(path, [step(11)] if whole else RUN[:1], resumed_from_step=10)
    assert read_events(path) == ([*RUN[:whole], step(11)] if whole else RUN[:1])


def test_a_new_run_does_not_overwrite_one(path):
    write(path, RUN)
    before = path.read_bytes()
    with pytest.raises(UserError, match="a run already"):
        EventWriter(path)
    assert path.read_bytes() == before


def test_other_ranks_touch_nothing_and_resuming_without_a_file_starts_one(path):
    write(path, RUN, enabled=False)
    assert not path.exists()
    write(path, [START], resumed_from_step=10)
    assert read_events(path) == [START]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not a line of JSON"),
        ("\xff", "not a line of JSON"),
        ("[1]", "not a JSON object"),
        ('{"event": "stop"}', "not an event of a run (its kind is 'stop')"),
        ('{"event": "checkpoint", "step": 1}', "the checkpoint event lacks 'path'"),
        ('{"event": "warning", "message": "x", "colour": 1}', "has an unknown 'colour'"),
        ('{"event": "checkpoint", "step": "1", "path": "x"}', "step of the checkpoint event is '1'"),
    ],
)
def test_a_damaged_line_is_named(path, line, message):
    write(path, RUN)
    lines = path.read_text().splitlines()
    lines[4] = line
    path.write_text("\n".join(lines) + "\n", encoding="latin-1")
    with pytest.raises(UserError) as caught:
        read_events(path)
    assert "events.jsonl line 5: " in str(caught.value) and message in str(caught.value)


def test_a_run_begins_with_a_start(path):
    write(path, RUN[1:])
    with pytest.raises(UserError, match="line 1: a run begins with a start event, not step"):
        read_events(path)


def test_a_newer_schema_is_refused_even_if_it_has_other_fields(path):
    path.write_text(json.dumps({"event": "start", "schema_version": SCHEMA_VERSION + 1, "moon": "full"}) + "\n")
    with pytest.raises(UserError, match=f"written with schema {SCHEMA_VERSION + 1}.*update it"):
        read_events(path)


# -- what the disk refuses ------------------------------------------------------------------------------


@contextlib.contextmanager
def no_file_grows_beyond(size):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def refuse_to_mend(file, _):
    if file._is_torn:
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("cuts", [True, False])
def test_a_full_disk_costs_the_events_of_its_time(path, monkeypatch, cuts):
    """cuts: whether the disk lets the half line go at once."""
    told = []
    with EventWriter(path, warn=told.append) as writer:
        for event in (START, step(10)):
            writer.write(event)
        whole = path.stat().st_size
        with no_file_grows_beyond(whole + 40), monkeypatch.context() as patch:
            if not cuts:
                patch.setattr(LineFile, "_mend", refuse_to_mend)
            writer.write(step(20))
            assert path.stat().st_size == (whole if cuts else whole + 40)
            assert read_events(path) == [START, step(10)]
        with no_file_grows_beyond(whole + 120):  # room for a warning, which is not taken for it
            writer.write(step(30))
            assert path.stat().st_size == whole
        writer.write(step(40))
    missing = WarningEvent(message="events missing before the next: 2")
    assert read_events(path) == [START, step(10), missing, step(40)]
    assert told == [f"{path}: events cannot be written (File too large); the run goes on"]


def test_a_log_that_comes_late_begins_with_the_start_and_one_that_stays_away_is_told(tmp_path):
    told, path = [], tmp_path / "later" / "events.jsonl"
    with EventWriter(path, warn=told.append) as writer:
        for event in RUN[:3]:
            writer.write(event)
        path.parent.mkdir()
        writer.write(step(20))
    assert read_events(path) == [
        START,
        WarningEvent(message="events missing before the next: 2"),
        step(20),
    ]
    with EventWriter(tmp_path / "never" / "events.jsonl", warn=told.append) as writer:
        for event in RUN[:3]:
            writer.write(event)
    refused, _, last = (line.partition(": ")[2] for line in told)
    assert refused == "events cannot be written (No such file or directory); the run goes on"
    assert last == "the last events of this run are missing: 3"


# -- damage -------------------------------------------------------------------------------------------


def garbage(path):
    path.write_bytes(path.read_bytes().replace(b'"step": 20', b'"stop": 20', 1))


def zeros(path):
    content = path.read_bytes()
    path.write_bytes(content[:-300] + bytes(100) + content[-200:])


def newer(path):
    start = json.dumps({"event": "start", "schema_version": SCHEMA_VERSION + 1, "moon": "full"})
    path.write_text(start + "\n" + path.read_text())


def replaced_by(make):
    def replace(path):
        path.unlink()
        make(path)

    return replace


@pytest.mark.parametrize(
    ("damage", "kept", "message"),
    [
        (garbage, 4, "line 5: the step event lacks 'step'"),
        (zeros, 7, "line 8: not a line of JSON"),
        (lambda path: path.write_bytes(bytes(range(256))), 0, "line 1: not a line of JSON"),
        (newer, 0, "line 1: written with schema 2"),
        (replaced_by(Path.mkdir), 0, "not a regular file"),
        (replaced_by(os.mkfifo), 0, "not a regular file"),
    ],
    ids=lambda case: getattr(case, "__name__", None),
)
def test_a_damaged_log_is_set_aside_on_a_resume_and_what_is_whole_goes_on(path, damage, kept, message):
    write(path, RUN)
    damage(path)
    before = path.read_bytes() if path.is_file() else None
    with EventWriter(path, resumed_from_step=40) as writer:
        assert message in writer.set_aside and writer.set_aside.endswith("set aside as events.jsonl.damaged-1")
        writer.write(START)
    assert read_events(path) == [*RUN[:kept], START]
    aside = path.with_name("events.jsonl.damaged-1")
    assert (aside.read_bytes() if before is not None else None) == before and aside.exists()
    path.write_text("again\n")
    write(path, [START], resumed_from_step=40)
    assert path.with_name("events.jsonl.damaged-2").read_text() == "again\n" and aside.exists()


def test_a_damaged_log_that_cannot_be_set_aside_is_left_alone(path, monkeypatch):
    path.write_text("damage\n")
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only")))
    told = []
    write(path, RUN, resumed_from_step=0, warn=told.append)
    assert path.read_text() == "damage\n"
    assert len(told) == 1 and told[0].endswith("cannot be set aside (Read-only): the run goes on without a log")
