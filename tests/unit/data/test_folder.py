"""Image folders: order, what counts as an image, and bad input."""

import pickle

import numpy as np
import pytest

from megaclass.data.dataset import DamagedSampleError
from megaclass.data.folder import FolderDataset
from megaclass.errors import UserError


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def test_classes_and_images_are_sorted_and_found_at_any_depth(tmp_path, caplog):
    touch(tmp_path, "b/2.JPEG", "b/1.jpg", "a/deep/x.PNG", "a/z.webp", "c/i.gif", "c/h.Bmp", "c/k.jpeg")
    touch(tmp_path, "a/x.HEIC", "a/notes.txt", "a/._z.jpg", "a/.cache/i.jpg", ".git/i.jpg", "stray.jpg")
    dataset = pickle.loads(pickle.dumps(FolderDataset(tmp_path)))
    assert dataset.classes == ["a", "b", "c"] and dataset.num_classes == 3
    names = ["a/deep/x.PNG", "a/z.webp", "b/1.jpg", "b/2.JPEG", "c/h.Bmp", "c/i.gif", "c/k.jpeg"]
    assert [tuple(dataset.read(i)) for i in range(len(dataset))] == [
        (name.encode(), "abc".index(name[0])) for name in names
    ]
    assert dataset.labels().tolist() == [0, 0, 1, 1, 2, 2, 2] and dataset.labels().dtype == np.int64
    assert dataset.describe(3) == f"{tmp_path}/b/2.JPEG"
    assert "no images by their suffix: 1 .txt, 1 .heic" in caplog.text


def test_a_class_without_images_keeps_its_number(tmp_path, caplog):
    touch(tmp_path, "a/1.jpg", "c/1.jpg", "b/readme.txt")
    dataset = FolderDataset(tmp_path)
    assert dataset.labels().tolist() == [0, 2] and dataset.num_classes == 3
    assert f"{tmp_path}/b holds no images" in caplog.text


def test_bad_input_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a directory"):
        FolderDataset(tmp_path / "nowhere")
    touch(tmp_path, "1.jpg")
    with pytest.raises(UserError, match=r"no class directories at depth 1.*pack --labels FILE"):
        FolderDataset(tmp_path)
    touch(tmp_path, "a/readme.txt")
    with pytest.raises(UserError, match="holds no images"):
        FolderDataset(tmp_path)
    touch(tmp_path, "a/1.jpg", "a/2.jpg")
    dataset = FolderDataset(tmp_path)
    (tmp_path / "a/1.jpg").unlink()
    (tmp_path / "a/2.jpg").write_bytes(b"")
    with pytest.raises(DamagedSampleError, match=r"a/1\.jpg cannot be read"):
        dataset.read(0)
    with pytest.raises(DamagedSampleError, match=r"a/2\.jpg is an empty file"):
        dataset.read(1)


def test_classes_may_lie_deeper(tmp_path):
    touch(tmp_path, "Greek/alpha/1.png", "Greek/beta/1.png", "Latin/a/1.png", "Latin/a/2.png")
    dataset = FolderDataset(tmp_path, class_depth=2)
    assert dataset.classes == ["Greek/alpha", "Greek/beta", "Latin/a"]
    assert dataset.labels().tolist() == [0, 1, 2, 2]
    with pytest.raises(UserError, match="no class directories at depth 3"):
        FolderDataset(tmp_path, class_depth=3)
