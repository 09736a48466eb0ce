"""A gallery of known identities, searched by images or by their embeddings.

Shapes: N = images, D = embedding columns, Q = queries, K = rows that are found.
"""

import itertools
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from megaclass.errors import UserError, extra
from megaclass.gallery import store
from megaclass.gallery.store import INDEX, VECTORS, Manifest
from megaclass.inference.embedding import metadata
from megaclass.inference.images import Pictures
from megaclass.inference.model import Model, nearest
from megaclass.inference.vectors import Embeddings, read_embeddings, write_embeddings

_QUERIES, _BLOCK_ROWS = 256, 1 << 15  # at once
# Of an index: the least rows that faiss wants to learn a list from, and lists that are searched.
_LIST_ROWS, _PROBES = 39, 128


class Match(NamedTuple):
    """An identity, the cosine of its nearest image and its name, and whether it is at the threshold or above."""

    identity: str
    cosine: float
    image: str
    known: bool


class _Generation:
    """One generation, whose embeddings stay in their file, which searches share. UserError for a damaged one."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.manifest = manifest
        self.stored = read_embeddings(manifest.checked(directory, VECTORS))
        labels_N, classes = self.stored.labels, self.stored.classes
        if labels_N is None or classes is None:
            raise UserError(f"{directory}: holds embeddings without identities; build it anew")
        present, self.identity_N = np.unique(labels_N, return_inverse=True)
        self.identities = [classes[label] for label in present]
        self.rows_ND = torch.from_numpy(self.stored.embeddings)
        self.columns = self.rows_ND.shape[1]
        if manifest.index != "exact":
            self.index = extra("faiss", "gallery").read_index(str(manifest.checked(directory, INDEX)))

    def nearest(self, queries_QD: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and rows (Q, K) of the nearest images; of an index that finds fewer, -1."""
        if self.manifest.index != "exact":
            return self.index.search(queries_QD, count)
        starts = range(0, len(self.rows_ND), _BLOCK_ROWS)
        blocks = zip(starts, self.rows_ND.split(_BLOCK_ROWS), strict=True)
        rows_QK, best_QK = nearest(torch.from_numpy(queries_QD), blocks, count)
        return best_QK.numpy(), rows_QK.numpy()

    def ranked(self, queries_QD: np.ndarray, top: int) -> Iterator[list[Match]]:
        """The nearest identities of each query: more rows are asked for until there are ``top`` identities."""
        total, top = len(self.rows_ND), min(top, len(self.identities))
        count, left = min(4 * top, total), list(range(len(queries_QD)))
        found: list[dict[int, tuple[float, int]]] = [{} for _ in left]
        while left:
            tables = (table.tolist() for table in self.nearest(queries_QD[left], count))
            asked, left = left, []
            for query, cosines, rows in zip(asked, *tables, strict=True):
                for cosine, row in zip(cosines, rows, strict=True):
                    if row >= 0:
                        found[query].setdefault(int(self.identity_N[row]), (min(max(cosine, -1.0), 1.0), row))
                if len(found[query]) < top and count < total and rows[-1] >= 0:
                    left.append(query)
            count = min(4 * count, total)
        least = self.manifest.threshold if self.manifest.threshold is not None else -math.inf
        for best in found:
            yield [
                Match(self.identities[one], cosine, self.stored.names[row], cosine >= least)
                for one, (cosine, row) in itertools.islice(best.items(), top)
            ]

    def blocks(self, kept_N: np.ndarray) -> Iterator[Embeddings]:
        """The images of which ``kept_N`` is true."""
        for rows in np.array_split(np.flatnonzero(kept_N), 1 + len(kept_N) // _BLOCK_ROWS):
            names = [self.stored.names[row] for row in rows.tolist()]
            yield Embeddings(self.stored.embeddings[rows], names, self.identity_N[rows])


class Gallery:
    """Opened from a directory that ``megaclass gallery build`` has made, with the model whose embeddings it holds;
    without one, embeddings alone are searched for.

    Several threads and processes may search while one changes it: what is open stays as it is, see :meth:`refresh`.
    UserError for a directory that is no gallery or is damaged, and for another model.
    """

    def __init__(self, directory: str | Path, model: Model | None = None) -> None:
        self.directory, self.model = Path(directory), model
        self._now = self._opened()
        if model is not None:
            self.require(metadata(model))

    @property
    def threshold(self) -> float | None:
        """The cosine below which somebody is unknown."""
        return self._now.manifest.threshold

    @property
    def identities(self) -> list[str]:
        return self._now.identities

    def __len__(self) -> int:
        """The number of images."""
        return len(self._now.identity_N)

    def info(self) -> dict[str, Any]:
        """What it holds, as JSON has it."""
        about = vars(self._now.manifest).copy()
        about["bytes"] = sum(size for size, _ in about.pop("files").values())
        return {
            "identities": len(self.identities),
            "images": len(self),
            "columns": self._now.columns,
            **about,
        }

    def search(self, images: Any, top: int = 5) -> list[list[Match]]:
        """The ``top`` nearest identities of each image, the nearest first.

        images: as :meth:`Model.embed` takes them, or embeddings, floats (N, D).
        """
        if top < 1:
            raise UserError(f"top: {top} is too few; ask for 1 identity or more")
        vectors_ND, now = self._embedded(images), self._now
        starts = range(0, len(vectors_ND), _QUERIES)
        return [found for start in starts for found in now.ranked(vectors_ND[start : start + _QUERIES], top)]

    def refresh(self) -> None:
        """Take up what others have changed since it was opened."""
        if store.read(self.directory).generation != self._now.manifest.generation:
            self._now = self._opened()

    def add(self, identity: str, images: Any, names: Sequence[str] | None = None) -> None:
        """Images of an identity, or embeddings (N, D). ``names``: what they are called, by default their paths."""
        vectors_ND = self._embedded(images)
        if names is None:
            told = f"{identity} {len(self)}+{{}}".format if _are_embeddings(images) else Pictures(images).describe
            names = [told(i) for i in range(len(vectors_ND))]
        block = Embeddings(vectors_ND, list(names), np.zeros(len(vectors_ND), np.int64))
        self.add_blocks([block], [identity], vars(self._now.manifest))

    def add_blocks(self, blocks: Iterable[Embeddings], classes: Sequence[str], about: Mapping[str, Any]) -> None:
        """Images labelled by ``classes``, of the model that ``about`` tells of. UserError for an image whose name is in
        the gallery already: nothing is changed then."""
        with store.writing(self.directory):
            self._now = self._opened()  # whole, or nothing is built on it
            self.require(about)
            now, known = self._now, set(self._now.stored.names)
            number_of = {name: number for number, name in enumerate(now.identities)}
            numbers = np.array([number_of.setdefault(name, len(number_of)) for name in classes])

            def new() -> Iterator[Embeddings]:
                for block in blocks:
                    if twice := next((name for name in block.names if name in known), None):
                        raise UserError(f"{twice}: is in the gallery already; remove it first, or name others")
                    if (columns := block.embeddings.shape[1]) != now.columns:
                        raise UserError(f"embeddings of {columns} columns, the gallery has {now.columns}")
                    yield replace(block, labels=numbers[block.labels])

            everything = itertools.chain(now.blocks(np.ones(len(self), bool)), new())
            self._now = _write(self.directory, now.manifest, everything, list(number_of), grows=True)

    def remove(self, names: Sequence[str]) -> int:
        """Identities, or single images, by their names; returns how many images went. Their embeddings are deleted."""
        with store.writing(self.directory):
            self._now = self._opened()
            now, kept_N = self._now, np.ones(len(self), bool)
            number_of = {identity: number for number, identity in enumerate(now.identities)}
            row_of = {image: row for row, image in enumerate(now.stored.names)}
            for name in names:
                if name not in number_of and name not in row_of:
                    raise UserError(f"{name}: neither an identity of the gallery nor an image; name one")
                kept_N[now.identity_N == number_of[name] if name in number_of else row_of[name]] = False
            if not kept_N.any():
                raise UserError(f"{self.directory}: nothing would be left; delete the directory instead")
            self._now = _write(self.directory, now.manifest, now.blocks(kept_N), now.identities)
        return int((~kept_N).sum())

    def require(self, about: Mapping[str, Any]) -> None:
        """UserError unless embeddings of the model that ``about`` tells of belong into the gallery."""
        manifest = self._now.manifest
        if manifest.fingerprint and about.get("fingerprint") != manifest.fingerprint:
            raise UserError(
                f"{self.directory}: holds embeddings of {manifest.model}, not of {about.get('model', 'this model')}: "
                "cosines of two models mean nothing; name that model, or build a gallery of this one"
            )

    def _opened(self) -> _Generation:
        while True:
            manifest = store.read(self.directory)
            try:
                return _Generation(self.directory, manifest)
            except UserError:
                if store.read(self.directory).generation == manifest.generation:
                    raise  # else a writer has deleted what was read

    def _embedded(self, images: Any) -> np.ndarray:
        if self.model is None and not _are_embeddings(images):
            raise UserError(f"{self.directory}: opened without a model, give embeddings (N, {self._now.columns})")
        given_ND = images if _are_embeddings(images) or self.model is None else self.model.embed(images)
        if given_ND.shape[1] != self._now.columns or not (np.isfinite(given_ND).all() and given_ND.any(1).all()):
            raise UserError(f"embeddings {given_ND.shape}: finite ones of {self._now.columns} columns are searched for")
        return F.normalize(torch.from_numpy(given_ND.astype(np.float32))).numpy()


def _are_embeddings(images: Any) -> bool:
    return isinstance(images, np.ndarray) and images.ndim == 2 and images.dtype.kind == "f"


def build(directory: Path, manifest: Manifest, blocks: Iterable[Embeddings], classes: Sequence[str]) -> None:
    """Make a gallery of labelled images; ``manifest`` says of which model, and how it is searched. UserError for a
    directory that exists."""
    try:
        directory.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{directory}: cannot be made: {error.strerror}; name a new directory") from None
    try:
        with store.writing(directory):
            _write(directory, manifest, blocks, list(classes))
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def _write(
    directory: Path, before: Manifest, blocks: Iterable[Embeddings], classes: list[str], grows: bool = False
) -> _Generation:
    """Write the generation after ``before`` and make it the present one. ``grows``: it begins with all its images."""
    manifest = replace(before, generation=before.generation + 1, files={})
    about = {"fingerprint": manifest.fingerprint, "model": manifest.model}
    write_embeddings(manifest.path(directory, VECTORS), VECTORS, blocks, classes, about)
    manifest.take(directory, VECTORS)
    if manifest.index != "exact":
        _write_index(directory, before if grows else None, manifest)
    made = _Generation(directory, manifest)
    store.switch(directory, manifest)
    return made


def _write_index(directory: Path, before: Manifest | None, manifest: Manifest) -> None:
    """Of all images: that of ``before`` with the new ones added, or a new one."""
    faiss = extra("faiss", "gallery")
    rows_ND = _Generation(directory, replace(manifest, index="exact")).rows_ND
    old = before and faiss.read_index(str(before.path(directory, INDEX)))
    index = old or _new_index(faiss, rows_ND)
    for block in rows_ND[index.ntotal :].split(_BLOCK_ROWS):
        index.add(block.numpy())
    faiss.write_index(index, str(manifest.path(directory, INDEX)))
    manifest.take(directory, INDEX)


def _new_index(faiss: Any, rows_ND: torch.Tensor) -> Any:
    """Trained on these rows, and empty."""
    total, columns = rows_ND.shape
    lists = max(1, min(4 * math.isqrt(total), total // _LIST_ROWS))
    index = faiss.index_factory(columns, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    index.nprobe = _PROBES
    drawn = torch.randperm(total, generator=torch.Generator().manual_seed(0))[: _LIST_ROWS * lists]
    index.train(rows_ND[drawn].numpy())
    return index
