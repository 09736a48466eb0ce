"""PyTorch's flags for fp32 products: what the backbone and the head set can be read by others, and is put back."""

import pytest
import torch

from megaclass.heads.products import Products
from megaclass.train.arithmetic import Arithmetic

CUDA = torch.device("cuda")


def flags():
    known = torch.backends
    parts = (known.cuda.matmul, known.cudnn.conv, known.cudnn.rnn)
    older = known.cuda.matmul.allow_tf32, known.cudnn.allow_tf32
    return older, torch.get_float32_matmul_precision(), [part.fp32_precision for part in parts]


@pytest.mark.parametrize("compute", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("head", ["fp32", "tf32", "bf16"])
def test_flags_of_both_kinds_say_the_same(compute, head):
    before, tf32, head_tf32 = flags(), compute == "tf32", head == "tf32"
    with Arithmetic(compute, CUDA, channels_last=False).active():
        assert flags()[0] == (tf32, tf32) and flags()[2] == ["tf32" if tf32 else "ieee"] * 3
        with Products(head, CUDA).active():
            assert flags()[0] == (head_tf32, tf32) and flags()[1] == ("high" if head_tf32 else "highest")
        assert flags()[0] == (tf32, tf32)
    assert flags() == before
