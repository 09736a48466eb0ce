"""``megaclass data check``: what is sound, what is not, and sets that somebody broke on purpose."""

import io
import json
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from megaclass.cli import main
from megaclass.data.tools.check import check
from record_sets import write_set


def jpeg(number: int, size: int = 16) -> bytes:
    """A JPEG whose bytes differ for each number."""
    image = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    large = cv2.resize(image, (size, size), interpolation=cv2.INTER_NEAREST)
    return cv2.imencode(".jpg", large)[1].tobytes()


SOUND = [(jpeg(number), label) for number, label in enumerate((0, 0, 1, 1, 1, 2))]


def found_in(path, **options):
    """(kind, file name and record, reason) of all findings."""
    _, findings = check(path, **options)
    return [(f.kind, f.where.rpartition("/")[2].partition(" (")[0], f.reason) for f in findings]


def index_of(folder) -> dict[int, int]:
    lines = (folder / "train.idx").read_text().splitlines()
    return {int(key): int(offset) for key, offset in (line.split("\t") for line in lines)}


def patch(path, at: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)


@pytest.mark.parametrize("index_record", [True, False])
def test_a_sound_set_has_no_findings(tmp_path, index_record):
    write_set(tmp_path, SOUND, index_record=index_record)
    shown = []
    assert check(tmp_path, progress=lambda *now: shown.append(now)) == (6, [])
    assert shown[-1] == (6, 6)
    (tmp_path / "train.idx").unlink()
    assert found_in(tmp_path) == []


def test_flipped_bits_are_found_where_they_are(tmp_path):
    write_set(tmp_path, SOUND)
    offsets = index_of(tmp_path)
    rec = tmp_path / "train.rec"
    patch(rec, offsets[2], b"\x0b")  # its magic
    patch(rec, offsets[3] + 8 + 24, b"XX")  # the start of the image
    patch(rec, offsets[4] + 8 + 24 + 3, bytes(200))  # its tables
    patch(rec, offsets[5] + 8 + 4, struct.pack("<f", 0.5))  # its label
    patch(rec, offsets[6] + 8 + 4, struct.pack("<f", 7))
    found = found_in(tmp_path)
    assert [finding[:2] for finding in found] == [
        *(("damaged", f"train.rec record {key}") for key in (2, 3, 4, 5)),
        ("label", "train.rec record 6"),
    ]
    reasons = [reason for *_, reason in found]
    assert "the magic number is" in reasons[0] and "starts with b'XX" in reasons[1]
    assert "0.5 is not a whole number" in reasons[3] and "7 is outside the 3 classes" in reasons[4]
    assert all(str(tmp_path) not in reason for reason in reasons[:4])


def test_duplicates_are_told_from_images_with_two_labels(tmp_path):
    one, two = jpeg(1), jpeg(2)
    write_set(tmp_path, [(one, 0), (one, 0), (two, 1), (one, 1), (two, 2)])
    found = found_in(tmp_path)
    assert [finding[:2] for finding in found] == [
        ("duplicate", "train.rec record 2"),
        ("mislabelled", "train.rec record 4"),
        ("mislabelled", "train.rec record 5"),
    ]
    reasons = [reason for *_, reason in found]
    assert "train.rec record 1 " in reasons[0]
    assert reasons[1].startswith("the label is 1, but that of the same image in")
    assert "record 1 " in reasons[1] and reasons[1].endswith(" is 0") and "record 3 " in reasons[2]


def test_an_image_that_is_in_two_sets_is_told(tmp_path):
    write_set(tmp_path / "a", [(jpeg(0), 0), (jpeg(1), 1)])
    write_set(tmp_path / "b", [(jpeg(2), 0), (jpeg(1), 1)])
    ((kind, where, reason),) = found_in(f"{tmp_path}/a:{tmp_path}/b")
    assert (kind, where) == ("mislabelled", "train.rec record 2") and "a/train.rec record 2" in reason


def test_an_index_that_leaves_records_out_is_told(tmp_path):
    write_set(tmp_path, SOUND, index_record=False)
    sound = index_of(tmp_path)
    for left_out in ((2, 3), (0, 5)):
        lines = [f"{key}\t{offset}\n" for key, offset in sound.items() if key not in left_out]
        (tmp_path / "train.idx").write_text("".join(lines))
        reason = f"2 records that train.idx does not name, the first at byte {sound[left_out[0]]}"
        assert found_in(tmp_path) == [("index", "train.rec", reason)]


def test_labels_that_are_not_those_of_the_identity_records_are_told(tmp_path):
    write_set(tmp_path, SOUND)  # images 1..6, identities 7: 1..2, 8: 3..5, 9: 6
    patch(tmp_path / "train.rec", index_of(tmp_path)[4] + 8 + 4, struct.pack("<f", 2.0))
    reason = "the label is 2, but 1 in the identity records"
    assert found_in(tmp_path) == [("identity", "train.rec record 4", reason)]


def test_files_that_are_damaged_or_disappear_while_checking_are_told(tmp_path):
    for number in range(140):  # more than the pieces that are begun at once
        path = tmp_path / f"{'ab'[number % 2]}/{number:03}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(number, 16))
    (tmp_path / "a/000.jpg").write_bytes(jpeg(0)[:-40])
    (tmp_path / "a/002.jpg").write_bytes(b"")
    (tmp_path / "a/004.jpg").write_bytes(b"<html>no image</html>")
    last = tmp_path / "b/139.jpg"
    found = found_in(tmp_path, workers=1, progress=lambda done, total: last.unlink(missing_ok=True))
    assert [finding[:2] for finding in found] == [
        ("damaged", name) for name in ("000.jpg", "002.jpg", "004.jpg", "139.jpg")
    ]
    assert "damaged image" in found[0][2] and found[1][2].startswith("is an empty file")
    assert found[3][2] == "cannot be read: No such file or directory; mend that"


# ---- the command ------------------------------------------------------------------------------------


def test_the_exit_status_says_whether_something_was_found(told, tmp_path):
    write_set(tmp_path / "sound", SOUND)
    assert "sound" in told("data", "check", tmp_path / "sound")

    write_set(tmp_path / "double", [(jpeg(1), label) for label in (0, *[1] * 13)])
    output = tmp_path / "found.jsonl"
    printed = told("data", "check", tmp_path / "double", "--output", output, status=1)
    assert "the same image under another label: 13" in printed and "and 3 more" in printed
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["mislabelled"] * 13
    assert rows[0]["where"].startswith(f"{tmp_path}/double/train.rec record 2 ")
    assert "record 1 " in rows[0]["reason"]


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
        (["set", "--workers", "-1"], "--workers: -1 is below 0"),
        (["set", "--output", "set/train.rec"], "train.rec exists; name another file"),
        (["cut"], "train.rec record"),
    ],
)
def test_bad_input_ends_with_one_line(refused, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "set", SOUND)
    rec = write_set(tmp_path / "cut", SOUND, index_record=False) / "train.rec"
    rec.write_bytes(rec.read_bytes()[: index_of(tmp_path / "cut")[4] + 100])
    refused(["data", "check", *words], message)
