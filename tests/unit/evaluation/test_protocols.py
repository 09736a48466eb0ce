"""Retrieval, identification and all pairs against scikit-learn, or their definitions written out."""

import math

import cv2
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, normalized_mutual_info_score

import megaclass
import tiny
from megaclass.cli import main
from megaclass.data.records.reader import RecordDataset
from megaclass.errors import UserError
from megaclass.evaluation import retrieval
from megaclass.evaluation.identification import distractor_metrics
from megaclass.evaluation.retrieval import clustering_nmi, retrieval_metrics


def made(count, classes, seed=0, noise=1.0):
    """Normalised embeddings of overlapping classes, some with one image, and labels as class names."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    rows = np.random.default_rng(9).normal(size=(classes, 12))[labels] + noise * rng.normal(size=(count, 12))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), np.array([f"class {label}" for label in range(classes)])[labels]


@pytest.mark.parametrize("gallery", [False, True])
def test_retrieval_is_what_scikit_learn_and_the_papers_define(gallery, monkeypatch):
    monkeypatch.setattr("megaclass.evaluation.blocks._BLOCK_SCORES", 1000)  # many blocks
    queries, labels = made(120, 50)
    index, index_labels = made(150, 60, seed=1) if gallery else (queries, labels)
    averages, at_r, hits = [], [], []
    for number, (query, label) in enumerate(zip(queries, labels, strict=True)):
        others = np.arange(len(index)) != (-1 if gallery else number)
        scores, right = (index @ query)[others], (index_labels == label)[others]
        if right.any():
            ranked = right[np.argsort(-scores)]
            averages.append(average_precision_score(right, scores))
            near = ranked[: right.sum()]
            at_r.append((near * np.cumsum(near) / np.arange(1, len(near) + 1)).sum() / len(near))
            hits.append([ranked[:k].any() for k in (1, 2, 4, 100)])
    found = retrieval_metrics(queries, labels, (index, index_labels) if gallery else None)
    assert found["map"] == pytest.approx(np.mean(averages), abs=1e-6)
    assert found["map_at_r"] == pytest.approx(np.mean(at_r), abs=1e-6)
    assert [found["recall_at"][k] for k in ("1", "2", "4", "100")] == pytest.approx(np.mean(hits, axis=0))
    assert found["queries"] == len(averages) < 120 and "1000" not in found["recall_at"]


def test_ties_and_failed_comparisons_are_wrong_answers():
    rows, labels = np.repeat(np.eye(4, dtype=np.float32), 2, axis=0), np.repeat(np.arange(4), 2)
    assert retrieval_metrics(rows, labels)["recall_at"]["1"] == 1
    assert retrieval_metrics(np.ones_like(rows) / 2, labels)["recall_at"] == {"1": 0, "2": 0, "4": 0, "5": 0}
    rows[0] = np.nan  # its own query fails, and it is the nearest of all others
    assert retrieval_metrics(rows, labels)["recall_at"]["1"] == 0


def test_nmi_is_that_of_scikit_learn(monkeypatch):
    pytest.importorskip("faiss")
    clear, labels = made(200, 2, noise=0.05)
    assert clustering_nmi(clear, labels) == pytest.approx(1)
    rows, labels = made(200, 8, noise=2)
    assigned = []
    monkeypatch.setattr(retrieval.np, "stack", lambda both: assigned.append(both[1]) or np.array(both))
    found = clustering_nmi(rows, labels)
    assert found == pytest.approx(normalized_mutual_info_score(labels, assigned[0])) and 0.1 < found < 0.9


def test_a_gallery_is_searched_as_insightface_defines(monkeypatch):
    monkeypatch.setattr("megaclass.evaluation.blocks._BLOCK_SCORES", 2000)
    probes, labels = made(300, 60)
    gallery, of_gallery = made(150, 45, seed=1)  # not all probes are of somebody in it
    cosines, right = probes @ gallery.T, labels[:, None] == of_gallery
    best = np.where(right, cosines, -2).max(1)[right.any(1)]
    falling = np.sort(cosines[~right])[::-1]
    found = retrieval_metrics(probes, labels, (gallery, of_gallery))
    assert found["tpir_at_fpir"].pop("1e-3") is None
    for far, share in found["tpir_at_fpir"].items():
        assert share == np.mean(best > falling[math.ceil(300 * float(far)) - 1])
    with pytest.raises(UserError, match="no image has another of its class"):
        retrieval_metrics(probes, labels, (gallery, np.array(["nobody"] * 150)))


def test_distractors_are_what_megaface_defines(monkeypatch):
    monkeypatch.setattr("megaclass.evaluation.blocks._BLOCK_SCORES", 5000)
    probes, labels = made(60, 20)
    distractors, _ = made(1200, 400, seed=2)
    order = np.random.default_rng(0).permutation(1200)
    pairs = [(i, j) for i in range(60) for j in range(60) if i != j and labels[i] == labels[j]]
    genuine = np.array([probes[i] @ probes[j] for i, j in pairs])
    impostor = probes @ distractors[order].T
    found = distractor_metrics(probes, labels, distractors)
    for size, share in found["rank_1_among"].items():
        nearest = impostor[:, : int(size)].max(1)
        assert share == np.mean([cosine > nearest[i] for cosine, (i, _) in zip(genuine, pairs, strict=True)])
    assert list(found["rank_1_among"]) == ["10", "100", "1000", "1200"]
    assert found["rank_1_among"]["10"] > found["rank_1_among"]["1200"] > 0
    falling = np.sort(impostor.ravel())[::-1]
    for far, share in found["tar_at_far"].items():
        allowed = int(float(far) * 60 * 1200 + 1e-6)
        expected = np.mean(genuine > falling[allowed]) if allowed else None
        assert share == (expected if expected is None else pytest.approx(expected, abs=2 / len(pairs)))
    with pytest.raises(UserError, match="no identity among the probes has two"):
        distractor_metrics(probes, np.arange(60), distractors)


def test_each_protocol_takes_a_run_or_its_embeddings(refused, tmp_path, capfd):
    assert main(["train", tiny.recipe(tmp_path)]) == 0
    records, run, rows = str(tmp_path / "records"), str(tmp_path / "run"), str(tmp_path / "rows.npy")
    # Of the same patterns under other noise: copies would be ties, which a matrix product may round to either side.
    other = str(tiny.write_records(tmp_path / "other", classes=7))
    embedded = []
    for set_of in map(RecordDataset, (records, other)):
        jpegs = [np.frombuffer(set_of.read(index).encoded, np.uint8) for index in range(len(set_of))]
        images = np.stack([cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB) for jpeg in jpegs])
        embedded.append(megaclass.load(run, device="cpu").embed(images))
    for key, sets, *words in (
        ("map", 1, "retrieval", records),
        ("recall_at", 2, "identification", records, "--gallery", other),
        ("rank_1_among", 2, "identification", records, "--distractors", other),
        ("tar_at_far", 2, "all-pairs", f"{records}:{other}"),
    ):
        np.save(rows, np.concatenate(embedded[:sets]))
        sources = ("--run-dir", run, "--run.device", "cpu"), ("--embeddings", rows)
        found = [tiny.evaluated(tmp_path, *words, *source)[key] for source in sources]
        assert found[0] and found[0] == found[1]
    assert "all-pairs of other" in capfd.readouterr().out
    refused(["evaluate", "identification", records, "--run-dir", run], "needs one of --gallery and --distractors")
