"""Verification and classification against slow, independent definitions and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import KFold

from megaclass.errors import UserError
from megaclass.evaluation.metrics import (
    all_pairs_tar,
    classification_metrics,
    insightface_accuracy,
    one_shot_accuracy,
    topk_counts,
    verification_metrics,
)

FARS = {"2e-1": 0.2, "1e-1": 0.1, "1e-2": 1e-2, "1e-3": 1e-3, "1e-6": 1e-6}


def noisy_pairs(count=400, seed=0, separation=1.5, decimals=2):
    """Scores of overlapping kinds, with ties; the kinds alternate in blocks, as in LFW."""
    rng = np.random.default_rng(seed)
    same = np.tile(np.repeat([True, False], 10), count // 20)
    return np.round(rng.normal(size=count) + separation * same, decimals), same


def slow_accuracy(scores, same, folds):
    """The protocol as a person would write it down: every threshold, every fold, one pair at a time."""
    accuracies = []
    for train, test in KFold(folds).split(scores):
        candidates = [math.inf, *sorted(set(scores[train]), reverse=True)]
        correct = [sum((scores[i] >= t) == same[i] for i in train) for t in candidates]
        threshold = candidates[correct.index(max(correct))]
        accuracies.append(sum((scores[i] >= threshold) == same[i] for i in test) / len(test))
    return np.mean(accuracies), np.std(accuracies)


def slow_tar(scores, same, far):
    """The best TAR over all thresholds whose FAR is within the target."""
    impostors = scores[~same]
    if len(impostors) * far < 1:
        return None
    thresholds = [math.inf, *scores]
    return max(np.mean(scores[same] >= t) for t in thresholds if np.mean(impostors >= t) <= far)


@pytest.mark.parametrize(("count", "folds", "seed"), [(400, 10, 0), (400, 10, 1), (220, 7, 2), (40, 2, 3)])
def test_metrics_match_the_slow_definitions(count, folds, seed):
    scores, same = noisy_pairs(count, seed)
    metrics = verification_metrics(scores, same, folds, FARS)
    accuracy, spread = slow_accuracy(scores, same, folds)
    assert metrics["pair_accuracy"] == pytest.approx(accuracy)
    assert metrics["pair_accuracy_std"] == pytest.approx(spread)
    assert metrics["auc"] == pytest.approx(roc_auc_score(same, scores))
    assert metrics["pairs"] == count
    assert metrics["tar_at_far"] == {name: slow_tar(scores, same, far) for name, far in FARS.items()}
    for name, cosine in metrics["threshold_at_far"].items():
        allowed = [t for t in scores if np.mean(scores[~same] >= t) <= FARS[name]]
        assert cosine == (None if metrics["tar_at_far"][name] is None else min(allowed, default=None))
    best = max(np.mean((scores >= t) == same) for t in scores)
    assert np.mean((scores >= metrics["threshold"]) == same) == best


@pytest.mark.parametrize("narrow", [0.5, 0.02])  # scores of a good model, and of one whose features hardly differ
def test_the_accuracy_of_insightface_is_had_on_its_grid(narrow):
    scores, same = noisy_pairs(2000, decimals=8)
    scores = np.tanh(scores * narrow)  # cosines
    distances = 2 - 2 * scores
    accuracies = []
    for train, test in KFold(10).split(distances):
        grid = np.arange(0, 4, 0.01)
        best = grid[np.argmax([np.mean((distances[train] < t) == same[train]) for t in grid])]
        accuracies.append(np.mean((distances[test] < best) == same[test]))
    found, exact = insightface_accuracy(scores, same), verification_metrics(scores, same)
    assert found["pair_accuracy"] == pytest.approx(np.mean(accuracies))
    assert found["pair_accuracy_std"] == pytest.approx(np.std(accuracies))
    assert np.mean((scores >= found["threshold"]) == same) == max(np.mean((distances < t) == same) for t in grid)
    if narrow == 0.5:
        assert found["pair_accuracy"] == pytest.approx(exact["pair_accuracy"], abs=6 / 2000)
    clear = np.where(same, 0.8, 0.0)
    clear[[*np.flatnonzero(same)[:2], *np.flatnonzero(~same)[:2]]] = np.nan  # comparisons that failed are wrong
    assert insightface_accuracy(clear, same)["pair_accuracy"] == pytest.approx(1 - 4 / 2000)


SAME = np.tile([True, False], 500)
CLEAR = np.where(SAME, 0.9, 0.1)
BROKEN = np.where(np.arange(1000) < 20, np.nan, CLEAR)
MANY = np.tile([True, False], 3000)
NONE = {"1e-2": None, "1e-3": None, "1e-4": None}


@pytest.mark.parametrize(
    ("scores", "same", "expected"),
    [
        (CLEAR, SAME, {"pair_accuracy": 1, "pair_accuracy_std": 0, "auc": 1, "threshold": 0.9}),
        # A FAR needs as many impostors as it means: 1e-3 of 3,000 is three, 1e-4 none.
        (np.where(MANY, 0.9, 0.1), MANY, {"tar_at_far": {"1e-2": 1, "1e-3": 1, "1e-4": None}}),
        (np.zeros(1000), SAME, {"pair_accuracy": 0.5, "auc": 0.5, "tar_at_far": {**NONE, "1e-2": 0}}),
        # NaN is a wrong answer: ten failed impostors are already 2 %.
        (BROKEN, SAME, {"pair_accuracy": 0.98, "tar_at_far": {**NONE, "1e-2": 0}}),
        (np.full(1000, np.nan), SAME, {"auc": 0, "threshold": None}),
        *[(np.linspace(0, 1, 20), np.full(20, kind), {"auc": None, "tar_at_far": NONE}) for kind in (True, False)],
    ],
)  # fmt: skip
def test_metrics_of_extremes(scores, same, expected):
    metrics = verification_metrics(scores, same)
    for name, value in expected.items():
        assert metrics[name] == (value if value is None else pytest.approx(value))
    if same.all() or not same.any():
        assert metrics["roc"] == {"far": [], "tar": []} and metrics["pair_accuracy"] >= 0.9


def test_roc_points_lie_on_the_curve_of_scikit_learn():
    scores, same = noisy_pairs(4000, decimals=6)
    points = verification_metrics(scores, same)["roc"]
    fpr, tpr, _ = roc_curve(same, scores, drop_intermediate=False)
    assert 100 < len(points["far"]) <= 400
    assert points["far"] == sorted(points["far"]) and points["tar"] == sorted(points["tar"])
    for far, tar in zip(points["far"], points["tar"], strict=True):
        assert tar == pytest.approx(tpr[fpr <= far + 1e-12].max())
    assert (points["far"][-1], points["tar"][-1]) == (1.0, 1.0)


def clusters(classes=30, images=6, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), images)
    embeddings = rng.normal(size=(classes, 16))[labels] + noise * rng.normal(size=(len(labels), 16))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    shuffled = rng.permutation(len(labels))
    return embeddings[shuffled].astype(np.float32), labels[shuffled]


@pytest.mark.parametrize("classes", [30, 700])
def test_all_pairs_match_the_pairs_written_out(classes):
    embeddings, labels = clusters(classes, images=4)  # 2,800 images: blocks of 1,497 rows
    one, other = np.triu_indices(len(labels), k=1)
    scores = (embeddings.astype(np.float64) @ embeddings.T)[one, other]
    same = labels[one] == labels[other]
    result = all_pairs_tar(embeddings, labels, FARS)
    assert (result["genuine_pairs"], result["impostor_pairs"]) == (same.sum(), (~same).sum())
    assert result["auc"] == pytest.approx(roc_auc_score(same, scores), abs=1e-5)
    falling = np.sort(scores[~same])[::-1]
    for name, far in FARS.items():
        allowed = int(far * len(falling))
        wanted = np.mean(scores[same] > falling[allowed]) if allowed else None
        assert result["tar_at_far"][name] == (wanted and pytest.approx(wanted, abs=2 / same.sum()))
        cosine = result["threshold_at_far"][name]
        accepted = None if wanted is None else scores[scores > falling[allowed]].min()
        assert cosine == (accepted and pytest.approx(accepted, abs=4e-6))
    assert result["roc"]["tar"][-1] == 1.0


@pytest.mark.parametrize(
    ("sizes", "kept"),
    [([100] * 2, [20] * 2), ([3] * 60, [3] * 13 + [1]), ([1000] + [2] * 100, None), ([50] * 4, [10] * 4)],
)
def test_all_pairs_of_a_large_set_are_those_of_a_part(sizes, kept):
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
    embeddings = np.random.default_rng(2).normal(size=(len(labels), 4)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    result = all_pairs_tar(embeddings, labels, max_images=40)
    assert result["images"] == 40
    assert result["genuine_pairs"] + result["impostor_pairs"] == 40 * 39 // 2
    assert result["genuine_pairs"] > 0
    assert result == all_pairs_tar(embeddings, labels, max_images=40)
    if kept:
        assert result["genuine_pairs"] == sum(size * (size - 1) // 2 for size in kept)
    whole = all_pairs_tar(embeddings, labels, max_images=len(labels))
    assert whole == all_pairs_tar(embeddings, labels) and whole["images"] == len(labels)


def test_all_pairs_count_a_broken_embedding_as_wrong():
    embeddings, labels = np.repeat(np.eye(10, dtype=np.float32), 2, axis=0), np.repeat(np.arange(10), 2)
    assert all_pairs_tar(embeddings, labels)["tar_at_far"]["1e-2"] == 1
    embeddings[0] = np.nan  # 1 of 10 genuine pairs and 18 of 180 impostor pairs fail
    result = all_pairs_tar(embeddings, labels, {"1e-2": 1e-2, "1e-1": 0.1})
    assert result["tar_at_far"] == {"1e-2": 0.0, "1e-1": 0.9}
    assert result["auc"] == pytest.approx(0.9 * 0.9)


def test_one_shot_of_clear_and_of_worthless_embeddings():
    embeddings, labels = clusters(noise=0.01)
    assert one_shot_accuracy(embeddings, labels, episodes=200) == (1, 0)
    embeddings, labels = clusters(noise=1.0)
    accuracy, error = one_shot_accuracy(embeddings, labels, episodes=400, seed=3)
    assert (accuracy, error) == one_shot_accuracy(embeddings, labels, episodes=400, seed=3)
    assert 0.3 < accuracy < 1 and error == pytest.approx(math.sqrt(accuracy * (1 - accuracy) / 400))
    rng = np.random.default_rng(0)
    chance, _ = one_shot_accuracy(rng.normal(size=embeddings.shape), labels, ways=5, episodes=1000)
    assert chance == pytest.approx(0.2, abs=0.06)
    for worthless in (np.ones_like(embeddings), np.full_like(embeddings, np.nan)):
        assert one_shot_accuracy(worthless, labels, episodes=50)[0] == 0


def test_one_shot_needs_classes_with_two_images():
    embeddings, labels = clusters(classes=21, images=2)
    labels[np.flatnonzero(labels == 0)[0]] = 99
    assert one_shot_accuracy(embeddings, labels, ways=20)[0] is not None
    assert one_shot_accuracy(embeddings, labels, ways=21) == (None, None)


def test_classification_counts():
    logits = torch.tensor([[9.0, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]])
    counts = topk_counts(logits, torch.tensor([0, 1, 5])) + topk_counts(logits[:1], torch.tensor([3]))
    assert counts.tolist() == [1, 3, 4]
    assert classification_metrics(counts) == {"top1": 0.25, "top5": 0.75, "images": 4}


def test_classification_with_few_classes_and_broken_logits():
    logits = torch.tensor([[0.1, 0.9], [0.9, 0.1], [torch.nan, 0.0]])
    counts = topk_counts(logits, torch.tensor([1, 1, 0]))
    assert counts.tolist() == [1, 2, 3]  # two classes: the second choice is among the top five
    with pytest.raises(UserError, match="no image"):
        classification_metrics(torch.zeros(3, dtype=torch.int64))
