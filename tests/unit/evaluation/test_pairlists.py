import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaclass.data.imagelist import ImageList
from megaclass.errors import UserError
from megaclass.evaluation.pairlists import open_listed_pairs

PAIRS = ["2\t1", "Ann\t1\t2", "Bob\t1\tCy\t12", "Cy\t12\t3", "Ann\t2\tBob\t1"]
NAMES = ["Ann/Ann_0001.jpg", "Ann/Ann_0002.jpg", "Bob/Bob_0001.jpg", "Cy/Cy_0012.jpg", "Cy/Cy_0003.jpg"]


@pytest.fixture(params=["folder", "zip"])
def images(request, tmp_path):
    """Five "images" whose content is their name."""
    root = tmp_path / ("faces.zip" if request.param == "zip" else "faces")
    if request.param == "zip":
        with zipfile.ZipFile(root, "w") as archive:
            for name in NAMES:
                archive.writestr(name, name)
    else:
        for name in NAMES:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(name)
    return root


def write(tmp_path, lines):
    path = tmp_path / "pairs.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_lfw_pairs_and_their_images_are_read(tmp_path, images):
    faces, pairs = open_listed_pairs(write(tmp_path, PAIRS), images)
    assert faces.names == NAMES
    assert pairs.first.tolist() == [0, 2, 3, 1]
    assert pairs.second.tolist() == [1, 3, 4, 2]
    assert pairs.same.tolist() == [True, False, True, False]
    assert pairs.folds == 2
    assert len(faces) == 5 and faces.labels().tolist() == [0] * 5
    assert [faces.read(index).encoded.decode() for index in range(5)] == NAMES


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        *[(1, text, "line 1: expected the number of folds") for text in ("300", "1 2", f"2 {'9' * 5000}")],
        (2, "Ann\t1", "line 2: expected 'name n1 n2', the numbers of two images from 1 on, of one person, found"),
        (3, "Bob\t1\t2", "line 3: expected 'name1 n1 name2 n2', the numbers of two images from 1 on, of two, found"),
        (4, "Cy\t12\tthree", "found 'Cy\\t12\\tthree'"),
        (4, "Cy\t3\t3", "line 4: expected 'name n1 n2'"),
        (5, "Ann\t2\tAnn\t1", "line 5: expected 'name1 n1 name2 n2'"),
        (5, "", "3 pairs, but line 1 announces 2 x 2 x 1 = 4"),
    ],
)  # fmt: skip
def test_a_damaged_line_is_named(tmp_path, line, text, message):
    lines = PAIRS.copy()
    lines[line - 1] = text
    with pytest.raises(UserError) as caught:
        open_listed_pairs(write(tmp_path, lines), tmp_path)
    assert message in str(caught.value) and "pairs.txt" in str(caught.value)


@pytest.mark.parametrize("bob", ["Bo", "B" * 5000])
def test_missing_images_are_named_and_counted(tmp_path, images, bob):
    lines = [line.replace("Bob", bob).replace("Cy\t12\t3", "Cy\t12\t4") for line in PAIRS]
    with pytest.raises(UserError, match=rf"{bob}_0001.jpg is missing, and 1 more of 5 images"):
        open_listed_pairs(write(tmp_path, lines), images)


def test_what_is_no_list_or_no_zip_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        open_listed_pairs(tmp_path / "absent.txt", tmp_path)
    path = write(tmp_path, PAIRS)
    with pytest.raises(UserError, match="not a readable zip"):
        open_listed_pairs(path, path)
    with pytest.raises(UserError, match="no such folder"):
        open_listed_pairs(path, tmp_path / "absent")


def test_an_unreadable_image_is_named(images):
    with pytest.raises(UserError, match="Dee/Dee_0001"):
        ImageList(images, ["Dee/Dee_0001.jpg"]).read(0)


def zip_with(path, flag_bits=0, **changes):
    """A zip file of one member whose two headers tell lies."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", b"pixels" * 100)
    content = bytearray(path.read_bytes())
    for start, flags, method, size in ((0, 6, 8, 22), (content.index(b"PK\x01\x02"), 8, 10, 24)):
        content[start + flags] |= flag_bits
        if "method" in changes:
            content[start + method] = changes["method"]
        if "size" in changes:
            content[start + size : start + size + 4] = changes["size"].to_bytes(4, "little")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flag_bits": 1}, "encrypted"),
        ({"method": 99}, "neither stored nor deflated"),
        ({"method": 14}, "neither stored nor deflated"),  # LZMA
        ({"size": 3 << 28}, "it states 805,306,368 bytes, the limit is 268,435,456"),
        ({"size": 7}, "Bad CRC"),
    ],
)
def test_a_hostile_zip_member_is_named(tmp_path, changes, message):
    faces = ImageList(zip_with(tmp_path / "faces.zip", **changes), ["a.jpg"])
    with pytest.raises(UserError, match=rf"a\.jpg: cannot be read \(.*{message}"):
        faces.read(0)


def test_images_are_read_from_many_threads(tmp_path):
    path = tmp_path / "faces.zip"
    names = [f"{index}.jpg" for index in range(50)]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, name * 500)
    faces = ImageList(path, names)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(faces.read, 8 * list(range(50))))
    assert [sample.encoded.decode() for sample in read] == 8 * [name * 500 for name in names]


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(max_size=60) | st.lists(st.sampled_from([*PAIRS, "2 1", "0\t2", "", "1"]), max_size=7).map("\n".join)
)
def test_any_text_is_a_list_or_a_clear_error(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_text(text, encoding="utf-8")
    try:
        open_listed_pairs(path, Path("/"))
    except UserError as error:
        assert "any.txt" in str(error) or "is missing" in str(error)
