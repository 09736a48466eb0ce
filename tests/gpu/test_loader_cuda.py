"""From files to batches on a CUDA device: whatever decodes, it is the pictures that our loader makes on a CPU."""

import pytest
import torch
from megaclass.bench.old_loader.cases import WORKLOADS, LoaderCase
from megaclass.bench.old_loader.contender import Order
from megaclass.bench.old_loader.images import write_images
from megaclass.bench.old_loader.ours import WithDali

from megaclass.bench.peers import dali, nvjpeg
from megaclass.cli import main
from megaclass.data.dali import DaliLoader
from megaclass.data.feed import DeviceFeed
from megaclass.data.loader import Loader
from megaclass.data.open import open_dataset
from megaclass.parallel.groups import World
from megaclass.results.rows import read_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = torch.device("cuda", 0)
WORLD = World(0, 1, DEVICE)
STEPS = 5
# Mean difference of an image from ours, in steps of 255. Two pictures differ by some 60, of a picture whose cut begins
# a pixel further 10; decoders round otherwise, and those of a GPU enlarge 4:2:0 colour with another filter.
NEAR = 4.0


@pytest.fixture(params=["faces", "imagenet"])
def case(request):
    return LoaderCase(workload=request.param, batch_size=16, threads=4, batches=STEPS, device="cuda")


@pytest.fixture
def records(case, tmp_path):
    made = write_images(WORKLOADS[case.workload], tmp_path, data="", images=40, seed=0, threads=4)
    return made.records.parent


def loader(case, records, pin):
    dataset = open_dataset(records)
    return Loader(
        dataset, case.transform(), Order(case, len(dataset)).of_step, workers=case.threads, pin_memory=pin
    )


def on_device(batches):
    """Images and labels, after a step that keeps the device busy has been given to it."""
    found = []
    for batch in DeviceFeed(DEVICE)(batches):
        assert batch.images.device == batch.labels.device == DEVICE
        work = torch.randn(2048, 2048, device=DEVICE)
        work @ work
        found.append((batch.images.clone(), batch.labels.clone()))
    return [(images.cpu(), labels.cpu()) for images, labels in found]


def assert_near(found, case, records):
    wanted = [*loader(case, records, pin=False).steps(0, STEPS)]
    assert len(found) == len(wanted) == STEPS
    for (images, labels), batch in zip(found, wanted, strict=True):
        assert torch.equal(labels, batch.labels)
        assert images.dtype == torch.uint8 and images.shape == batch.images.shape
        difference_B = (images.float() - batch.images.float()).abs().mean(dim=(1, 2, 3))
        assert difference_B.max() < NEAR, difference_B


def test_batches_are_those_of_a_cpu_bit_for_bit(case, records):
    found = on_device(loader(case, records, pin=True).steps(0, STEPS))
    for (images, labels), batch in zip(found, loader(case, records, pin=False).steps(0, STEPS), strict=True):
        assert torch.equal(images, batch.images) and torch.equal(labels, batch.labels)


def needs(module, case):
    if missing := module.missing(case):
        pytest.skip(missing)


def test_what_dali_decodes_on_the_gpu_is_near(case, records):
    needs(dali, case)
    dataset = open_dataset(records)
    found = DaliLoader(
        dataset, case.crop_transform(), Order(case, len(dataset)).of_step, device=DEVICE, workers=4
    )
    assert_near(on_device(found.steps(0, STEPS)), case, records)


def test_our_loader_with_dali_makes_passes(case, records):
    needs(dali, case)
    contender = WithDali(case, WORLD, {"directory": str(records)})
    assert all(contender.turn(index).whole.ms > 0 for index in range(2))


def test_what_nvjpeg_decodes_is_near(case, records):
    needs(nvjpeg, case)
    contender = nvjpeg.NvJpeg(case, WORLD, {"directory": str(records)})
    assert_near(on_device(contender.batches(range(STEPS))), case, records)
    assert contender.turn(1).whole.ms > 0 and contender.facts()["version"]


def test_memory_that_is_still_read_is_not_decoded_into(records, case):
    """The step reads a batch late, behind much other work, while the next ones are decoded."""
    needs(nvjpeg, case)
    contender, totals = nvjpeg.NvJpeg(case, WORLD, {"directory": str(records)}), []
    work = torch.randn(8192, 8192, device=DEVICE)
    for batch in DeviceFeed(DEVICE)(contender.batches(range(20))):
        for _ in range(5):
            work @ work
        totals.append(batch.images.sum(dtype=torch.int64))
    again = [int(batch.images.sum(dtype=torch.int64)) for batch in contender.batches(range(20))]
    assert torch.stack(totals).tolist() == again


def test_the_benchmark_delivers_to_the_gpu(tmp_path):
    path = tmp_path / "rows.jsonl"
    words = ["--workload", "faces", "--source", "records", "--images", "20", "--batch-size", "8", "--batches", "4",
             "--rounds", "2", "--threads", "2", "--device", "cuda", "--output", str(path)]  # fmt: skip
    assert main(["bench", "loader", *words]) == 0
    rows = {(row.implementation, row.case.get("loader", "")): row for row in read_rows(path)}
    assert {row.status for row in rows.values()} <= {"ok", "skipped"}, [row.reason for row in rows.values()]
    ours, bare = rows["megaclass", ""], rows["simplejpeg", ""]
    assert (ours.status, ours.case["device"], bare.case["device"]) == ("ok", "cuda", "cpu")
    assert ours.memory_mb["allocated"] > 0 and rows["nvjpeg", ""].case["device"] == "cuda"
