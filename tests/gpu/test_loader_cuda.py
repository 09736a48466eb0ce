"""From files to batches on a CUDA device: whatever decodes, it is the pictures that our loader makes on a CPU."""

import pytest
import torch

from megaclass.bench.loader import WORKLOADS, LoaderCase, Megaclass
from megaclass.bench.peers import dali
from megaclass.bench.photographs import write_images
from megaclass.cli import main
from megaclass.data.augment import TrainTransform
from megaclass.data.dali import DaliLoader
from megaclass.data.feed import DeviceFeed
from megaclass.data.open import open_dataset
from megaclass.parallel.seeding import derive_key
from megaclass.results.rows import read_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = torch.device("cuda", 0)
STEPS = 5
# Mean difference of an image from ours, in steps of 255. Two pictures differ by some 60, of a picture whose cut begins
# a pixel further 10; decoders round otherwise, and those of a GPU enlarge 4:2:0 colour with another filter.
NEAR = 4.0


@pytest.fixture(params=["faces", "imagenet"])
def case(request):
    return LoaderCase(workload=request.param, batch_size=16, threads=4, batches=STEPS, device="cuda")


@pytest.fixture
def records(case, tmp_path):
    write_images(tmp_path, WORKLOADS[case.workload].look, 40, threads=4)
    return tmp_path / "records"


def on_cpu(case, records):
    loader = Megaclass(case, torch.device("cpu"), str(records)).loader
    return [*loader.steps(0, STEPS)]


def on_device(batches):
    """Images and labels, after a step that keeps the device busy has been given to it."""
    found = []
    for batch in DeviceFeed(DEVICE)(batches):
        assert batch.images.device == batch.labels.device == DEVICE
        work = torch.randn(2048, 2048, device=DEVICE)
        work @ work
        found.append((batch.images.clone(), batch.labels.clone()))
    return [(images.cpu(), labels.cpu()) for images, labels in found]


def test_batches_are_those_of_a_cpu_bit_for_bit(case, records):
    ours = Megaclass(case, DEVICE, str(records))
    found = on_device(ours.loader.steps(0, STEPS))
    for (images, labels), batch in zip(found, on_cpu(case, records), strict=True):
        assert torch.equal(images, batch.images) and torch.equal(labels, batch.labels)


def test_what_dali_decodes_on_the_gpu_is_near(case, records):
    if missing := dali.missing():
        pytest.skip(missing)
    dataset, kind = open_dataset(records), WORKLOADS[case.workload]
    seed = derive_key("augment", case.seed)
    transform = TrainTransform(case.work.image_size, flip=True, crop_scale_min=kind.crop, seed=seed)
    order = Megaclass(case, DEVICE, str(records)).order
    loader = DaliLoader(dataset, transform, order, device=DEVICE, workers=4)
    found = on_device(loader.steps(0, STEPS))
    for (images, labels), batch in zip(found, on_cpu(case, records), strict=True):
        assert torch.equal(labels, batch.labels)
        assert images.dtype == torch.uint8 and images.shape == batch.images.shape
        difference_B = (images.float() - batch.images.float()).abs().mean(dim=(1, 2, 3))
        assert difference_B.max() < NEAR, difference_B


def test_the_benchmark_delivers_to_the_gpu(tmp_path):
    path = tmp_path / "rows.jsonl"
    words = ["--workload", "faces", "--source", "records", "--images", "20", "--batch-size", "8", "--batches", "4",
             "--rounds", "2", "--threads", "2", "--device", "cuda", "--output", str(path)]  # fmt: skip
    assert main(["bench", "loader", *words]) == 0
    rows = {row.implementation: row for row in read_rows(path)}
    assert {row.status for row in rows.values()} <= {"ok", "skipped"}, [row.reason for row in rows.values()]
    ours, bare = rows["megaclass"], rows["simplejpeg"]
    assert (ours.status, ours.case["device"], bare.case["device"]) == ("ok", "cuda", "cpu")
    assert ours.memory_mb["allocated"] > 0
