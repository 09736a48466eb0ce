import pytest
import torch
import torch.nn.functional as F
from torch import nn

from megaclass.evaluation.embed import embed, evaluating


def images(count):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def in_batches(images, size):
    def batches_of_range(start, stop):
        yield from images[start:stop].split(size)

    return batches_of_range


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 6))


@pytest.mark.parametrize("flip", [False, True])
def test_embeddings_are_normalised_keep_the_order_and_are_flipped_as_insightface_does(flip):
    """eval/verification.py of arcface_torch: ``normalize(embeddings_list[0] + embeddings_list[1])``, in float64."""
    x, model = images(23), network().eval()
    result = embed(model, in_batches(x, 5), 23, flip)
    with torch.no_grad():
        expected = model(x).double() + (model(x.flip(3)).double() if flip else 0)
    torch.testing.assert_close(result, F.normalize(expected).float())
    assert not result.is_inference()


def test_half_precision_is_summed_in_fp32():
    x = images(4)
    result = embed(lambda x: x.flatten(1).bfloat16(), in_batches(x, 4), 4, flip=False)
    torch.testing.assert_close(result.norm(dim=1), torch.ones(4))


def test_embeddings_that_are_not_finite_are_nan_and_counted(caplog):
    def model(x):
        rows = x.flatten(1)[:, :4].clone()
        rows[1, 2], rows[3, 0] = torch.inf, torch.nan
        return rows

    result = embed(model, in_batches(images(6), 6), 6, flip=False)
    assert result.isnan().all(dim=1).tolist() == [False, True, False, True, False, False]
    assert not result[[0, 2, 4, 5]].isnan().any()
    assert "2 of 6 embeddings are not finite" in caplog.text


def test_evaluating_puts_back_every_mode_also_after_an_error():
    model = network().train()
    model[1].eval()
    with pytest.raises(KeyboardInterrupt), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise KeyboardInterrupt
    assert [module.training for module in model] == [True, False, True, True, True]
