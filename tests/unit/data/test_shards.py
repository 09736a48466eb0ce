"""WebDataset's tars, read as they are."""

import tarfile

import pytest

import tiny
from megaclass.data import shards
from megaclass.data.dataset import DamagedSampleError
from megaclass.data.open import open_dataset
from megaclass.data.records.reader import RecordDataset
from megaclass.errors import UserError
from tars import write, write_tars


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEGACLASS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def records(tmp_path):
    return RecordDataset(tiny.write_records(tmp_path / "records"))


def test_tars_are_read_as_the_records_that_they_were_written_from(tmp_path, records):
    folder = write_tars(tmp_path / "tars", records)
    for path in (folder, f"{folder}/part-{{0..2}}.tar"):
        dataset = open_dataset(path)
        assert [dataset.read(n) for n in range(len(dataset))] == [records.read(n) for n in range(len(records))]
        assert dataset.labels().tolist() == records.labels().tolist() and dataset.num_classes == tiny.CLASSES
    assert len(open_dataset(folder / "part-1.tar")) == 8
    assert dataset.describe(9).startswith(f"{folder}/part-1.tar sample 9 (offset ")


def test_headers_are_read_once_until_a_tar_changes(tmp_path, records, monkeypatch):
    folder = write_tars(tmp_path / "tars", records)
    before = open_dataset(folder)
    with monkeypatch.context() as patched:
        patched.setattr(shards, "members", None)
        assert open_dataset(folder).read(5) == before.read(5)
    write(folder / "part-2.tar", ("a.jpg", b"image"), ("a.cls", b"7"))
    assert len(open_dataset(folder)) == 17 and open_dataset(folder).read(16) == (b"image", 7)


def test_the_commands_take_tars(told, tmp_path, records):
    folder = write_tars(tmp_path / "tars", records)
    told("data", "check", folder)
    assert "WebDataset tars" in told("data", "info", folder)
    staged = told("data", "stage", f"{folder}/part-{{0..1}}.tar", tmp_path / "disk")
    assert len(open_dataset(staged.strip())) == 16


def test_samples_without_image_or_class_are_told_and_left_out(tmp_path, caplog):
    whole = [("a/1.JPG", b"one"), ("a/1.cls", b"0"), ("b/1.webp", b"two"), ("b/1.json", b'{"label": 3}')]
    lame = [
        ("c.jpg", b"no class"),
        ("d.cls", b"1"),
        ("e.png", b"no label"),
        ("e.json", b"{}"),
        ("README", b""),
    ]
    dataset = open_dataset(write(tmp_path / "set.tar", *whole, *lame))
    assert [dataset.read(n) for n in range(len(dataset))] == [(b"one", 0), (b"two", 3)]
    assert f"{tmp_path}/set.tar/c: samples that have no image or no class are left out, 4 in all" in caplog.text


SAMPLE = [("a.jpg", b"image"), ("a.cls", b"1")]


@pytest.mark.parametrize(
    ("files", "changes", "message"),
    [
        (
            [("a.jpg", b"image"), ("a.cls", b"tench")],
            {},
            r"0.tar/a.cls: the class is b'tench'; it has to be a whole number",
        ),
        ([("a.jpg", b"image"), ("a.cls", b"-1")], {}, "the class is -1; it has"),
        ([("a.jpg", b"image"), ("a.json", b'{"label": "x"}')], {}, "a.json: the class is 'x'"),
        ([("a.jpg", b"image"), ("a.json", b"[" * 100_000)], {}, "a.json: the class is"),
        ([*SAMPLE, *SAMPLE], {}, "0.tar/a is there twice"),
        ([("a.jpg", b"image")], {}, "holds no sample of WebDataset"),
        ([*SAMPLE, ("../b.jpg", b"x")], {}, "leads out of the archive"),
        ([*SAMPLE, ("b.jpg", b"")], {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "link or a device"),
        ([*SAMPLE, ("b.jpg", b"x")], {"size": 1 << 40}, "damaged or cut short"),
        ([*SAMPLE, ("b.jpg", b"x")], {"type": tarfile.XHDTYPE, "size": 1 << 30}, "extended header"),
    ],
)
def test_a_tar_that_is_damaged_or_of_another_kind_is_one_line(tmp_path, files, changes, message):
    with pytest.raises(UserError, match=message) as error:
        open_dataset(write(tmp_path / "0.tar", *files, **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", r"holds several sets, train-\*\.tar and val-\*\.tar; name the shards of one"),
        ("train-{0..2}.tar", "train-1.tar: no such file"),
        ("train-{2..0}.tar", "write {first..last}"),
        ("train-{0..99999999}.tar", "99999999}.tar: 100,000,000 names"),
        ("train-{0..9999}-{0..9999}.tar", "9999}.tar: 100,000,000 names"),
    ],
)
def test_what_names_no_set_is_one_line(tmp_path, name, message):
    for part in ("train-0", "train-2", "val-0"):
        write(tmp_path / f"set/{part}.tar", *SAMPLE)
    with pytest.raises(UserError, match=message):
        open_dataset(tmp_path / "set" / name)


def test_a_sample_that_is_empty_or_cut_off_is_damaged_alone(tmp_path):
    path = write(tmp_path / "0.tar", ("a.jpg", b""), ("a.cls", b"0"), *[("b.jpg", b"x" * 2000), ("b.cls", b"0")])
    dataset = open_dataset(path)
    with pytest.raises(DamagedSampleError, match=r"0\.tar sample 0 \(offset 512\) is damaged: 0 of 0 bytes"):
        dataset.read(0)
    with path.open("r+b") as file:
        file.truncate(3000)
    with pytest.raises(DamagedSampleError, match=r"is damaged: \d+ of 2,000 bytes can be read; copy the tar again"):
        dataset.read(1)
