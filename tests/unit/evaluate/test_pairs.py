import threading
import zipfile

import numpy as np
import pytest

from megaclass.data.imagelist import ImageList
from megaclass.errors import UserError
from megaclass.evaluate.pairs import generate_pairs, read_lfw_pairs


def labels_of(sizes, seed=0):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)) * 7, sizes))


def folds_of(pairs):
    return np.array_split(np.arange(len(pairs)), pairs.folds)


def check(pairs, labels):
    """What every generated set must hold: truth, balance fold by fold, no pair twice."""
    assert np.array_equal(labels[pairs.first] == labels[pairs.second], pairs.same)
    assert (pairs.first != pairs.second).all()
    unordered = {frozenset(pair) for pair in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)}
    assert len(unordered) == len(pairs)
    for fold in folds_of(pairs):
        half = len(fold) // 2
        assert pairs.same[fold[:half]].all() and not pairs.same[fold[half:]].any() and len(fold) == 2 * half


@pytest.mark.parametrize(
    "sizes", [[20] * 60, [2] * 300, [500, *[2] * 100], list(range(1, 80)), [1] * 200 + [5] * 40]
)
def test_generated_pairs_are_balanced_and_folds_share_no_identity(sizes):
    labels = labels_of(sizes)
    pairs = generate_pairs(labels, 200, seed=3)
    check(pairs, labels)
    assert len(pairs) == 200
    owners = [set(labels[pairs.first[fold]]) | set(labels[pairs.second[fold]]) for fold in folds_of(pairs)]
    assert sum(map(len, owners)) == len(set().union(*owners))


def test_same_identity_pairs_spread_over_identities():
    labels = labels_of([400, *[4] * 99])
    pairs = generate_pairs(labels, 1000, seed=0)
    _, per_identity = np.unique(labels[pairs.first[pairs.same]], return_counts=True)
    assert len(per_identity) == 100 and per_identity.max() <= 6


def test_one_seed_is_one_list():
    labels = labels_of([10] * 50)
    one, again, other = (generate_pairs(labels, 400, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.first, again.first) and np.array_equal(one.second, again.second)
    assert not np.array_equal(one.first, other.first)


def test_few_identities_are_shared_by_the_folds_with_a_warning(caplog):
    labels = labels_of([30] * 6)
    pairs = generate_pairs(labels, 400, seed=0)
    check(pairs, labels)
    assert len(pairs) == 400
    assert "6 identities (6 with two images) are too few for 10 folds" in caplog.text


@pytest.mark.parametrize(("sizes", "count"), [([2] * 20, 40), ([3] * 20, 120), ([5] * 4, 80)])
def test_a_small_set_gives_all_it_has(sizes, count):
    labels = labels_of(sizes)
    pairs = generate_pairs(labels, 10_000, seed=0)
    check(pairs, labels)
    assert len(pairs) == count


def test_counts_round_down_to_whole_folds():
    assert len(generate_pairs(labels_of([10] * 50), 239, seed=0)) == 220


@pytest.mark.parametrize("sizes", [[], [1] * 30, [30]])
def test_a_set_without_both_kinds_is_refused(sizes):
    with pytest.raises(UserError, match="two identities and two images of one"):
        generate_pairs(labels_of(sizes), 100, seed=0)


@pytest.mark.parametrize(("count", "folds"), [(10, 10), (100, 1)])
def test_too_few_pairs_or_folds_are_refused(count, folds):
    with pytest.raises(
        UserError, match=rf"evaluate\.pairs: {count} pairs cannot fill evaluate\.folds {folds}"
    ):
        generate_pairs(labels_of([10] * 50), count, seed=0, folds=folds)


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
    names, pairs = read_lfw_pairs(write(tmp_path, PAIRS), images)
    assert names == NAMES
    assert pairs.first.tolist() == [0, 2, 3, 1]
    assert pairs.second.tolist() == [1, 3, 4, 2]
    assert pairs.same.tolist() == [True, False, True, False]
    assert pairs.folds == 2
    faces = ImageList(images, names)
    assert len(faces) == 5 and faces.labels().tolist() == [0] * 5
    assert [faces.read(index).encoded.decode() for index in range(5)] == NAMES


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (1, "300", "line 1: expected the number of folds"),
        (1, "two 1", "line 1: expected the number of folds"),
        (1, "1 2", "line 1: 1 fold; two are needed"),
        (1, f"2 {'9' * 5000}", "line 1: expected the number of folds"),
        (4, f"Cy\t12\t{'9' * 5000}", f"image numbers are whole numbers from 1, found 12 and {'9' * 20}"),
        (2, "Ann\t1", "line 2: expected 3 columns 'name n1 n2', found 2"),
        (3, "Bob\t1\t2", "line 3: expected 4 columns 'name1 n1 name2 n2', found 3"),
        (4, "Cy\t12\tthree", "line 4: image numbers are whole numbers from 1, found 12 and three"),
        (4, "Cy\t3\t3", "line 4: the pair names Cy/Cy_0003.jpg"),
        (5, "Ann\t2\tAnn\t1", "line 5: the pair names Ann/Ann_0002.jpg"),
        (5, "", "3 pairs, but line 1 announces 2 x 2 x 1 = 4"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, images, line, text, message):
    lines = PAIRS.copy()
    lines[line - 1] = text
    with pytest.raises(UserError) as caught:
        read_lfw_pairs(write(tmp_path, lines), images)
    assert message in str(caught.value) and "pairs.txt" in str(caught.value)


def test_missing_images_are_named_and_counted(tmp_path, images):
    lines = [line.replace("Bob", "Bo").replace("Cy\t12\t3", "Cy\t12\t4") for line in PAIRS]
    with pytest.raises(UserError, match=r"Bo/Bo_0001.jpg is missing, and 1 more of 5 images"):
        read_lfw_pairs(write(tmp_path, lines), images)


def test_what_is_no_list_or_no_zip_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_lfw_pairs(tmp_path / "absent.txt", tmp_path)
    path = write(tmp_path, PAIRS)
    with pytest.raises(UserError, match="neither a folder nor a readable zip"):
        read_lfw_pairs(path, path)
    with pytest.raises(UserError, match="not a readable zip"):
        ImageList(path, NAMES)
    with pytest.raises(UserError, match="no such folder"):
        ImageList(tmp_path / "absent", NAMES)


def test_an_unreadable_image_is_named(images):
    with pytest.raises(UserError, match="Dee/Dee_0001"):
        ImageList(images, ["Dee/Dee_0001.jpg"]).read(0)


def test_a_damaged_zip_member_is_named(tmp_path):
    path = tmp_path / "faces.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jpg", b"pixels" * 100)
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a.jpg: cannot be read \(Bad CRC"):
        ImageList(path, ["a.jpg"]).read(0)


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
    faces, wrong = ImageList(path, names), []

    def read_all():
        wrong.extend(
            name for index, name in enumerate(names) if faces.read(index).encoded != (name * 500).encode()
        )

    threads = [threading.Thread(target=read_all) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
