"""Packing tars: those of ILSVRC's shape give the records of the folder, and no hostile one gives a set."""

import io
import random
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from megaclass.data.pack.packer import pack
from megaclass.data.records.reader import RecordDataset
from megaclass.errors import UserError
from record_sets import contents

WNIDS = ("n01440764", "n02102040", "n03888257")


def jpeg(value: int) -> bytes:
    image = np.full((8 + value % 3, 8, 3), value, np.uint8)
    return cv2.imencode(".jpg", image)[1].tobytes()


IMAGE = jpeg(7)


def tar(members: dict[str, bytes], **settings) -> bytes:
    """A tar of files, in the order given."""
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w", **settings) as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return file.getvalue()


def write_files(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


TRAIN = {f"{wnid}/{wnid}_{10 * i}.JPEG": jpeg(50 * k + i) for k, wnid in enumerate(WNIDS) for i in range(5)}


def test_a_tar_of_class_tars_gives_the_records_of_the_folder(tmp_path):
    class_tars = {}
    for wnid in WNIDS:
        inside = {name.partition("/")[2]: content for name, content in TRAIN.items() if name.startswith(wnid)}
        class_tars[f"{wnid}.tar"] = tar(inside)
    (tmp_path / "train.tar").write_bytes(tar(class_tars))
    write_files(tmp_path / "train", TRAIN)
    pack(tmp_path / "train.tar", tmp_path / "tar")
    pack(tmp_path / "train", tmp_path / "folder")
    assert contents(tmp_path / "tar") == contents(tmp_path / "folder")
    dataset = RecordDataset(tmp_path / "tar")
    assert dataset.classes == list(WNIDS) and dataset.labels().tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert dataset.read(0).encoded == TRAIN["n01440764/n01440764_0.JPEG"]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("top", ["", "./", "data/train/"])
def test_class_directories_below_any_top_give_the_records_of_the_folder(tmp_path, tar_format, top):
    long = {"n01440764/" + "long/" * 15 + "name" * 16 + ".jpg": IMAGE}  # more than 100 letters
    if tar_format != tarfile.USTAR_FORMAT:
        long["n03888257/" + "x" * 240 + ".jpg"] = jpeg(9)
        long["n03888257/ümläut.jpg"] = jpeg(8)
    files = TRAIN | long
    write_files(tmp_path / "in", files)
    names = random.Random(1).sample(sorted(files), len(files))
    (tmp_path / "in.tar").write_bytes(tar({top + name: files[name] for name in names}, format=tar_format))
    pack(tmp_path / "in", tmp_path / "folder")
    pack(tmp_path / "in.tar", tmp_path / "tar")
    assert contents(tmp_path / "tar") == contents(tmp_path / "folder")


def test_class_depth_chooses_the_directories(tmp_path):
    files = {"set/train/a/x.jpg": jpeg(1), "set/train/b/x.jpg": jpeg(2), "set/val/c/x.jpg": jpeg(3)}
    (tmp_path / "in.tar").write_bytes(tar(files))
    for depth, classes in ((1, ["train", "val"]), (2, ["train/a", "train/b", "val/c"])):
        pack(tmp_path / "in.tar", tmp_path / str(depth), class_depth=depth)
        assert RecordDataset(tmp_path / str(depth)).classes == classes
    for depth, message in ((0, "--class-depth: 0"), (4, "no class directories 4 levels down; give --labels")):
        with pytest.raises(UserError, match=message):
            pack(tmp_path / "in.tar", tmp_path / "out", class_depth=depth)


def test_what_is_no_image_and_classes_without_images_are_passed_over(tmp_path, caplog):
    files = {
        "README.md": b"read me",
        "stray.jpg": IMAGE,
        "a/1.JPG": IMAGE,
        "a/._1.jpg": b"of macOS",
        "._a.tar": b"of macOS, and no tar",
        "a/notes.txt": b"",
        ".cache/2.jpg": IMAGE,
        "empty.tar": tar({}),
        "b/1.jpg": IMAGE,
    }
    (tmp_path / "in.tar").write_bytes(tar(files))
    assert pack(tmp_path / "in.tar", tmp_path / "out").count == 2
    assert RecordDataset(tmp_path / "out").classes == ["a", "b"]
    assert "1 images lie in no class directory and are left out" in caplog.text
    assert "no images by their suffix: 1 .md, 1 .txt" in caplog.text


# --- hostile ones -----------------------------------------------------------------------------------


def member(name: str, content: bytes = IMAGE, **fields) -> bytes:
    """The blocks of one member, whatever its header says."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    header = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    return header + content + bytes(-len(content) % 512)


def broken_header(block: bytes) -> bytes:
    return block[:3] + b"\xff" + block[4:]


GOOD = member("a/1.jpg")
END = bytes(1024)
PAX_SPARSE = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
CUT, HEADER = "cannot be read as a tar", "no sound tar header at byte"
PAX, LONG = {"type": tarfile.XHDTYPE}, {"type": tarfile.GNUTYPE_LONGNAME}
NO_FILE = "which is a link or a device"
HOSTILE = {
    "empty file": (b"", HEADER),
    "no tar": (b"This is no tar at all. " * 100, "no sound tar header at byte 0"),
    "no end": (GOOD, f"{HEADER} 1,536"),
    "cut header": (GOOD + GOOD[:300], f"{HEADER}|has no end mark at byte"),
    "cut member": (GOOD + member("a/2.jpg")[:600], CUT),
    "damaged header": (GOOD + broken_header(GOOD) + END, f"{HEADER}|has no end mark"),
    "joined": (GOOD + END + GOOD + END, "goes on behind its end mark"),
    "parent": (GOOD + member("a/../../2.jpg") + END, r"a/\.\./\.\./2\.jpg, which has a name that leads out"),
    "absolute": (GOOD + member("/etc/2.jpg") + END, "/etc/2.jpg, which has a name that leads out"),
    "not UTF-8": (GOOD + member("a/\udce9t\udce9.jpg") + END, "has a name that is no UTF-8"),
    "symlink": (GOOD + member("a/2.jpg", b"", type=tarfile.SYMTYPE) + END, NO_FILE),
    "unknown type": (GOOD + member("a/2.jpg", b"", type=b"Q") + END, rf"{NO_FILE} \(type b'Q'\)"),
    "sparse": (GOOD + member("a/2.jpg", b"", type=tarfile.GNUTYPE_SPARSE) + END, "a sparse file"),
    "pax sparse": (GOOD + member("x", PAX_SPARSE, **PAX) + member("a/2.jpg") + END, "a sparse file"),
    "size beyond": (GOOD + member("a/2.jpg", b"", size=1 << 40) + END, CUT),
    "negative size": (GOOD + member("a/2.jpg", b"", size=-1024) + END, "states -1,024 bytes"),
    "negative extension": (GOOD + member("x", b"", size=-1024, **LONG) + END, "an extended header of"),
    "pax size": (GOOD + member("x", b"18 size=999999999\n", **PAX) + member("a/2.jpg") + END, CUT),
    "pax size of words": (GOOD + member("x", b"13 size=many\n", **PAX) + member("a/2.jpg") + END, HEADER),
    "pax damaged": (GOOD + member("x", b"999 path=b\n", **PAX) + GOOD + END, "no UTF-8"),
    "pax huge": (GOOD + member("x", b"x" * (1 << 17), **PAX) + END, "an extended header of 131,072 bytes"),
    "headers without end": (GOOD + member("x", b"y" * 512, **LONG) * 2000 + END, "recursion depth"),
    "long name out": (GOOD + member("x", b"../../2.jpg\0", **LONG) + member("b") + END, "leads out"),
    "twice": (GOOD + GOOD + END, "holds a/1.jpg twice"),
    "no images": (member("a/1.txt") + END, r"holds no images; \.jpg"),
    "nested damage": (GOOD + member("b.tar", GOOD[:700]) + END, f"in.tar/b.tar {CUT}"),
    "nested parent": (GOOD + member("b.tar", member("../c.jpg") + END) + END, r"in.tar/b.tar has ../c.jpg, which has"),
    "nested twice":
        (GOOD + member("b.tar", member("c.tar", member("d.jpg") + END) + END) + END,
         r"b\.tar/c\.tar is compressed, or in a tar within a tar"),
    "nested compressed": (GOOD + member("b.tar.gz", b"") + END, r"b\.tar\.gz is compressed"),
    "control letters": (GOOD + member("../\x1b[2J\n.jpg") + END, r"\.\./\\x1b\[2J\\n\.jpg, which has a name"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_tars_are_told_in_one_line(tmp_path, case):
    content, message = HOSTILE[case]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/in.tar").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        pack(tmp_path / "in/in.tar", tmp_path / "out")
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "in.tar"]


def test_a_member_larger_than_any_image_is_left_out_or_told(tmp_path, monkeypatch):
    monkeypatch.setattr("megaclass.data.pack.tar.MAX_BYTES", 5000)
    (tmp_path / "in.tar").write_bytes(tar({"a/1.jpg": IMAGE, "a/2.jpg": bytes(5001)}))
    with pytest.raises(UserError, match=r"in\.tar/a/2\.jpg states 5,001 bytes, the limit is 5,000"):
        pack(tmp_path / "in.tar", tmp_path / "out")
    assert pack(tmp_path / "in.tar", tmp_path / "out", on_error="skip").count == 1


def test_a_tar_that_is_cut_while_it_is_packed_ends_the_work(tmp_path):
    path = tmp_path / "in.tar"
    path.write_bytes(tar({f"a/{number:02d}.jpg": IMAGE for number in range(40)}))

    def cut(done, _total):
        if done == 1:
            path.write_bytes(path.read_bytes()[: 20 * 512])

    with pytest.raises(UserError, match=r"in\.tar/a/\d\d\.jpg ends early: .* was cut short meanwhile; copy it"):
        pack(path, tmp_path / "out", on_error="skip", workers=1, progress=cut)
    assert not list((tmp_path / "out").iterdir())


SOUND = tar(
    {"a/1.jpg": IMAGE, "b.tar": tar({"2.jpg": IMAGE, "ü" * 60 + ".jpg": IMAGE}), "c/" + "x" * 120: b"note"},
    format=tarfile.PAX_FORMAT,
)


@settings(
    max_examples=150,
    deadline=2000,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(SOUND) // 512 - 1), st.integers(0, 511), st.binary(min_size=1, max_size=12)),
        max_size=4,
    ),
    mended=st.booleans(),
    cut=st.none() | st.integers(0, len(SOUND)),
)
@example(edits=[(0, 124, b"\x80\0\0\0\0\0\0\0\x7f\xff\xff\xff")], mended=True, cut=None)
@example(edits=[(0, 124, b"\xff" * 12)], mended=True, cut=None)
def test_any_damage_to_a_tar_is_a_user_error_or_sound_members(tmp_path, edits, mended, cut):
    content = bytearray(SOUND)
    for block, at, value in edits:
        where = 512 * block + at
        content[where : where + len(value)] = value[: len(content) - where]
        if mended:  # a header that a hostile hand wrote has a sound checksum
            header = content[512 * block : 512 * block + 512]
            header[148:156] = b" " * 8
            content[512 * block + 148 : 512 * block + 156] = b"%06o\0 " % sum(header)
    path = tmp_path / "in.tar"
    path.write_bytes(bytes(content[:cut]))
    try:
        pack(path, tmp_path / "out", on_error="skip")
    except UserError as error:
        assert "\n" not in str(error)
    for left in (tmp_path / "out").glob("*"):
        left.unlink()
    assert {left.name for left in tmp_path.iterdir()} <= {"in.tar", "out"}
