"""``megaclass data stage``: what is copied, what is kept, what is refused, and copies that were broken off."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

import tiny
from megaclass.cli import main
from megaclass.data.open import open_dataset
from megaclass.data.tools import stage as staging
from megaclass.data.tools.stage import stage
from megaclass.errors import UserError


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(staging, "_CHUNK_BYTES", 1000)


def silent(done, total):
    """No progress bar."""


def files(folder):
    """The content of all files that are not hidden."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


@pytest.fixture
def faces(tmp_path):
    folder = tiny.write_records(tmp_path / "faces")
    os.utime(folder / "train.rec", (1e9, 1e9))
    (folder / "classes.txt").write_text("".join(f"{i}\n" for i in range(tiny.CLASSES)))
    (folder / "notes.txt").write_text("not of the set")
    return folder


@pytest.fixture
def folder(tmp_path):
    for name in (
        "a/1.jpg",
        "a/deep/2.jpg",
        "b/1.jpg",
        "b/empty.jpg",
        "readme.txt",
        ".hidden/x.jpg",
        "b/.x.jpg",
    ):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if "empty" in name else name.encode() * 300)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/3.jpg").write_bytes(b"linked")
    (tmp_path / "images/c").symlink_to(tmp_path / "elsewhere")
    return tmp_path / "images"


def test_a_record_set_is_copied_and_not_copied_again(tmp_path, faces):
    shown = []
    (staged,) = stage(faces, tmp_path / "disk", lambda *now: shown.append(now))
    wanted = {name: content for name, content in files(faces).items() if name != "notes.txt"}
    total = sum(map(len, wanted.values()))
    assert staged.path == tmp_path / "disk/faces" and files(staged.path) == wanted
    assert (staged.files, staged.copied_bytes, staged.kept_bytes) == (4, total, 0)
    assert shown[0] == (0, total) and shown[-1] == (total, total)
    assert (staged.path / "train.rec").stat().st_mtime_ns == (faces / "train.rec").stat().st_mtime_ns
    assert len(open_dataset(staged.path)) == len(open_dataset(faces))
    (again,) = stage(faces / "train.rec", tmp_path / "disk", silent)
    assert (again.path, again.copied_bytes, again.kept_bytes) == (staged.path, 0, total)


def test_an_image_folder_is_copied_with_what_links_lead_to(tmp_path, folder):
    (folder / "d").mkdir()  # a class without images has a number
    (staged,) = stage(folder, tmp_path / "disk", silent)
    assert set(files(staged.path)) == {"a/1.jpg", "a/deep/2.jpg", "b/1.jpg", "b/empty.jpg", "c/3.jpg"}
    assert (staged.path / "a/deep/2.jpg").read_bytes() == (folder / "a/deep/2.jpg").read_bytes()
    assert not (staged.path / "c").is_symlink()
    ours, theirs = open_dataset(staged.path), open_dataset(folder)
    assert ours.classes == theirs.classes == list("abcd") and len(ours) == len(theirs)


def test_several_sets_get_a_path_that_names_all(tmp_path, faces, folder, capfd):
    words = ["data", "stage", f"{faces}:{folder}", str(tmp_path / "disk")]
    assert main(words) == 0
    out, err = capfd.readouterr()
    assert out == f"{tmp_path}/disk/faces:{tmp_path}/disk/images\n"
    assert len(err.splitlines()) == 2 and "kB copied and verified, " in err
    joined = open_dataset(out.strip())
    assert joined.num_classes == tiny.CLASSES + 3


def test_a_copy_that_was_broken_off_goes_on(tmp_path, folder, monkeypatch):
    """Whole files stay, and none that is half is taken for one: also if the source changed meanwhile."""
    monkeypatch.setattr(staging, "_COPIES", 1)  # in their order: a/1.jpg is done before b/1.jpg
    (folder / "b/1.jpg").write_bytes(os.urandom(50_000))

    def stop(done, total):
        if done > 40_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage(folder, tmp_path / "disk", stop)
    assert "b/1.jpg" not in files(tmp_path / "disk/images") and "a/1.jpg" in files(tmp_path / "disk/images")
    (folder / "b/1.jpg").write_bytes(os.urandom(50_000))
    (tmp_path / "disk/images/b/.1.jpg.part").write_bytes(b"half")  # as a killed process leaves it
    (staged,) = stage(folder, tmp_path / "disk", silent)
    assert staged.kept_bytes > 0 and staged.copied_bytes >= 50_000
    assert (staged.path / "b/1.jpg").read_bytes() == (folder / "b/1.jpg").read_bytes()
    assert not list(staged.path.rglob("*.part"))


def test_a_source_that_changes_while_it_is_copied_is_told(tmp_path, faces):
    def change(done, total):
        (faces / "train.rec").write_bytes(os.urandom(5000))

    with pytest.raises(UserError, match=r"train\.rec changed while it was copied; start again"):
        stage(faces, tmp_path / "disk", change)
    assert "train.rec" not in files(tmp_path / "disk/faces")


@pytest.mark.parametrize("size", ["same", "other"])
def test_what_is_there_and_differs_is_refused_and_stays(tmp_path, faces, size):
    target = stage(faces, tmp_path / "disk", silent)[0].path
    content = (faces / "train.rec").read_bytes()
    ours = bytes(len(content)) if size == "same" else b"ours"
    (target / "train.rec").write_bytes(ours)
    with pytest.raises(UserError, match=r"disk/faces/train\.rec is there and differs from .*not overwritten"):
        stage(faces, tmp_path / "disk", silent)
    assert (target / "train.rec").read_bytes() == ours


def test_a_disk_that_gives_back_other_bytes_is_noticed(tmp_path, faces, monkeypatch):
    def damage(descriptor):
        os.pwrite(descriptor, b"other", 10)

    monkeypatch.setattr(os, "fsync", damage)
    with pytest.raises(UserError, match="the disk gives back other bytes than were written"):
        stage(faces, tmp_path / "disk", silent)
    assert files(tmp_path / "disk/faces") == {}


def test_too_little_room_is_told_before_anything_is_copied(tmp_path, faces, monkeypatch):
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"disk/faces: \d\d\.\d kB are left to copy, but 1\.0 kB are free"):
        stage(faces, tmp_path / "disk", silent)
    assert files(tmp_path / "disk/faces") == {}


def test_processes_that_stage_at_once_take_turns(tmp_path, faces):
    code = (
        "import sys, pathlib; from megaclass.data.tools.stage import stage\n"
        "(s,) = stage(sys.argv[1], pathlib.Path(sys.argv[2]), lambda done, total: None)\n"
        "print(s.copied_bytes, s.path)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(faces), str(tmp_path / "disk")],
            stdout=subprocess.PIPE, text=True, env=environment,
        )
        for _ in range(2)
    ]  # fmt: skip
    printed = [process.communicate(timeout=60)[0].splitlines()[-1].split() for process in processes]
    total = sum(len(content) for name, content in files(faces).items() if name != "notes.txt")
    assert sorted(int(copied) for copied, _ in printed) == [0, total]
    assert {path for _, path in printed} == {f"{tmp_path}/disk/faces"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("gone", "disk"), "gone: no such file or directory"),
        (("faces:gone", "disk"), "gone: no such file or directory; give"),
        (("faces:./faces", "disk"), "faces: named twice"),
        (("faces", "."), "lies within faces"),
        (("images", "images/a"), "lies within images"),
        (("faces", "elsewhere/3.jpg"), "elsewhere/3.jpg/faces: Not a directory"),
        (("faces:deep/faces", "disk"), "two of the sets have directories of one name"),
        (("deep/faces", "."), "is there, but not in deep/faces: another set?"),
        (("faces/classes.txt", "disk"), "classes.txt is not a directory"),
    ],
)
def test_bad_input_ends_with_one_line(refused, tmp_path, faces, folder, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    tiny.write_records(tmp_path / "deep/faces", classes=2)
    refused(["data", "stage", *words], message)
