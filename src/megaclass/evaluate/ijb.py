"""IJB-B and IJB-C as arcface_torch's eval_ijbc.py scores them, 1:1, and InsightFace's ijb_1n.py, 1:N.

A template is several images of one person; those of one video (``media``) count as one. The directory holds
``meta/ijbc_face_tid_mid.txt`` (a line an image: name, template, media), ``meta/ijbc_template_pair_label.txt`` (two
templates, 1 for one person), ``meta/ijbc_name_5pts_score.txt`` (name, five points, score of the detector) and
``loose_crop/``; for 1:N ``meta/ijbc_1N_gallery_G1.csv``, ``.._G2.csv`` (IJB-B: S1, S2) and ``.._probe_mixed.csv``.

Shapes: N = images, D = embedding columns, T = templates, P = pairs, M = groups of images by template and media, K =
different scores.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from megaclass.data.dataset import read_text
from megaclass.data.imagelist import ImageList
from megaclass.errors import UserError, first_line
from megaclass.evaluate.embed import gathered
from megaclass.evaluate.identification import rank_shares, search, tpir
from megaclass.evaluate.metrics import LOW_FAR_TARGETS, Show, curve
from megaclass.evaluate.protocol import Prepared
from megaclass.files import open_regular
from megaclass.parallel.groups import on_main_rank, rank, shard_range, world_size

IMAGES = "directory of IJB-B or IJB-C, with meta/ and loose_crop/"
OPTIONS = {
    "no-norm": (False, "images count alike in a template, not by the norms of their embeddings (N0)"),
    "no-detector": (False, "nor by the scores of the detector (D0)"),
    "no-flip": (False, "without the embeddings of mirrored images (F0)"),
}
FPIR_TARGETS = {"1e-2": 1e-2, "1e-1": 1e-1}
_POINTS = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
_BLOCK_PAIRS = 100_000
_BLOCK_TEMPLATES = 1000


def prepare(path: str, options: Mapping[str, Any]) -> Prepared:
    meta = Path(path) / "meta"
    found = sorted(meta.glob("ijb?_face_tid_mid.txt"))
    if len(found) != 1:
        what = "no" if not found else "more than one"
        raise UserError(f"{path}: {what} meta/ijb?_face_tid_mid.txt; name the directory of IJB-B or IJB-C")
    name = found[0].name[:4]
    template_N, media_N = _table(found[0], (1, 2)).T
    names, points_N52, detector_N = _images(meta / f"{name}_name_5pts_score.txt")
    if len(names) != len(template_N):
        raise UserError(
            f"{found[0]}: {len(template_N)} lines, but {name}_name_5pts_score.txt has {len(names)}; bring both as "
            "published"
        )
    templates_T = np.unique(template_N)
    listed = meta / f"{name}_template_pair_label.txt"
    pairs_P3 = _table(listed, (0, 1, 2))
    pairs_P2, same_P = _known(pairs_P3[:, :2], templates_T, listed), pairs_P3[:, 2] == 1
    if not (same_P | (pairs_P3[:, 2] == 0)).all() or same_P.all() or not same_P.any():
        raise UserError(
            f"{listed}: the third number is 1 for a pair of one person, else 0, and there are both"
        )
    searched = _searched(meta, name, templates_T)

    def measure(embeddings_ND: np.ndarray, show: Show) -> dict[str, Any]:
        weight_N = np.ones(len(names), np.float32) if options["no_detector"] else detector_N
        if options["no_norm"]:
            with np.errstate(invalid="ignore", divide="ignore"):
                weight_N = weight_N / np.linalg.norm(embeddings_ND, axis=1)
        templates_TD = template_embeddings(embeddings_ND, weight_N, template_N, media_N)
        scores_P = _pair_scores(templates_TD, pairs_P2, show)
        metrics = on_main_rank(lambda: roc_metrics(scores_P, same_P))
        return metrics | (_search_metrics(templates_TD, *searched, show) if searched else {})

    return Prepared(
        len(names),
        lambda: LooseCrops(Path(path) / "loose_crop", names, points_N52),
        measure,
        norms=True,
        flip=not options["no_flip"],
    )


class LooseCrops(ImageList):
    """Photographs around a face, each turned to the five points of ArcFace's template, 112 x 112, once decoded."""

    def __init__(self, root: Path, names: Sequence[str], points_N52: np.ndarray) -> None:
        super().__init__(root, names)
        self._points_N52 = points_N52

    def orient(self, index: int, image_HWC: np.ndarray) -> np.ndarray:
        """Turned, scaled and moved so that the squared distances to the template are least (Umeyama, 1991)."""
        points, wanted = (p[:, 0] + 1j * p[:, 1] for p in (self._points_N52[index], _POINTS))
        from_middle = points - points.mean()
        turn = np.vdot(from_middle, wanted) / max(np.vdot(from_middle, from_middle).real, 1e-9)
        move = wanted.mean() - turn * points.mean()
        matrix = np.array([[turn.real, -turn.imag, move.real], [turn.imag, turn.real, move.imag]])
        return cv2.warpAffine(image_HWC, matrix, (112, 112))


def template_embeddings(
    embeddings_ND: np.ndarray, weight_N: np.ndarray, template_N: np.ndarray, media_N: np.ndarray
) -> np.ndarray:
    """The L2-normalised sum over medias of the mean over a media's images, each with its weight: fp64 (T, D), in the
    order of the templates' numbers. A template with an embedding that is not finite is NaN."""
    order_N = np.lexsort((media_N, template_N))
    key_N2 = np.stack([template_N, media_N], axis=1)[order_N]
    start_M = np.append(0, 1 + np.flatnonzero((key_N2[1:] != key_N2[:-1]).any(axis=1)))
    _, start_T = np.unique(key_N2[start_M, 0], return_index=True)
    end_M, end_T = np.append(start_M, len(order_N)), np.append(start_T, len(start_M))
    made = []
    for first in range(0, len(start_T), _BLOCK_TEMPLATES):
        here_T = end_T[first : first + _BLOCK_TEMPLATES + 1]  # and where they end
        here_M = end_M[here_T[0] : here_T[-1] + 1]
        images = order_N[here_M[0] : here_M[-1]]
        rows_ND = embeddings_ND[images].astype(np.float64) * weight_N[images, None]
        means_MD = np.add.reduceat(rows_ND, here_M[:-1] - here_M[0]) / np.diff(here_M)[:, None]
        made.append(np.add.reduceat(means_MD, here_T[:-1] - here_T[0]))
    sums_TD = np.concatenate(made)
    norms_T1 = np.linalg.norm(sums_TD, axis=1, keepdims=True)
    return sums_TD / np.where(norms_T1 == 0, 1, norms_T1)


def _pair_scores(templates_TD: np.ndarray, pairs_P2: np.ndarray, show: Show) -> np.ndarray:
    """The cosine of each pair, fp64 (P,): each rank computes its share."""
    start, stop = shard_range(len(pairs_P2), rank(), world_size())
    mine = np.empty(stop - start)
    for first in range(start, stop, _BLOCK_PAIRS):
        one, other = pairs_P2[first : min(first + _BLOCK_PAIRS, stop)].T
        cosines = np.einsum("pd,pd->p", templates_TD[one], templates_TD[other])
        mine[first - start :][: len(one)] = cosines
        show(first - start + len(one), stop - start)
    return gathered(torch.from_numpy(mine), len(pairs_P2)).numpy()


def roc_metrics(scores_P: np.ndarray, same_P: np.ndarray) -> dict[str, Any]:
    """``tar_at_far`` as the script has it: at the point of scikit-learn's ROC curve (which leaves out points on a line
    between others) whose FAR is nearest to the target, above it or below; None below 1/FAR impostor pairs.
    ``threshold_at_far``, ``auc``, ``roc``: see :func:`megaclass.evaluate.metrics.curve`. The scores are sorted in
    place: of 15 million pairs a copy more would be felt.
    """
    failed_P = np.isnan(scores_P)
    scores_P[failed_P] = np.where(same_P[failed_P], -np.inf, np.inf)
    same_P = same_P[np.argsort(scores_P)][::-1]
    scores_P.sort()
    falling_P = scores_P[::-1]
    last_K = np.flatnonzero(np.append(falling_P[1:] != falling_P[:-1], True))  # pair of each different score
    genuine_K = np.cumsum(same_P)[last_K]
    impostor_K = last_K + 1 - genuine_K
    cosine_K = np.append(np.inf, falling_P[last_K])
    metrics = curve(np.append(0, genuine_K), np.append(0, impostor_K), cosine_K, LOW_FAR_TARGETS)
    corner_K = np.ones(len(last_K), bool)
    corner_K[1:-1] = (np.diff(genuine_K, 2) != 0) | (np.diff(impostor_K, 2) != 0)
    far_K, tar_K = (np.append(0, counts[corner_K])[::-1] / counts[-1] for counts in (impostor_K, genuine_K))
    for name, target in LOW_FAR_TARGETS.items():
        if metrics["tar_at_far"][name] is not None:
            metrics["tar_at_far"][name] = float(tar_K[np.abs(far_K - target).argmin()])
    return metrics | {"genuine_pairs": int(genuine_K[-1]), "impostor_pairs": int(impostor_K[-1])}


def _search_metrics(
    templates_TD: np.ndarray, gallery_G2: np.ndarray, probes_P2: np.ndarray, show: Show
) -> dict[str, Any]:
    """``rank_k``, and ``tpir_at_fpir`` as InsightFace's script has it: the threshold is the cosine that FPIR x probes
    pairs of a probe and another subject of the gallery reach."""
    most = int(np.ceil(max(FPIR_TARGETS.values()) * len(probes_P2)))
    gallery_GD, probes_PD = templates_TD[gallery_G2[:, 0]], templates_TD[probes_P2[:, 0]]
    found = search(probes_PD, probes_P2[:, 1], gallery_GD, gallery_G2[:, 1], most, show)
    shares = tpir(found.mate, found.others, len(probes_P2), FPIR_TARGETS)
    return rank_shares(found.rank) | {
        "tpir_at_fpir": shares,
        "probes": len(probes_P2),
        "identities": len(gallery_G2),
    }


# -- lists ----------------------------------------------------------------------------------------------


def _table(path: Path, columns: Sequence[int], delimiter: str | None = None, skip: int = 0) -> np.ndarray:
    """Numbers of a list, int32 (lines, columns). UserError, with the line, for what is none."""
    try:
        with open_regular(path, encoding="utf-8") as file:
            return np.loadtxt(file, np.int32, usecols=columns, delimiter=delimiter, skiprows=skip, ndmin=2)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; bring it as published") from None
    except (ValueError, IndexError) as error:
        raise UserError(f"{path}: damaged ({first_line(error)}); bring it as published") from None


def _images(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, five points fp64 (N, 5, 2) and detector's scores fp32 (N,) of the images."""
    rows = [line.split() for line in read_text(path, "images").splitlines()]
    if wrong := next((number for number, row in enumerate(rows, 1) if len(row) != 12), None):
        raise UserError(f"{path} line {wrong}: expected a name, ten numbers for five points, and a score")
    try:
        numbers_NK = np.array([row[1:] for row in rows], np.float64).reshape(-1, 11)
    except ValueError as error:
        raise UserError(f"{path}: damaged ({first_line(error)}); bring it as published") from None
    return (
        [row[0] for row in rows],
        numbers_NK[:, :10].reshape(-1, 5, 2),
        numbers_NK[:, 10].astype(np.float32),
    )


def _known(numbers: np.ndarray, templates_T: np.ndarray, path: Path) -> np.ndarray:
    """The places of templates, in any shape. UserError for a template without images."""
    places = np.searchsorted(templates_T, numbers).clip(max=len(templates_T) - 1)
    if (wrong := templates_T[places] != numbers).any():
        raise UserError(f"{path}: template {numbers[wrong][0]} has no images; bring the lists of one release")
    return places.astype(np.int32)


def _searched(meta: Path, name: str, templates_T: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Gallery and probes of 1:N: place of each template, and its subject; None where there are no such lists."""
    letter = "S" if name == "ijbb" else "G"
    files = [
        meta / f"{name}_1N_{part}.csv" for part in (f"gallery_{letter}1", f"gallery_{letter}2", "probe_mixed")
    ]
    if not any(file.exists() for file in files):
        return None
    tables = []
    for file in files:
        lines = np.unique(_table(file, (0, 1), ",", 1), axis=0)
        tables.append(np.stack([_known(lines[:, 0], templates_T, file), lines[:, 1]], axis=1))
    gallery_G2, probes_P2 = np.concatenate(tables[:2]), tables[2]
    subjects, counts = np.unique(gallery_G2[:, 1], return_counts=True)
    if (counts > 1).any() or not np.isin(probes_P2[:, 1], subjects).all():
        raise UserError(
            f"{files[2]}: each probe has one template in the two galleries; bring the lists of one release"
        )
    return gallery_G2, probes_P2
