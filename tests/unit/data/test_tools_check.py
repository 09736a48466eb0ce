"""``megaclass data check``: what is sound, what is not, and sets that somebody broke on purpose."""

import io
import json
import struct
from collections import Counter

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from megaclass.cli import main
from megaclass.data.records.writer import RecordWriter
from megaclass.data.tools.check import _HASH, check, duplicates


def jpeg(number: int, size: int = 16) -> bytes:
    """A JPEG whose bytes differ for each number."""
    image = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    large = cv2.resize(image, (size, size), interpolation=cv2.INTER_NEAREST)
    return cv2.imencode(".jpg", large)[1].tobytes()


def write_set(folder, labels=(0, 0, 1, 1, 1, 2), images=None, **options):
    with RecordWriter(folder, **options) as writer:
        for number, label in enumerate(labels):
            writer.write(images[number] if images else jpeg(number), label)
    return folder


def found_in(path, **options):
    """(kind, file name, record, reason) of all findings, and the summary."""
    findings = []
    summary = check(path, findings.append, **options)
    assert Counter(finding.kind for finding in findings) == summary.found
    return [(f.kind, f.file.rpartition("/")[2], f.record, f.reason) for f in findings], summary


def index_of(folder) -> dict[int, int]:
    lines = (folder / "train.idx").read_text().splitlines()
    return {int(key): int(offset) for key, offset in (line.split("\t") for line in lines)}


def write_index(folder, offsets: dict[int, int]) -> None:
    (folder / "train.idx").write_text("".join(f"{key}\t{offset}\n" for key, offset in offsets.items()))


def patch(path, at: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)


@pytest.mark.parametrize("index_record", [True, False])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_sound_set_has_no_findings(tmp_path, index_record, workers):
    write_set(tmp_path, index_record=index_record)
    shown = []
    findings, summary = found_in(tmp_path, workers=workers, progress=lambda *now: shown.append(now))
    assert findings == [] and summary.found == {}
    assert (summary.images, summary.decoded) == (6, 6)
    assert summary.encoded_bytes == sum(len(jpeg(number)) for number in range(6))
    records = 10 if index_record else 6
    assert shown[-1] == (records, records)
    (tmp_path / "train.idx").unlink()
    assert found_in(tmp_path)[0] == []


def test_a_truncated_file_names_every_record_that_is_gone(tmp_path):
    write_set(tmp_path, index_record=False)
    offsets = index_of(tmp_path)
    rec = tmp_path / "train.rec"
    rec.write_bytes(rec.read_bytes()[: offsets[4] + 100])
    findings, summary = found_in(tmp_path)
    assert [finding[:3] for finding in findings] == [
        ("set", "train.rec", None), ("damaged", "train.rec", 4), ("damaged", "train.rec", 5)
    ]  # fmt: skip
    assert "do not fit a file" in findings[1][3] and "cannot start a record" in findings[2][3]
    assert (summary.images, summary.decoded) == (6, 4)


def test_flipped_bits_are_found_where_they_are(tmp_path):
    write_set(tmp_path)
    offsets = index_of(tmp_path)
    rec = tmp_path / "train.rec"
    patch(rec, offsets[2], b"\x0b")  # its magic
    patch(rec, offsets[3] + 8 + 24, b"XX")  # the start of the image
    patch(rec, offsets[4] + 8 + 24 + 3, bytes(200))  # its tables
    patch(rec, offsets[5] + 8 + 4, struct.pack("<f", 0.5))  # its label
    patch(rec, offsets[6] + 8 + 4, struct.pack("<f", 7))
    findings, summary = found_in(tmp_path)
    assert [finding[:3] for finding in findings] == [
        ("damaged", "train.rec", 2), ("damaged", "train.rec", 3), ("damaged", "train.rec", 4),
        ("label", "train.rec", 5), ("label", "train.rec", 6),
    ]  # fmt: skip
    reasons = [finding[3] for finding in findings]
    assert "the magic number is" in reasons[0] and "starts with b'XX" in reasons[1]
    assert "0.5 is no whole number" in reasons[3] and "7 is outside 0..2" in reasons[4]
    assert (summary.images, summary.decoded) == (6, 3)
    assert all(str(tmp_path) not in reason for reason in reasons)


def test_duplicates_are_told_from_images_with_two_labels(tmp_path):
    one, two = jpeg(1), jpeg(2)
    write_set(tmp_path, (0, 0, 1, 1, 2), [one, one, two, one, two])
    findings, summary = found_in(tmp_path)
    assert [finding[:3] for finding in findings] == [
        ("duplicate", "train.rec", 2), ("mislabelled", "train.rec", 4), ("mislabelled", "train.rec", 5)
    ]  # fmt: skip
    assert findings[0][3].endswith("train.rec record 1")
    assert findings[1][3].startswith("the label is 1, but that of the same image in")
    assert findings[1][3].endswith("record 1 is 0") and findings[2][3].endswith("record 3 is 1")
    assert summary.decoded == 5


def test_an_image_that_is_in_two_sets_is_told(tmp_path):
    write_set(tmp_path / "a", (0, 1), [jpeg(0), jpeg(1)])
    write_set(tmp_path / "b", (0, 1), [jpeg(2), jpeg(1)])
    findings, summary = found_in(f"{tmp_path}/a:{tmp_path}/b")
    assert [finding[:3] for finding in findings] == [("mislabelled", "train.rec", 2)]
    assert "a/train.rec record 2 of another set" in findings[0][3] and summary.images == 4


def test_an_index_that_disagrees_is_told(tmp_path):
    write_set(tmp_path, index_record=False)
    sound = index_of(tmp_path)
    for left_out in ((2, 3), (0, 5)):
        write_index(tmp_path, {key: offset for key, offset in sound.items() if key not in left_out})
        text = f"2 records that no index line names, the first at byte {sound[left_out[0]]}"
        assert found_in(tmp_path)[0] == [("index", "train.rec", None, text)]

    write_index(tmp_path, sound | {2: sound[1]})
    findings, _ = found_in(tmp_path)
    assert ("index", "train.rec", 1, "the index line of record 2 points at this one too") in findings
    assert [finding[0] for finding in findings] == ["index", "index", "duplicate"]

    write_index(tmp_path, sound | {2: sound[1] + 40})
    kinds = [finding[:3] for finding in found_in(tmp_path)[0]]
    assert kinds == [("damaged", "train.rec", 2), ("index", "train.rec", None)]

    lines = (tmp_path / "train.idx").read_text() + f"1\t{sound[1]}\n"
    (tmp_path / "train.idx").write_text(lines)
    assert ("index", "train.rec", 1, "more than one index line has this key") in found_in(tmp_path)[0]

    (tmp_path / "train.idx").write_text("no\tnumbers\n")
    findings, summary = found_in(tmp_path)
    assert [finding[:2] for finding in findings] == [("set", "train.rec"), ("index", "train.idx")]
    assert summary.decoded == 6


@pytest.mark.parametrize(
    ("bounds", "label", "reason"),
    [
        ({9: (6, 8)}, None, "states the keys 6 to 7, images have 1 to 6"),
        ({8: (2, 6)}, None, "its images have the labels 0 and 1"),
        ({7: (1, 2)}, None, "its images begin at key 3, those of the identity before end at 1"),
        ({8: (3, 7)}, None, "its images begin at key 6, those of the identity before end at 6"),
        ({9: (6, 6)}, None, "behind its images, the keys 6 to 6 belong to no identity"),
        ({}, (4, 2.0), "its images have the labels 1 and 2"),
    ],
)
def test_identity_records_that_disagree_are_told(tmp_path, bounds, label, reason):
    write_set(tmp_path)  # images 1..6, identities 7: 1..2, 8: 3..5, 9: 6
    offsets = index_of(tmp_path)
    for key, pair in bounds.items():
        patch(tmp_path / "train.rec", offsets[key] + 8 + 24, struct.pack("<2f", *pair))
    if label:
        patch(tmp_path / "train.rec", offsets[label[0]] + 8 + 4, struct.pack("<f", label[1]))
    assert ("identity", reason) in [(kind, why) for kind, _, _, why in found_in(tmp_path)[0]]


def test_files_that_are_damaged_or_disappear_while_checking_are_told(tmp_path):
    for number in range(140):  # more than the pieces that are begun at once
        path = tmp_path / f"{'ab'[number % 2]}/{number:03}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(number, 16))
    (tmp_path / "a/000.jpg").write_bytes(jpeg(0)[:-40])
    (tmp_path / "a/002.jpg").write_bytes(b"")
    (tmp_path / "a/004.jpg").write_bytes(b"<html>no image</html>")
    last = tmp_path / "b/139.jpg"

    def disappear(done, total):
        last.unlink(missing_ok=True)

    findings, summary = found_in(tmp_path, workers=1, progress=disappear)
    assert [finding[:3] for finding in findings] == [
        ("damaged", name, None) for name in ("000.jpg", "002.jpg", "004.jpg", "139.jpg")
    ]
    assert "damaged image" in findings[0][3] and findings[1][3].startswith("is an empty file")
    assert findings[3][3] == "cannot be read: No such file or directory; mend that"
    assert (summary.images, summary.decoded) == (140, 136)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.booleans()), max_size=30))
def test_duplicates_are_those_that_share_both_halves(rows):
    hashes = np.array([(high, low) for high, low, _ in rows], _HASH)
    known = np.array([is_known for *_, is_known in rows], bool)
    firsts: dict[tuple[int, int], int] = {}
    wanted = []
    for number, (high, low, is_known) in enumerate(rows):
        if is_known and (first := firsts.setdefault((high, low), number)) != number:
            wanted.append((first, number))
    assert duplicates(hashes, known) == sorted(wanted)


# ---- the command ------------------------------------------------------------------------------------


def test_the_exit_status_says_whether_something_was_found(tmp_path, capsys):
    one = jpeg(1)
    write_set(tmp_path / "sound")
    assert main(["data", "check", str(tmp_path / "sound")]) == 0
    assert "sound" in (printed := capsys.readouterr().out) and "images/s" in printed

    write_set(tmp_path / "double", (0, 1, 1, 1), [one] * 4)
    output = tmp_path / "found.jsonl"
    words = ["data", "check", str(tmp_path / "double"), "--limit", "1", "--output", str(output)]
    assert main(words) == 1
    printed = capsys.readouterr().out
    assert "the same image under another label: 3" in printed and "and 2 more" in printed
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["kind"], row["record"]) for row in rows] == [("mislabelled", key) for key in (2, 3, 4)]
    assert rows[0]["file"] == f"{tmp_path}/double/train.rec" and "record 1" in rows[0]["reason"]


def test_opencv_says_nothing_of_damaged_images_itself(tmp_path, capfd):
    gif = io.BytesIO()
    Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)).save(gif, "GIF")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.gif").write_bytes(gif.getvalue()[:900])
    assert main(["data", "check", str(tmp_path)]) == 1
    out, err = capfd.readouterr()
    assert "damaged image" in out and err == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone"], "gone: no such file or directory"),
        (["empty"], "has no sub-directories"),
        (["set:gone"], "number 2 of 2"),
        (["set", "--limit", "-1"], "--limit: -1 is below 0"),
        (["set", "--output", "set/train.rec"], "train.rec exists; name another file"),
        (["nothing"], "is not a RecordIO file"),
    ],
)
def test_bad_input_ends_with_one_line(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "set")
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing/train.rec").write_bytes(bytes(100))
    assert main(["data", "check", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]
