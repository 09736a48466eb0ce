"""Files of embeddings give back what was written, and nothing else is taken for one."""

import io
import os
import zipfile

import numpy as np
import pytest

from megaclass.errors import UserError
from megaclass.inference.vectors import WRITTEN, Embeddings, read_embeddings, write_embeddings

ROWS = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
ROWS /= np.linalg.norm(ROWS, axis=1, keepdims=True)
NAMES = ["a/1.png", "é, 2", "", "line\nfeed", "=4", "5\x1b", os.fsdecode(b"\xff")]
LABELS = np.array([0, 0, 2, 1, 1, 2, 0])


def blocks():
    yield Embeddings(ROWS[:4], NAMES[:4], LABELS[:4])
    yield Embeddings(ROWS[4:], NAMES[4:], LABELS[4:])


@pytest.mark.parametrize("suffix", WRITTEN)
def test_what_is_written_is_read_back(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"vectors{suffix}"
    write_embeddings(path, suffix, blocks(), ["x", "y", "z"], {"model": "m"})
    found = read_embeddings(path)
    np.testing.assert_array_equal(found.embeddings, ROWS)
    names = NAMES if suffix != ".parquet" else [*NAMES[:-1], "\\udcff"]  # whose texts are UTF-8
    assert (found.names, found.labels.tolist(), found.classes) == (names, LABELS.tolist(), ["x", "y", "z"])
    assert found.metadata["model"] == "m"
    assert "megaclass" in found.metadata
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_plain_matrix_is_normalised_and_its_file_is_not_touched(tmp_path):
    np.save(tmp_path / "m.npy", 3 * ROWS.astype(np.float64))
    before = (tmp_path / "m.npy").read_bytes()
    found = read_embeddings(tmp_path / "m.npy")
    np.testing.assert_allclose(found.embeddings, ROWS, atol=1e-6)
    assert (found.names, found.labels) == (list("0123456"), None)
    assert (tmp_path / "m.npy").read_bytes() == before


def saved(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def claiming(shape):
    """An archive whose array says in its header that it is larger."""
    member, file = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("embeddings.npy", member.getvalue() + b"\0" * 64)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "cannot be read as embeddings"),
        (saved(embeddings=np.array([{}], object)), "objects"),
        (saved(vectors=ROWS), "there are no embeddings"),
        (claiming((1 << 40, 512)), "cannot be read as embeddings"),
        (saved(embeddings=ROWS[0]), "there are no embeddings"),
        (saved(embeddings=ROWS, names=np.array(["one"])), "not those of 7 embeddings"),
        (saved(embeddings=ROWS, names=np.arange(7)), "names and classes are no texts"),
        (saved(embeddings=ROWS, labels=LABELS, classes=np.array(["x"])), "beyond the classes"),
        (saved(embeddings=np.where(np.arange(7)[:, None] == 3, np.nan, ROWS)), "row 3 is zero or not finite"),
        (saved(embeddings=ROWS)[:-200], "cannot be read as embeddings"),
    ],
)
def test_what_is_no_file_of_embeddings_is_refused_by_name(tmp_path, content, told):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(UserError, match=told) as raised:
        read_embeddings(tmp_path / "bad.npz")
    assert "bad.npz" in str(raised.value)


def test_nothing_is_written_of_no_images(tmp_path):
    with pytest.raises(UserError, match="no image could be embedded"):
        write_embeddings(tmp_path / "v.npz", ".npz", iter(()), None, {})
    assert list(tmp_path.iterdir()) == []
