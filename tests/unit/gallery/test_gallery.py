"""Who is nearest, who is unknown, and that a gallery is always one generation or the next."""

import numpy as np
import pytest

from megaclass import Gallery
from megaclass.gallery import INDEXES
from megaclass.gallery.gallery import build
from megaclass.gallery.store import Manifest
from megaclass.inference.vectors import Block

MODEL = {"fingerprint": "f", "model": "m"}
RANDOM = np.random.default_rng(0)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


ROWS = unit(RANDOM.normal(size=(300, 16)))
LABELS = np.sort(np.arange(300) % 60)  # five images an identity
CLASSES = [f"id{number}" for number in range(61)]  # the last without an image


def made(path, **how):
    blocks = (
        Block([f"{i}.png" for i in part], ROWS[part], LABELS[part]) for part in np.split(np.arange(300), 3)
    )
    build(path, Manifest(**MODEL, **how), blocks, CLASSES)
    return Gallery(path)


def expected(queries, template, top):
    """Identities by their definition, and their cosines."""
    cosines = queries @ ROWS.T
    scores = np.stack([cosines[:, label == LABELS].max(1) for label in range(60)], 1)
    if template == "mean":
        scores = queries @ unit(np.stack([ROWS[label == LABELS].mean(0) for label in range(60)])).T
    best = np.argsort(-scores, axis=1)[:, :top]
    return [[f"id{one}" for one in row] for row in best], np.take_along_axis(scores, best, 1)


@pytest.mark.parametrize("template", ["max", "mean"])
@pytest.mark.parametrize("index", INDEXES)
def test_the_nearest_identities_are_found(tmp_path, index, template):
    if index != "exact":
        pytest.importorskip("faiss")
    threshold = 0.9 if template == "max" else 0.4
    gallery = made(tmp_path / "g", index=index, template=template, threshold=threshold)
    queries = unit(ROWS[::7] + 0.05 * RANDOM.normal(size=ROWS[::7].shape))
    found = gallery.search(queries, top=60 if index == "exact" else 2)
    names, cosines = expected(queries, template, len(found[0]))
    assert [[match.identity for match in row] for row in found] == names
    np.testing.assert_allclose([[match.cosine for match in row] for row in found], cosines, atol=1e-5)
    assert {match.known for row in found for match in row} == {True, False}
    assert all(match.known == (match.cosine >= threshold) for row in found for match in row)
    if template == "max":
        assert [row[0].image for row in found] == [f"{i}.png" for i in range(0, 300, 7)]
