"""Embeddings and counts of two gloo processes are those of one."""

import json

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from megaclass.errors import UserError
from megaclass.evaluation.embed import embed
from megaclass.evaluation.identification import distractor_metrics
from megaclass.evaluation.ijb import _pair_scores, template_embeddings
from megaclass.evaluation.metrics import all_pairs_tar, classification_metrics, topk_counts
from megaclass.evaluation.retrieval import retrieval_metrics
from ranks import run_ranks

pytestmark = pytest.mark.dist

IMAGES = torch.arange(7 * 3 * 4 * 4, dtype=torch.float32).reshape(7, 3, 4, 4).sin()


def batches_of_range(start, stop):
    yield from IMAGES[start:stop].split(2)


def unreadable_on_rank_1(start, stop):
    if dist.get_rank() == 1:
        raise UserError("image 5 is damaged")
    yield from batches_of_range(start, stop)


def flatten(images):
    return images.flatten(1)


def all_pairs(labels):
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(len(labels), 8)).astype(np.float32)
    embeddings[5] = np.nan
    return all_pairs_tar(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True), labels)


def check():
    for count in (7, 6, 1):  # uneven, even, and a rank without an image
        expected = F.normalize(flatten(IMAGES[:count]) + flatten(IMAGES[:count].flip(-1)))
        torch.testing.assert_close(embed(flatten, batches_of_range, count, flip=True), expected)

    with pytest.raises(UserError, match="image 5"):  # on both ranks: nobody waits for the one that failed
        embed(flatten, unreadable_on_rank_1, 7, flip=False)

    logits, labels = IMAGES.flatten(1)[:, :9], torch.arange(7)
    mine = slice(0, 4) if dist.get_rank() == 0 else slice(4, 7)
    metrics = classification_metrics(topk_counts(logits[mine], labels[mine]))
    top1, top5, _ = topk_counts(logits, labels).tolist()
    assert metrics == {"top1": top1 / 7, "top5": top5 / 7, "images": 7}


def protocols():
    """Metrics of the protocols that share work over ranks."""
    rng = np.random.default_rng(0)
    rows = F.normalize(torch.from_numpy(rng.normal(size=(3001, 8)).astype(np.float32))).numpy()
    labels, media = np.arange(3001) % 500, np.arange(3001) % 700
    templates = template_embeddings(rows, np.ones(3001), labels, media)
    scores = _pair_scores(templates, rng.integers(500, size=(201, 2)))
    found = (
        retrieval_metrics(rows, labels),
        retrieval_metrics(rows, labels, (rows[:777], labels[:777])),
        distractor_metrics(rows[:99], labels[:99] // 3, rows[99:]),
        scores.tolist(),
    )
    return json.loads(json.dumps(found), parse_float=lambda text: round(float(text), 9))  # sums in another order


def check_and_count(labels):
    check()
    return all_pairs(labels), protocols()


def test_two_ranks_embed_and_count_as_one_and_share_the_pairs_of_a_set():
    labels = np.arange(3000) % 500  # blocks of 1,398 rows: two for one rank, one for the other
    expected = all_pairs(labels)
    assert expected["genuine_pairs"] + expected["impostor_pairs"] == 3000 * 2999 // 2
    assert run_ranks(2, check_and_count, labels) == [(expected, protocols())] * 2
