"""Packing tables, and files of labels and class names: which number each image gets, and what is refused."""

import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from megaclass.data.pack.packer import pack
from megaclass.data.records.reader import RecordDataset
from megaclass.errors import UserError
from record_sets import rows


def jpeg(value: int) -> bytes:
    return cv2.imencode(".jpg", np.full((8, 8), 20 * value, np.uint8))[1].tobytes()


@pytest.fixture
def images(tmp_path):
    """1.jpg to 6.jpg, with grey values of 20 times their number."""
    (tmp_path / "images").mkdir()
    for number in range(1, 7):
        (tmp_path / f"images/{number}.jpg").write_bytes(jpeg(number))
    return tmp_path


def classes(output: Path) -> list[str] | None:
    path = output / "classes.txt"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else None


@pytest.mark.parametrize(
    ("name", "text", "kept", "names"),
    [
        ("t.csv", "1.jpg,b\n2.jpg,a\n3.jpg,b\n", [(2, 0), (1, 1), (3, 1)], ["a", "b"]),
        ("t.csv", 'path,label\n"1.jpg","b, c"\n\n2.jpg, a\n', [(2, 0), (1, 1)], ["a", "b, c"]),
        ("t.csv", "\ufeffLabel,note,FileName\r\nb,x,1.jpg\r\na,,2.jpg\r\n", [(2, 0), (1, 1)], ["a", "b"]),
        ("t.tsv", "path\tlabel\n1.jpg\ttwo words\n2.jpg\ta \"b\n", [(2, 0), (1, 1)], ['a "b', "two words"]),
        ("t.csv", "1.jpg,1\n2.jpg,0\n3.jpg,1\n", [(2, 0), (1, 1), (3, 1)], None),
        # numbers are sorted as numbers; those that change are kept as names
        ("t.csv", "1.jpg,10\n2.jpg,9\n3.jpg,-1\n", [(3, 0), (2, 1), (1, 2)], ["-1", "9", "10"]),
        # identities are names, even where they consist of digits
        ("t.csv", "1.jpg,007\n2.jpg,10\n", [(1, 0), (2, 1)], ["007", "10"]),
    ],
)  # fmt: skip
def test_tables(images, name, text, kept, names):
    (images / "images" / name).write_bytes(text.encode())
    pack(images / "images" / name, images / "out")
    assert rows(images / "out") == kept and classes(images / "out") == names


def test_paths_of_a_table_begin_at_it_or_at_the_root(images):
    (images / "t.csv").write_text("images/1.jpg,a\nimages/2.jpg,b\n")
    (images / "elsewhere").mkdir()
    (images / "elsewhere/t.csv").write_text(f"1.jpg,a\n{images}/images/2.jpg,b\n")
    pack(images / "t.csv", images / "one")
    pack(images / "elsewhere/t.csv", images / "other", root=images / "images")
    assert rows(images / "one") == rows(images / "other") == [(1, 0), (2, 1)]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (b"", {}, "names no images; it needs a line 'path,label' for each"),
        (b"path,label\n", {}, "names no images"),
        (b"1.jpg,a,b\n", {}, "names no images"),
        # No class may be made of a header, however damaged images are treated.
        (b"img,kind\n1.jpg,a\n", {"on_error": "skip"}, "names no images"),
        (b"1.jpg,a\n2.jpg\n", {}, "line 2 lacks a path or a label"),
        (b"1.jpg,a\n,b\n", {}, "line 2 lacks"),
        (b"1.jpg,\xff\n", {}, "is not a text file in UTF-8"),
        (b"1.jpg," + b"x" * 200_000 + b"\n", {}, "cannot be read as a table: field larger"),
        (b"1.jpg,a\n7.jpg,a\n", {}, "7.jpg cannot be read: No such file"),
        (b"1.jpg,a\n\0.jpg,a\n", {}, r"t\.csv|cannot be read"),
        (b"1.jpg,a\n", {"root": "nowhere"}, "--root: nowhere is not a directory"),
        (
            b"1.jpg,a\n",
            {"class_depth": 2},
            "is a table; --class-depth is for a folder and a tar, leave it out",
        ),
    ],
)
def test_tables_that_cannot_be_packed_say_why(images, text, options, message):
    (images / "images/t.csv").write_bytes(text)
    with pytest.raises(UserError, match=message) as caught:
        pack(images / "images/t.csv", images / "out", **options)
    assert "\n" not in str(caught.value)
    assert not list((images / "out").glob("*"))


# --- numbers of classes -----------------------------------------------------------------------------


def test_given_classes_keep_their_numbers(images):
    (images / "classes.txt").write_text("c\nb\nz\na\nlast\n")
    (images / "images/t.csv").write_text("1.jpg,a\n2.jpg,b\n3.jpg,c\n")
    pack(images / "images/t.csv", images / "out", classes=images / "classes.txt")
    assert rows(images / "out") == [(3, 0), (2, 1), (1, 3)]
    dataset = RecordDataset(images / "out")
    assert dataset.num_classes == 5 and dataset.classes == ["c", "b", "z", "a", "last"]


def test_numbers_are_positions_among_the_given_classes_unless_these_are_numbers(images):
    (images / "images/t.csv").write_text("1.jpg,2\n2.jpg,0\n")
    for text, kept in (("a\nb\nc\n", [(2, 0), (1, 2)]), ("2\n1\n0\n", [(1, 0), (2, 2)])):
        (images / "classes.txt").write_text(text)
        pack(images / "images/t.csv", images / text[0], classes=images / "classes.txt")
        assert rows(images / text[0]) == kept


@pytest.mark.parametrize(
    ("train", "val", "wanted"),
    [([1, 2, 3, 4, 5], [1, 2, 4], [0, 1, 3]), ([0, 1, 2, 5], [0, 1, 5], [0, 1, 3])],
)
def test_validation_labels_that_are_numbers_get_the_numbers_of_training(images, train, val, wanted):
    """Training labels with gaps: classes.txt holds what they were, and that is what validation means by them."""

    def packed(name: str, numbers: list[int], **options) -> list[int]:
        path = images / f"images/{name}.csv"
        path.write_text("".join(f"{row}.jpg,{number}\n" for row, number in enumerate(numbers, 1)))
        pack(path, images / name, **options)
        return RecordDataset(images / name).labels().tolist()

    assert packed("train", train) == list(range(len(train)))
    assert packed("val", val, classes=images / "train/classes.txt") == wanted
    with pytest.raises(UserError, match=r"'7' is not among the \d named there"):
        packed("other", [*val, 7], classes=images / "train/classes.txt")


@pytest.mark.parametrize(
    ("text", "table", "message"),
    [
        ("", "1.jpg,a\n", "--classes: .* is empty"),
        ("a\nb\na\n", "1.jpg,a\n", "has 'a' 2 times"),
        ("alpha\nbeta\n", "1.jpg,alpah\n2.jpg,x\n", r"'alpah' \(and 1 more\) is not .*did you mean 'alpha'"),
        ("a\nb\n", "1.jpg,2\n", "labels go from 2 to 2, but 2 classes are named, from 0 on"),
        ("a\nb\n", "1.jpg,-1\n", "labels go from -1 to -1"),
        # One unknown number does not make the others positions.
        ("0\n1\ncat\n", "1.jpg,0\n2.jpg,2\n", "'2' is not among the 3 named there"),
        ("007\n008\n", "1.jpg,1\n", "'1' is not among the 2 named there"),
    ],
)
def test_given_classes_that_do_not_fit_are_told(images, text, table, message):
    (images / "classes.txt").write_text(text)
    (images / "images/t.csv").write_text(table)
    with pytest.raises(UserError, match=message) as caught:
        pack(images / "images/t.csv", images / "out", classes=images / "classes.txt")
    assert "\n" not in str(caught.value) and not (images / "out").exists()


# --- labels beside a flat tar or folder -------------------------------------------------------------


@pytest.fixture
def flat(images):
    """A folder of 1.jpg to 6.jpg, and a tar of it in no order."""
    with tarfile.open(images / "flat.tar", "w") as archive:
        for number in (3, 1, 6, 2, 5, 4):
            archive.add(images / f"images/{number}.jpg", f"images/{number}.jpg")
    return images


def written(folder: Path, labels: str, label_names: str | None) -> dict[str, Path]:
    """Options of ``pack`` that name files with these contents."""
    contents = {"labels": labels, "label_names": label_names}
    options = {name: folder / name for name, content in contents.items() if content is not None}
    for name, path in options.items():
        path.write_text(contents[name], errors="surrogateescape")
    return options


LETTERS = [(2, 0), (3, 0), (1, 1), (5, 1), (4, 2), (6, 2)]  # b a a c b c


@pytest.mark.parametrize(
    ("labels", "label_names"),
    [
        ("b\na\na\nc\nb\nc\n\n", None),
        ("images/6.jpg\tc\n1.jpg\tb\n2.jpg\ta\n3.jpg\ta\n4.jpg\tc\n5.jpg\tb\n", None),
        ("name,class,box\n1.jpg,b,1 2\n2.jpg,a,\n3.jpg,a,\n4.jpg,c,\n5.jpg,b,\n6.jpg,c,\n7.jpg,d\n", None),
        ("1.jpg b\n2.jpg a\n3.jpg a\n4.jpg c\n5.jpg b\n6.jpg c\n", None),
        # As Kaggle's LOC_val_solution.csv: files without suffix, and boxes.
        (
            "ImageId,PredictionString\n" + "".join(f"{i},{'baacbc'[i - 1]} 1 2 3 4\n" for i in range(1, 7)),
            None,
        ),
        ("".join(f"{i}\t{c} 1 2 3 4 {c} 5 6 7 8 \n" for i, c in enumerate("baacbc", 1)), None),
        ("1.jpg 1\n2.jpg 0\n3.jpg 0\n4.jpg 2\n5.jpg 1\n6.jpg 2\n", "a 0\nb 1\nc 2\nd 3\n"),
        ("7\n8\n8\n4\n7\n4\n", "b 7\na 8 some words\nc 4\nd 1\n"),
    ],
)
@pytest.mark.parametrize("source", ["flat.tar", "."])
def test_labels_in_a_file(flat, labels, label_names, source):
    pack(flat / source, flat / "out", **written(flat, labels, label_names))
    assert rows(flat / "out") == LETTERS and classes(flat / "out") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("labels", "label_names", "message"),
    [
        (
            "a\nb\n",
            None,
            "has 2 lines, which are no labels of 6 images; it needs a class name a line in the order",
        ),
        ("a\n\na\na\na\na\n", None, "has 6 lines, which are no labels of 6 images"),
        # A table of other images is not taken for names.
        ("".join(f"x{i},n{i % 3}\n" for i in range(6)), None, "which are no labels of 6 images"),
        ("1.jpg,a\n2.jpg,a\n", None, "has no label for 4 images, images/3.jpg the first"),
        ("1.jpg,a\n2.jpg,a\n1.jpg,b\n", None, "line 3 has another label for 1.jpg"),
        ("1.jpg,a\n2.jpg,\n", None, "line 2 lacks a path or a label"),
        ("1\n2\n3\n1\n2\n3\n", None, "holds numbers; add --label-names FILE"),
        ("1\n2\n3\n1\n2\n3\n", "a 1\nb 2\nc 2\n", "must have lines 'name number'"),
        ("1\n2\n3\n1\n2\n9\n", "a 1\nb 2\nc 3\n", "has no name for 9"),
        ("1\n2\n3\n1\n2\n3\n", "", "--label-names: .* is empty"),
        ("a\na\na\na\na\na\n", "a\n", "--label-names is for numbers, but .* holds names"),
        ('1.jpg,"' + "x" * 200_000, None, "cannot be read as a table"),
        ("\udcff", None, "is not a text file in UTF-8"),
    ],
)
def test_label_files_that_do_not_fit_are_told(flat, labels, label_names, message):
    with pytest.raises(UserError, match=message) as caught:
        pack(flat / "flat.tar", flat / "out", **written(flat, labels, label_names))
    assert "\n" not in str(caught.value) and not (flat / "out").exists()
    with pytest.raises(UserError, match="--label-names says what the numbers of --labels mean"):
        pack(flat / "flat.tar", flat / "out", label_names="names")
