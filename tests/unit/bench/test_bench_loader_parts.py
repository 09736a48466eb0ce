"""What a pass of each loader delivers, and how its time is counted."""

import itertools
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import simplejpeg
import torch

from megaclass.bench.old_loader import bare, clock, delivery, ours
from megaclass.bench.old_loader.benchmark import LoaderBenchmark
from megaclass.bench.old_loader.cases import WORKLOADS, LoaderCase
from megaclass.bench.old_loader.clock import Time
from megaclass.bench.old_loader.contender import in_threads
from megaclass.bench.old_loader.images import write_images
from megaclass.bench.old_loader.photographs import encoded_photograph
from megaclass.bench.peers import dali, nvjpeg, pillow
from megaclass.data.loader import Batch
from megaclass.data.open import open_dataset
from megaclass.parallel.groups import World

WORLD = World(0, 1, torch.device("cpu"))
SMALL = {"batch_size": 4, "batches": 3, "threads": 1}


def made(tmp_path, workload="faces", images=12, data=""):
    return write_images(WORKLOADS[workload], tmp_path, data=data, images=images, seed=0, threads=2)


def test_folder_and_records_hold_the_same_samples(tmp_path):
    images = made(tmp_path / "made", images=23)
    sets = [open_dataset(images.folder), open_dataset(images.records)]
    assert images.images == len(sets[0]) == len(sets[1]) == 23
    pairs = [(sets[0].read(i), sets[1].read(i)) for i in range(23)]
    assert all(a == b for a, b in pairs)
    assert len({a.encoded for a, _ in pairs}) == 23
    assert images.mean_bytes == np.mean([len(a.encoded) for a, _ in pairs])
    # Every third of them, again as a set of its own.
    fewer = made(tmp_path / "fewer", images=7, data=str(images.records))
    assert (fewer.name, fewer.images) == ("train.rec", 7)
    kept = [open_dataset(fewer.folder).read(i).encoded for i in range(7)]
    assert kept == [pairs[i * 23 // 7][0].encoded for i in range(7)]


def test_made_photographs_are_a_function_of_seed_and_number():
    look = WORKLOADS["faces"].look
    again = [encoded_photograph(look, 0, 1), encoded_photograph(look, 0, 1)]
    assert again[0] == again[1]
    assert len({again[0], encoded_photograph(look, 0, 2), encoded_photograph(look, 1, 1)}) == 3


@pytest.mark.parametrize(("workload", "least", "most"), [("faces", 5000, 6000), ("imagenet", 98e3, 126e3)])
def test_made_photographs_have_the_size_of_real_files(workload, least, most):
    look = WORKLOADS[workload].look
    files = [encoded_photograph(look, 0, number) for number in range(12)]
    assert least < np.mean([len(file) for file in files]) < most
    assert {simplejpeg.decode_jpeg_header(file)[:2] for file in files} == {(look.height, look.width)}


def test_stages_are_counted_by_what_each_adds(tmp_path, monkeypatch):
    """A clock that only the stages move: reading by 1, decoding by 10, augmenting by 100 ms."""
    now = itertools.count()
    elapsed = [0.0]

    def costs(ms, work):
        def costly(*words):
            elapsed[0] += ms
            return work(*words)

        return costly

    def fake(work):
        begin = elapsed[0]
        work()
        next(now)
        return Time(1.0, elapsed[0] - begin)

    case = LoaderCase(**SMALL)
    contender = ours.Megaclass(case, WORLD, {"directory": str(made(tmp_path).folder)}, fake)
    monkeypatch.setattr(ours, "decode_part", costs(10, ours.decode_part))
    contender._dataset.read = costs(1, contender._dataset.read)
    transform = contender._transform
    monkeypatch.setattr(type(transform), "__call__", costs(100, type(transform).__call__))
    turn = contender.turn(0)
    assert [turn.stages[name].cpu_ms for name in ("read", "decode", "augment")] == [12, 12 * 11, 12 * 111]
    # The loader calls its own decode, which costs nothing here.
    assert (
        turn.whole is turn.stages["assemble"] and turn.whole.cpu_ms == turn.stages["copy"].cpu_ms == 12 * 101
    )
    assert next(now) == 5

    benchmark = LoaderBenchmark()
    answer = {
        "ms": 1.0,
        "cpu_ms": 1212.0,
        "stages": {name: time.cpu_ms for name, time in turn.stages.items()},
    }
    fields = benchmark.measures("megaclass", case, [[answer], [answer | {"cpu_ms": 2424.0}]], [{}])
    assert fields["cpu_ms"] == [1212, 2424]
    work = fields["work"]
    assert work["cpu_us"] == 1818e3 / 12 and work["samples_per_cpu_second"] == pytest.approx(
        12 / 1.818, abs=1e-3
    )
    stages = [work[f"cpu_us_{name}"] for name in ("read", "decode", "augment", "assemble", "copy")]
    assert stages == [1000, 10_000, 100_000, -10_000, 0]


@pytest.mark.parametrize("threads", [1, 3])
def test_every_position_is_worked_on_once(threads):
    seen = []
    case = LoaderCase(batch_size=5, batches=3, threads=threads)
    in_threads(case, "abc", lambda batch, position: seen.append((batch, position)))
    assert sorted(seen) == [*itertools.product("abc", range(5))]


def test_an_error_of_a_thread_is_raised():
    def fails(batch, position):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        in_threads(LoaderCase(**SMALL), "abc", fails)


def busy(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_the_clock_counts_threads_and_processes_but_no_waiting():
    waited = clock.timed(lambda: time.sleep(0.1))
    assert waited.ms >= 100 and waited.cpu_ms < 50

    def in_a_thread():
        thread = threading.Thread(target=busy, args=(0.1,))
        thread.start()
        thread.join()

    assert clock.timed(in_a_thread).cpu_ms >= 99
    script = "import sys, time\nwhile time.process_time() < 0.2: pass\nprint(flush=True); sys.stdin.read()"
    children = []

    def in_a_process_that_stays():
        child = subprocess.Popen(
            [sys.executable, "-S", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        children.append(child)
        child.stdout.readline()

    try:
        assert clock.timed(in_a_process_that_stays).cpu_ms >= 150
    finally:
        children[0].communicate()
    ended = [sys.executable, "-S", "-c", script.partition("print")[0]]
    assert clock.timed(lambda: subprocess.run(ended, check=True)).cpu_ms >= 150


def test_bare_decode_decodes_every_sample_of_a_pass(tmp_path, monkeypatch):
    case = LoaderCase(workload="imagenet", **SMALL)
    contender = bare.BareDecode(case, WORLD, {"directory": str(made(tmp_path, "imagenet", images=6).folder)})
    decoded = []
    decode = simplejpeg.decode_jpeg
    monkeypatch.setattr(
        bare.simplejpeg, "decode_jpeg", lambda file, **words: decoded.append(decode(file, **words).shape)
    )
    assert contender.turn(0).whole.cpu_ms > 0
    assert decoded == [(375, 500, 3)] * 12


@pytest.fixture
def fake_gpu(monkeypatch):
    """A device that takes batches, and notes what is done to it."""
    done = []

    class Feed:
        def __init__(self, device):
            done.append(f"feed to {device.type}")

        def __call__(self, batches):
            yield from (batch._replace(images=batch.images + 1) for batch in batches)

        def take_wait_ms(self):
            done.append("forget")

    monkeypatch.setattr(delivery, "DeviceFeed", Feed)
    monkeypatch.setattr(
        delivery, "to_model_input", lambda images, device: done.append(f"{device.type} {int(images[0])}")
    )
    monkeypatch.setattr(delivery.torch.cuda, "synchronize", lambda device: done.append("wait"))
    monkeypatch.setattr(ours, "Loader", lambda *parts, pin_memory, **words: ours_loader(*parts, **words))
    return done


ours_loader = ours.Loader
GPU = World(0, 1, torch.device("cuda", 0))


def test_a_gpu_is_fed_as_in_training_and_the_clock_waits_for_it(fake_gpu):
    batches = (Batch(torch.tensor([number]), torch.tensor([0]), 0.0) for number in range(3))

    def watch(work):
        work()
        fake_gpu.append("clock")
        return Time(1.0, 1.0)

    delivery.Delivery(GPU.device).whole(batches, watch)
    assert fake_gpu == ["feed to cuda", "cuda 1", "cuda 2", "cuda 3", "wait", "forget", "clock"]


def test_what_counts_on_a_gpu_is_what_it_was_delivered(tmp_path, fake_gpu, monkeypatch):
    monkeypatch.setattr(delivery, "to_model_input", lambda images, device: fake_gpu.append("batch"))
    contender = ours.Megaclass(LoaderCase(**SMALL), GPU, {"directory": str(made(tmp_path).folder)})
    for index in range(2):
        turn = contender.turn(index)
        assert turn.whole is turn.stages["copy"] and turn.whole is not turn.stages["assemble"]
    assert fake_gpu == ["feed to cuda", *2 * ["batch", "batch", "batch", "wait", "forget"]]


def test_synthetic_batches_have_two_stages():
    turn = ours.Synthetic(LoaderCase(**SMALL), WORLD, {}).turn(1)
    assert turn.stages.keys() == {"assemble", "copy"}


# What other loaders deliver is what ours delivers, or their speed means nothing.


def our_images(images, workload, indices):
    dataset, transform = open_dataset(images.folder), LoaderCase(workload=workload).transform()
    loader = ours.Loader(dataset, transform, lambda step: (indices, indices))
    (batch,) = loader.steps(0, 1)
    return batch.images.numpy().astype(float), batch.labels.numpy()


def differs(image_SSC, like_SSC):
    """Mean difference of pixels, of the image or its mirror image; of two images that have nothing in common some
    60, of one whose cut begins a pixel further 10."""
    return min(np.abs(either - like_SSC).mean() for either in (image_SSC, image_SSC[:, ::-1]))


@pytest.mark.dist
@pytest.mark.parametrize("workload", WORKLOADS)
def test_pillow_delivers_what_we_do(tmp_path, workload):
    pytest.importorskip("PIL")
    images = made(tmp_path, workload)
    case = LoaderCase(workload=workload, source="folder", **SMALL)
    contender = pillow.Pillow(case, WORLD, {"directory": str(images.folder)})
    assert (
        contender.facts()["transforms"] == "written out" or "torchvision" in contender.facts()["transforms"]
    )
    assert contender.turn(0).whole.cpu_ms > 0
    contender._steps.steps = range(3)
    pixels, labels = zip(*contender.loader, strict=True)
    assert_same(
        torch.cat(pixels).permute(0, 2, 3, 1).numpy(),
        torch.cat(labels).numpy(),
        images,
        workload,
        np.concatenate(list(contender._steps)),
    )


@pytest.mark.dist
@pytest.mark.parametrize("source", dali.SOURCES)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_dali_delivers_what_we_do(tmp_path, workload, source):
    if missing := dali.missing(LoaderCase()):
        pytest.skip(missing)
    images = made(tmp_path, workload)
    directory = images.folder if source == "folder" else images.records.parent
    contender = dali.Dali(
        LoaderCase(workload=workload, source=source, **SMALL), WORLD, {"directory": str(directory)}
    )
    for _ in range(3):  # passes do not run into one another
        pixels, labels = [], []
        contender.batches(
            lambda *batch, to=(pixels, labels): [a.append(b.copy()) for a, b in zip(to, batch, strict=True)]
        )
        assert len(pixels) == 3
    pixels_NSSC, labels_N = np.concatenate(pixels), np.concatenate(labels)
    if workload == "imagenet":
        assert sorted(labels_N.tolist()) == open_dataset(images.folder).labels().tolist()
        assert_statistics(pixels_NSSC, our_images(images, workload, np.arange(12))[0])
        return
    # The order is DALI's own: what we have of each is found by its content.
    ours_NSSC, _ = our_images(images, workload, np.arange(12))
    found_N = np.array([np.argmin([differs(image, like) for like in ours_NSSC]) for image in pixels_NSSC])
    assert sorted(found_N.tolist()) == [*range(12)]  # each once an epoch
    # Of 341 columns it leaves 59 at the left, where torchvision's rounding, which is ours, leaves 58.
    assert_same(
        pixels_NSSC, labels_N, images, workload, found_N, most=15 if workload == "imagenet-eval" else 3
    )


def decoded_here(encoded, device):
    assert device.type == "cpu" and all(file.dtype == torch.uint8 and file.ndim == 1 for file in encoded)
    return [
        torch.from_numpy(simplejpeg.decode_jpeg(file.numpy().tobytes())).permute(2, 0, 1) for file in encoded
    ]


@pytest.mark.parametrize("workload", ["faces", "imagenet"])
def test_what_is_done_after_nvjpeg_is_what_we_do(tmp_path, workload):
    """Box, filter, flip, order and labels of the peer that decodes on a GPU, with a decoder of the CPU."""
    images, case = made(tmp_path, workload), LoaderCase(workload=workload, **SMALL)
    directory = {"directory": str(images.records.parent)}
    contender = nvjpeg.NvJpeg(case, WORLD, directory, decode=decoded_here)
    assert contender.turn(0).whole.cpu_ms > 0
    found, own = [*contender.batches(range(3))], [*ours.Megaclass(case, WORLD, directory)._loader.steps(0, 3)]
    assert len(found) == len(own) == 3
    for theirs, wanted in zip(found, own, strict=True):
        assert torch.equal(theirs.labels, wanted.labels) and theirs.images.dtype == torch.uint8
        assert theirs.images.is_contiguous() and theirs.images.shape == wanted.images.shape
        most = (theirs.images.float() - wanted.images.float()).abs().mean(dim=(1, 2, 3)).max()
        # The same decoder: faces are equal. Ours decodes fewer pixels of a large crop, at half the size.
        assert most == 0 if workload == "faces" else most < 1.5


def test_an_image_that_the_gpu_cannot_decode_ends_the_pass(tmp_path):
    def fails(encoded, device):
        raise RuntimeError("nvJPEG says no")

    directory = {"directory": str(made(tmp_path).records.parent)}
    contender = nvjpeg.NvJpeg(LoaderCase(**SMALL), WORLD, directory, decode=fails)
    with pytest.raises(RuntimeError, match="says no"):
        contender.turn(0)


@pytest.mark.parametrize(
    ("changes", "part"),
    [({}, "CUDA"), ({"device": "cuda", "workload": "imagenet-eval"}, "training"), ({"device": "cuda"}, "pip install")],
)  # fmt: skip
def test_why_nvjpeg_is_missing(changes, part, monkeypatch):
    monkeypatch.setattr(nvjpeg.importlib.util, "find_spec", lambda name: None)
    assert part in nvjpeg.missing(LoaderCase(**changes))
    monkeypatch.setattr(nvjpeg.importlib.util, "find_spec", lambda name: name)
    assert nvjpeg.missing(LoaderCase(device="cuda")) == ""


@pytest.mark.dist
@pytest.mark.parametrize("workload", ["faces", "imagenet"])
def test_our_loader_with_dali_counts_whole_passes(tmp_path, workload):
    if missing := dali.missing(LoaderCase()):
        pytest.skip(missing)
    case, passes = LoaderCase(workload=workload, **SMALL), []

    def watch(work):
        (batches,) = work.args
        passes.append([batch.labels.tolist() for batch in batches])
        return Time(1.0, 1.0)

    directory = {"directory": str(made(tmp_path, workload).records.parent)}
    contender = ours.WithDali(case, WORLD, directory, watch)
    assert contender.turn(0).whole.ms == 1 and contender.turn(1).stages == {}
    wanted = [batch.labels.tolist() for batch in ours.Megaclass(case, WORLD, directory)._loader.steps(0, 7)]
    assert passes == [wanted[1:4], wanted[4:7]]
    assert contender.facts()["version"]


def assert_same(pixels_NSSC, labels_N, images, workload, indices_N, most=3):
    ours_NSSC, our_labels_N = our_images(images, workload, indices_N)
    assert pixels_NSSC.dtype == np.uint8 and pixels_NSSC.shape == ours_NSSC.shape
    assert labels_N.reshape(-1).tolist() == our_labels_N.tolist()
    if workload == "imagenet":  # crops are drawn otherwise
        assert_statistics(pixels_NSSC, ours_NSSC)
        return
    assert max(differs(*pair) for pair in zip(pixels_NSSC, ours_NSSC, strict=True)) < most


def assert_statistics(pixels_NSSC, ours_NSSC):
    assert abs(pixels_NSSC.mean() - ours_NSSC.mean()) < 15 and abs(pixels_NSSC.std() - ours_NSSC.std()) < 15
    assert pixels_NSSC.max() > 200 and pixels_NSSC.min() < 30
