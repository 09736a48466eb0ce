import torch

from megaclass.data.synthetic import SyntheticLoader


def labels(step=3, **options):
    loader = SyntheticLoader(100_000_000, 8, 12, seed=1, **options)
    return next(loader.steps(step, step + 1)).labels


def test_a_batch_has_the_loaders_shapes():
    batches = list(SyntheticLoader(1000, 16, 12, rank=1, world_size=3).steps(5, 8))
    assert len(batches) == 3
    for batch in batches:
        assert batch.images.shape == (4, 16, 16, 3) and batch.images.dtype == torch.uint8
        assert batch.labels.shape == (4,) and batch.labels.dtype == torch.int64
        assert ((batch.labels >= 0) & (batch.labels < 1000)).all()


def test_labels_depend_on_the_step_and_not_on_the_way_there():
    loader = SyntheticLoader(1000, 8, 12)
    steps = [batch.labels for batch in loader.steps(0, 5)]
    assert torch.equal(next(loader.steps(3, 4)).labels, steps[3])
    assert not torch.equal(steps[3], steps[4])


def test_all_ranks_together_have_the_same_labels_at_any_world_size():
    whole = labels()
    for world_size in (2, 3, 5):
        parts = [labels(rank=rank, world_size=world_size) for rank in range(world_size)]
        assert torch.equal(torch.cat(parts), whole)
