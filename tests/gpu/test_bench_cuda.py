"""`megaclass bench head` on a CUDA device."""

import pytest
import torch

import fake_peer
from megaclass.cli import main
from megaclass.rows import read_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("storage", ["fp32", "int8_rowwise"])
def test_ours_beside_a_peer(tmp_path, storage):
    root, path = fake_peer.write(tmp_path / "peer"), tmp_path / "rows.jsonl"
    words = ["--num-classes", "40K", "--batch-size", "64", "--steps", "3", "--precision", "bf16", "--storage", storage,
             "--simulate-ranks", "4", "--device", "cuda", "--peer", "arcface_torch", "--peer-path", str(root),
             "--output", str(path)]  # fmt: skip
    assert main(["bench", "head", *words]) == 0
    ours, peer = read_rows(path)
    assert (ours.status, peer.status) == ("ok", "ok"), (ours.reason, peer.reason)
    assert ours.memory_mb["allocated"] > 0 and ours.work["limit_flops_per_second"] > 1e12
    assert peer.case["precision"] == "fp16" and "malloc" not in peer.case


def test_no_memory_is_a_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    words = ["--num-classes", "10B", "--steps", "1", "--device", "cuda", "--output", str(path)]
    assert main(["bench", "head", *words]) == 0
    (row,) = read_rows(path)
    assert row.status == "oom" and "memory" in row.reason
