"""A pack that ends early: it goes on with the same call, ends in the same bytes, and never looks whole before."""

import errno
import io
import itertools
import os
import resource
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from megaclass.data.pack import pack, packer
from megaclass.data.records import journal
from megaclass.data.records.reader import RecordDataset
from megaclass.data.records.writer import RecordWriter
from megaclass.errors import UserError

COUNT = 12


@pytest.fixture(autouse=True)
def _a_checkpoint_an_image(monkeypatch):
    monkeypatch.setattr(packer, "CHECKPOINT_S", 0.0)
    # A process that ends loses nothing that it wrote: only a power cut would.
    monkeypatch.setattr(os, "fsync", lambda _file: None)


def jpeg(value: int) -> bytes:
    return cv2.imencode(".jpg", np.full((8, 8), 20 * value, np.uint8))[1].tobytes()


def write_folder(root: Path) -> Path:
    """12 images of 3 classes; the fifth is damaged."""
    for number in range(COUNT):
        path = root / f"{'abc'[number // 4]}/{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"damaged" if number == 4 else jpeg(number))
    return root


def write_tar(path: Path, mode: str) -> Path:
    with tarfile.open(path, mode) as archive:
        for number in (2, 0, 1, 11, 4, 5, 3, 6, 10, 9, 8, 7):
            content = b"damaged" if number == 4 else jpeg(number)
            info = tarfile.TarInfo(f"{'abc'[number // 4]}/{number:02d}.jpg")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_npz(path: Path) -> Path:
    images = np.stack([np.full((8, 8), 20 * number, np.uint8) for number in range(COUNT)])
    np.savez(path, images=images, labels=np.arange(COUNT) % 3)
    return path


SOURCES = {
    "folder": lambda tmp: write_folder(tmp / "in"),
    "tar": lambda tmp: write_tar(tmp / "in.tar", "w"),
    "tgz": lambda tmp: write_tar(tmp / "in.tgz", "w:gz"),
    "npz": lambda tmp: write_npz(tmp / "in.npz"),
}
OPTIONS = {"on_error": "skip", "resumable": True, "workers": 2}


def stopping_at(number: int, error: type[BaseException] = KeyboardInterrupt):
    """A progress that ends the work after so many images."""

    def progress(done: int, _total: int) -> None:
        if done >= number:
            raise error

    return progress


def packed(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir()}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("options", [{}, {"index_record": False, "image_size": 6}], ids=["faces", "im2rec"])
def test_stopped_after_any_image_it_ends_in_the_same_bytes(tmp_path, source, options):
    path = SOURCES[source](tmp_path)
    options = OPTIONS | options
    whole = pack(path, tmp_path / "whole", **options)
    for number in range(1, COUNT + 1):
        output = tmp_path / str(number)
        with pytest.raises(KeyboardInterrupt):
            pack(path, output, **options, progress=stopping_at(number))
        assert all(name.startswith(".") for name in packed(output))
        with pytest.raises(UserError, match=r"holds no train\.rec"):
            RecordDataset(output)
        steps = []
        summary = pack(path, output, **options, progress=lambda done, _total, steps=steps: steps.append(done))
        assert steps == list(range(number + 1, COUNT + 1))
        assert packed(output) == packed(tmp_path / "whole")
        assert (summary.images, summary.skipped) == (whole.images, whole.skipped)
        assert number - len(whole.skipped) <= summary.resumed <= number


def test_stopped_after_every_single_image(tmp_path):
    source = write_folder(tmp_path / "in")
    pack(source, tmp_path / "whole", **OPTIONS)
    for number in range(1, COUNT + 1):
        with pytest.raises(KeyboardInterrupt):
            pack(source, tmp_path / "out", **OPTIONS, progress=stopping_at(number))
    pack(source, tmp_path / "out", **OPTIONS)
    assert packed(tmp_path / "out") == packed(tmp_path / "whole")


KILLED = """
import os, signal, sys
from megaclass.data.pack import pack, packer
packer.CHECKPOINT_S = 0.0
def progress(done, total):
    if done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
pack(sys.argv[1], sys.argv[2], on_error="skip", resumable=True, workers=2, progress=progress)
"""


def test_killed_it_ends_in_the_same_bytes(tmp_path):
    source = write_folder(tmp_path / "in")
    pack(source, tmp_path / "whole", **OPTIONS)
    for number in (3, 9):
        words = [sys.executable, "-c", KILLED, source, tmp_path / "out", str(number)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3] / "src")}
        ended = subprocess.run(words, env=environment, check=False, capture_output=True)
        assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
        assert all(name.startswith(".") for name in packed(tmp_path / "out"))
    summary = pack(source, tmp_path / "out", **OPTIONS)
    assert packed(tmp_path / "out") == packed(tmp_path / "whole") and summary.resumed == 8


@pytest.mark.parametrize("step", range(8))
def test_stopped_while_files_get_their_names(tmp_path, monkeypatch, step):
    source = write_folder(tmp_path / "in")
    pack(source, tmp_path / "whole", **OPTIONS)
    steps = itertools.count()
    for function in ("replace", "unlink"):
        known = getattr(Path, function)

        def stops(*arguments, known=known, **options):
            if next(steps) == step:
                raise KeyboardInterrupt
            return known(*arguments, **options)

        monkeypatch.setattr(Path, function, stops)
    ended = False
    try:
        pack(source, tmp_path / "out", **OPTIONS)
    except KeyboardInterrupt:
        ended = True
    monkeypatch.undo()
    if (tmp_path / "out/.train.journal").exists():
        assert ended
        summary = pack(source, tmp_path / "out", **OPTIONS)
        assert (summary.images, summary.resumed, len(summary.skipped)) == (COUNT - 1, COUNT - 1, 1)
    else:
        with pytest.raises(UserError, match="not overwritten"):
            pack(source, tmp_path / "out", **OPTIONS)
    assert packed(tmp_path / "out") == packed(tmp_path / "whole")


@pytest.mark.parametrize("change", ["quality", "another set", "restart"])
def test_a_journal_left_beside_a_set_is_not_taken_for_that_of_another(tmp_path, monkeypatch, change):
    source = write_folder(tmp_path / "in")
    with monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "_leave", lambda writer: writer._journal.close())  # killed before
        pack(source, tmp_path / "out", **OPTIONS)
    options = {"quality": {"quality": 90}, "restart": {"restart": True}}.get(change, {})
    if change == "another set":
        (tmp_path / "out/train.rec").write_bytes(b"of another set")
    left = packed(tmp_path / "out")
    assert left.keys() >= {".train.journal", "train.rec"}
    with pytest.raises(UserError, match="exists and is not overwritten"):
        pack(source, tmp_path / "out", **OPTIONS | options)
    assert packed(tmp_path / "out") == left


def test_a_full_disk_keeps_what_was_written(tmp_path):
    source = write_folder(tmp_path / "in")
    pack(source, tmp_path / "whole", **OPTIONS)
    size = (tmp_path / "whole/train.rec").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        with pytest.raises(
            UserError, match=r"cannot be written: File too large; make room there or give the same"
        ):
            pack(source, tmp_path / "out", **OPTIONS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    summary = pack(source, tmp_path / "out", **OPTIONS)
    assert 0 < summary.resumed < summary.images and packed(tmp_path / "out") == packed(tmp_path / "whole")


@pytest.mark.parametrize("left_over", [0, 20])
def test_a_disk_too_full_for_the_journal_is_told_in_one_line(tmp_path, monkeypatch, left_over):
    """The images fit, the line about them does not."""
    source = write_folder(tmp_path / "in")
    pack(source, tmp_path / "whole", **OPTIONS)
    known = journal.Journal.append

    def full(self, entry):
        if len(self.entries) < 3:
            return known(self, entry)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.path.stat().st_size + left_over, limits[1]))
        try:
            known(self, entry)
        finally:
            limited.append(limits)  # the disk stays full until all is closed

    limited = []
    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "append", full)
        try:
            with pytest.raises(UserError, match="cannot be written: File too large; make room there"):
                pack(source, tmp_path / "out", **OPTIONS)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limited[0])
    summary = pack(source, tmp_path / "out", **OPTIONS)
    assert summary.resumed == 3 and packed(tmp_path / "out") == packed(tmp_path / "whole")


cuts = st.tuples(st.sampled_from([".rec.part", ".idx.part", ".journal"]), st.floats(0, 1))


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
@given(ends=st.lists(st.tuples(st.integers(1, COUNT - 1), st.lists(cuts, max_size=2)), max_size=3))
@example(ends=[(9, [(".rec.part", 0.5)]), (11, [])])
@example(ends=[(9, [(".idx.part", 0.5), (".journal", 0.9)]), (11, [])])
def test_whatever_is_lost_of_the_parts_it_ends_in_the_same_bytes(tmp_path_factory, ends):
    folder = tmp_path_factory.mktemp("lost")
    source = write_folder(folder / "in")
    pack(source, folder / "whole", **OPTIONS)
    for number, lost in ends:
        try:
            pack(source, folder / "out", **OPTIONS, progress=stopping_at(number))
            break  # there was no image left to stop after
        except KeyboardInterrupt:
            pass
        for suffix, share in lost:
            path = folder / f"out/.train{suffix}"
            os.truncate(path, int(share * path.stat().st_size))
    else:
        pack(source, folder / "out", **OPTIONS)
    assert packed(folder / "out") == packed(folder / "whole")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 6}, r"image_size \(none there, 6 now\)"),
        ({"quality": 90}, r"quality \(95 there, 90 now\)"),
        ({"index_record": False}, r"layout \(faces there, im2rec now\)"),
        ({"invert": True}, r"invert \(False there, True now\)"),
        ("touch", r"source \(folder \w+ there, folder \w+ now\)"),
        ("add", r"images \(12 there, 13 now\)"),
        ("classes", "labels"),
    ],
)
def test_another_plan_is_refused_in_one_line_unless_restarted(tmp_path, change, message):
    source = write_folder(tmp_path / "in")
    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "out", **OPTIONS, progress=stopping_at(6))
    left = packed(tmp_path / "out")
    options = OPTIONS | (change if isinstance(change, dict) else {})
    if change == "touch":
        (source / "b/05.jpg").write_bytes(jpeg(1) + b"more")
    if change == "add":
        (source / "b/99.jpg").write_bytes(jpeg(1))
    if change == "classes":
        (tmp_path / "classes").write_text("c\nb\na\n")
        options["classes"] = tmp_path / "classes"
    with pytest.raises(UserError, match=f"half-written set that differs in .*{message}.*--restart") as caught:
        pack(source, tmp_path / "out", **options)
    assert "\n" not in str(caught.value) and packed(tmp_path / "out") == left
    pack(source, tmp_path / "out", **options, restart=True)
    pack(source, tmp_path / "whole", **options)
    assert packed(tmp_path / "out") == packed(tmp_path / "whole")


CHOICES = {
    "where": ("npz", {"where": "background=true"}, {"where": "background=false"}),
    "unpack_bits": ("npz", {"unpack_bits": (8, 8)}, {"unpack_bits": (4, 16)}),
    "root": ("tar", {"root": "small"}, {"root": "large"}),
    "class_depth": ("folder", {"class_depth": 1}, {"class_depth": 2}),
}


@pytest.mark.parametrize("option", CHOICES)
def test_a_pack_is_not_continued_with_other_images_of_the_same_source(tmp_path, option):
    """Two choices of as many images with the same names and labels."""
    kind, first, second = CHOICES[option]
    contents = {
        f"{size}/c{k}/{i}.jpg": jpeg(4 * k + i) for size in ("small", "large") for k in (0, 1) for i in (1, 2)
    }
    path = tmp_path / f"in.{kind}"
    if kind == "npz":
        images = np.zeros((8, 8), np.uint8) if option == "unpack_bits" else np.zeros((8, 8, 8), np.uint8)
        np.savez(path, images=images, labels=np.arange(8) // 2 % 2, background=np.arange(8) < 4)
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            for name, content in contents.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    else:
        for name, content in contents.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    with pytest.raises(KeyboardInterrupt):
        pack(path, tmp_path / "out", **OPTIONS, **first, progress=stopping_at(2))
    with pytest.raises(UserError, match=rf"half-written set that differs in .*{option} \("):
        pack(path, tmp_path / "out", **OPTIONS, **second)
    assert pack(path, tmp_path / "out", **OPTIONS, **first).resumed == 2


def test_threads_and_what_is_done_with_damage_may_change_on_the_way(tmp_path):
    source = write_folder(tmp_path / "in")
    pack(source, tmp_path / "whole", **OPTIONS)
    with pytest.raises(UserError, match=r"b/04\.jpg"):
        pack(source, tmp_path / "out", **OPTIONS | {"on_error": "fail"})
    summary = pack(source, tmp_path / "out", **OPTIONS | {"workers": 1})
    assert summary.resumed == 4 and packed(tmp_path / "out") == packed(tmp_path / "whole")


def test_two_packs_into_one_directory_do_not_mix(tmp_path):
    source = write_folder(tmp_path / "in")
    refused = []

    def again(done, _total):
        if done in (1, 6):
            for restart in (False, True):
                with pytest.raises(UserError, match="another process is writing this set") as caught:
                    pack(source, tmp_path / "out", **OPTIONS, restart=restart)
                refused.append(caught.value)

    pack(source, tmp_path / "out", **OPTIONS, progress=again)
    pack(source, tmp_path / "whole", **OPTIONS)
    assert len(refused) == 4 and packed(tmp_path / "out") == packed(tmp_path / "whole")


def test_the_set_of_another_writer_is_not_overwritten(tmp_path):
    source = write_folder(tmp_path / "in")

    def meanwhile(done, _total):
        if done == 6:
            with RecordWriter(tmp_path / "out") as writer:
                writer.write(b"image", 0)

    with pytest.raises(UserError, match="exists and is not overwritten"):
        pack(source, tmp_path / "out", **OPTIONS, progress=meanwhile)
    assert RecordDataset(tmp_path / "out").read(0).encoded == b"image"


def test_without_being_asked_nothing_stays(tmp_path):
    source = write_folder(tmp_path / "in")
    for error in (KeyboardInterrupt, RuntimeError):
        with pytest.raises(error):
            pack(source, tmp_path / "out", on_error="skip", progress=stopping_at(6, error))
        assert packed(tmp_path / "out") == {}


def test_before_the_first_checkpoint_nothing_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(packer, "CHECKPOINT_S", 60.0)
    source = write_folder(tmp_path / "in")
    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "out", **OPTIONS, progress=stopping_at(6))
    assert packed(tmp_path / "out") == {}


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "make room there or give the same again"), (errno.EROFS, "; name another")],
)
def test_what_to_do_depends_on_what_went_wrong(tmp_path, monkeypatch, number, advice):
    def fails(*_):
        raise OSError(number, os.strerror(number))

    writer = RecordWriter(tmp_path, plan={"a": 1})
    with pytest.raises(UserError, match=advice), writer:
        monkeypatch.setattr(writer, "_append", fails)
        writer.write(b"x", 0)
