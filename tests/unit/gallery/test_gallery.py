"""Who is nearest, who is unknown, and that a gallery is always one generation or the next."""

import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch

from megaclass import Gallery, UserError
from megaclass.gallery import gallery as gallery_module
from megaclass.gallery import store
from megaclass.gallery.gallery import build
from megaclass.gallery.store import Manifest
from megaclass.inference.vectors import Embeddings

MODEL = {"fingerprint": "f", "model": "m"}
RANDOM = np.random.default_rng(0)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


ROWS = unit(RANDOM.normal(size=(300, 16)))
LABELS = np.sort(np.arange(300) % 60)  # five images an identity
CLASSES = [f"id{number}" for number in range(61)]  # the last without an image


def made(path, **how):
    parts = np.split(np.arange(300), 3)
    blocks = (Embeddings(ROWS[part], [f"{i}.png" for i in part], LABELS[part]) for part in parts)
    build(path, Manifest(**MODEL, **how), blocks, CLASSES)
    return Gallery(path)


def nearest(gallery, queries, top=1):
    return [[match.identity for match in row] for row in gallery.search(queries, top)]


@pytest.mark.parametrize("index", ["exact", "ivf"])
def test_the_nearest_identities_are_found(tmp_path, index):
    if index != "exact":
        pytest.importorskip("faiss")
    gallery = made(tmp_path / "g", index=index, threshold=0.9)
    queries = unit(ROWS[::7] + 0.05 * RANDOM.normal(size=ROWS[::7].shape))
    cosines = queries @ ROWS.T
    scores = np.stack([cosines[:, label == LABELS].max(1) for label in range(60)], 1)
    found = gallery.search(queries, top=60 if index == "exact" else 2)
    best = np.argsort(-scores, axis=1)[:, : len(found[0])]
    assert [[match.identity for match in row] for row in found] == [[f"id{i}" for i in row] for row in best]
    told = [[match.cosine for match in row] for row in found]
    np.testing.assert_allclose(told, np.take_along_axis(scores, best, 1), atol=1e-5)
    assert {match.known for row in found for match in row} == {True, False}
    assert all(match.known == (match.cosine >= 0.9) for row in found for match in row)
    assert [row[0].image for row in found] == [f"{i}.png" for i in range(0, 300, 7)]


@pytest.mark.parametrize("index", ["exact", "ivf"])
def test_what_is_added_is_found_and_what_is_removed_is_deleted(tmp_path, index):
    if index != "exact":
        pytest.importorskip("faiss")
    gallery, reader = made(tmp_path / "g", index=index), Gallery(tmp_path / "g")
    new = unit(RANDOM.normal(size=(2, 16)))
    gallery.add("new", new, ["a", "b"])
    gallery.add("id0", -ROWS[:1])
    assert nearest(gallery, new) == [["new"], ["new"]] and nearest(gallery, -ROWS[:1]) == [["id0"]]
    assert nearest(reader, new) != [["new"], ["new"]]
    assert nearest(reader, ROWS[50:51]) == [["id10"]]
    assert gallery.remove(["id10", "a"]) == 6
    reader.refresh()
    assert len(reader) == len(gallery) == 297 and "id10" not in reader.identities
    assert nearest(reader, new[1:]) == [["new"]] and nearest(reader, ROWS[50:51]) != [["id10"]]
    assert reader.info()["generation"] == 4 and reader.info()["images"] == 297
    held = b"".join(path.read_bytes() for path in (tmp_path / "g").iterdir())
    assert ROWS[0].tobytes() in held and ROWS[50].tobytes() not in held


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (lambda g: g.add("x", ROWS[:1], ["7.png"]), "7.png: is in the gallery already"),
        (lambda g: g.add_blocks([], [], {"fingerprint": "other", "model": "n"}), "embeddings of m, not of n"),
        (lambda g: g.add_blocks([Embeddings(ROWS[:, :4], ["x"], LABELS)], CLASSES, MODEL), "of 4 columns"),
        (lambda g: g.remove(["id3", "nobody"]), "nobody: neither an identity"),
        (lambda g: g.remove(CLASSES[:60]), "nothing would be left"),
        (lambda g: g.search(np.full((1, 16), np.nan)), "finite ones of 16 columns"),
        (lambda g: g.search("photo.jpg"), "opened without a model"),
        (lambda g: made(g.directory), "cannot be made"),
    ],
)
def test_what_is_refused_changes_nothing(tmp_path, work, told):
    gallery = made(tmp_path / "g")
    before = {path.name: path.read_bytes() for path in (tmp_path / "g").iterdir()}
    with pytest.raises(UserError, match=told):
        work(gallery)
    assert {path.name: path.read_bytes() for path in (tmp_path / "g").iterdir()} == before


def test_a_build_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="no image could be embedded"):
        build(tmp_path / "g", Manifest(), [], [])
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize("suffix", [".json", store.VECTORS, store.INDEX])
@pytest.mark.parametrize("harm", ["flipped", "cut", "gone"])
def test_a_damaged_gallery_is_refused_by_the_file(tmp_path, suffix, harm):
    pytest.importorskip("faiss")
    gallery = made(tmp_path / "g", index="ivf")
    (path,) = (tmp_path / "g").glob(f"*{suffix}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # who has it open, has it whole
    if harm != "gone":
        path.write_bytes(content if harm == "flipped" else content[:-9])
    for work in (Gallery, lambda directory: gallery.add("x", ROWS[:1], ["x"])):
        with pytest.raises(UserError, match=path.name):
            work(tmp_path / "g")
    assert nearest(gallery, ROWS[:1]) == [["id0"]]


# -- several processes -----------------------------------------------------------------------------------

FORK = multiprocessing.get_context("fork")


def die_at(place, function, path):
    """A writer that is killed where it would call a function."""
    setattr(place, function, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    add(path, "new", 1)


def add(path, name, times):
    torch.set_num_threads(1)  # of OpenMP, which a fork does not take along
    gallery = Gallery(path)
    for number in range(times):
        gallery.add(name, -ROWS[number : number + 1], [f"{name}-{number}"])


def search_until(path, stop):
    torch.set_num_threads(1)
    while not stop.is_set():
        assert nearest(Gallery(path), ROWS[:2]) == [["id0"], ["id0"]]


@pytest.mark.process
@pytest.mark.parametrize(
    ("place", "function"),
    [(gallery_module, "write_embeddings"), (Manifest, "take"), (store.os, "fsync"), (store, "switch")],
)
def test_a_writer_that_is_killed_leaves_the_generation_before(tmp_path, place, function):
    made(tmp_path / "g")
    writer = FORK.Process(target=die_at, args=(place, function, tmp_path / "g"))
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    gallery = Gallery(tmp_path / "g")
    assert gallery.info()["generation"] == 1 and len(gallery) == 300
    gallery.add("new", -ROWS[:1], ["new"])
    assert nearest(gallery, -ROWS[:1]) == [["new"]]
    left = sorted(path.name for path in (tmp_path / "g").iterdir())
    assert left == [".lock", "000002.safetensors", "manifest.json"]


@pytest.mark.process
def test_two_write_in_turn_while_two_search(tmp_path):
    made(tmp_path / "g")
    stop = FORK.Event()
    readers = [FORK.Process(target=search_until, args=(tmp_path / "g", stop)) for _ in range(2)]
    writers = [FORK.Process(target=add, args=(tmp_path / "g", name, 10)) for name in ("x", "y")]
    for process in (*readers, *writers):
        process.start()
    for writer in writers:
        writer.join()
    stop.set()
    for reader in readers:
        reader.join()
    assert [process.exitcode for process in (*writers, *readers)] == [0, 0, 0, 0]
    gallery = Gallery(tmp_path / "g")
    assert len(gallery) == 320 and gallery.info()["generation"] == 21
