"""`megaclass bench loader`: what a pass delivers, how its time is counted, and what a user sees."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
import torch

from megaclass.bench import loader
from megaclass.bench.loader import WORKLOADS, LoaderCase, Time
from megaclass.bench.peers import dali
from megaclass.bench.photographs import LOOKS, encoded_photograph, write_images
from megaclass.cli import main
from megaclass.data import loader as data_loader
from megaclass.data.open import open_dataset
from megaclass.results.rows import read_rows

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SMALL = {"batch_size": 4, "batches": 3, "threads": 1}


def made(tmp_path, look="face", images=12, data=""):
    """The directories of the images that were written, by source."""
    write_images(tmp_path, look, images, data=data, threads=2)
    return {source: str(tmp_path / source) for source in ("folder", "records")}


def test_folder_and_records_hold_the_same_samples(tmp_path):
    facts = write_images(tmp_path / "made", "face", 23)
    folder, records = (open_dataset(tmp_path / "made" / name) for name in ("folder", "records"))
    files = [folder.read(i) for i in range(23)]
    assert len(folder) == len(records) == 23 and files == [records.read(i) for i in range(23)]
    sizes = [len(encoded) for encoded in {file.encoded for file in files}]
    assert len(sizes) == 23 and facts["image_bytes"] == round(np.mean(sizes))
    assert (facts["data"], facts["distinct_images"], facts["image_pixels"]) == ("made", 23, 112 * 112)
    # Every third of them, again as a set of its own.
    fewer = made(tmp_path / "fewer", images=7, data=str(tmp_path / "made" / "records"))
    kept = [open_dataset(fewer["folder"]).read(i).encoded for i in range(7)]
    assert kept == [files[i * 23 // 7].encoded for i in range(7)]


@pytest.mark.parametrize(("look", "least", "most"), [("face", 5000, 6000), ("photograph", 98e3, 126e3)])
def test_made_photographs_are_those_of_a_seed_and_of_the_size_of_real_files(look, least, most):
    files = [encoded_photograph(LOOKS[look], 0, number) for number in range(12)]
    assert least < np.mean([len(file) for file in files]) < most
    assert {simplejpeg.decode_jpeg_header(file)[:2] for file in files} == {(LOOKS[look].height, LOOKS[look].width)}
    assert encoded_photograph(LOOKS[look], 0, 1) == files[1] != encoded_photograph(LOOKS[look], 1, 1)


def test_stages_are_counted_by_what_each_adds(tmp_path, monkeypatch):
    """A clock that only the stages move: reading by 1, decoding by 10, augmenting by 100 ms."""
    elapsed = [0.0]

    def costs(ms, work):
        def costly(*words):
            elapsed[0] += ms
            return work(*words)

        return costly

    def clock(work):
        begin = elapsed[0]
        work()
        return Time(1.0, elapsed[0] - begin)

    case = LoaderCase(**SMALL)
    ours = loader.Megaclass(case, CPU, made(tmp_path)["folder"])
    monkeypatch.setattr(loader, "timed", clock)
    monkeypatch.setattr(loader.Memory, "fitted", costs(10, loader.Memory.fitted))
    monkeypatch.setattr(ours.dataset, "read", costs(1, ours.dataset.read), raising=False)
    monkeypatch.setattr(type(ours.transform), "__call__", costs(100, type(ours.transform).__call__))
    answer = ours.turn(0)
    assert answer["stages"] == {
        "read": 12, "decode": 12 * 11, "augment": 12 * 111, "assemble": 12 * 111, "copy": 12 * 111,
    }  # fmt: skip
    assert (answer["ms"], answer["cpu_ms"]) == (1.0, 12 * 111)
    fields = loader.measures("megaclass", case, [[answer], [answer | {"cpu_ms": 2664.0}]], [{}])
    assert fields["cpu_ms"] == [1332, 2664] and fields["samples_per_second"] == 12_000
    work = fields["work"]
    assert work["cpu_us"] == 1998e3 / 12 and work["samples_per_cpu_second"] == pytest.approx(12 / 1.998, abs=1e-3)
    assert [work[f"cpu_us_{name}"] for name in loader.STAGES] == [1000, 10_000, 100_000, 0, 0]


def test_bare_decode_decodes_whole_images_and_every_one(tmp_path, monkeypatch):
    case, decoded = LoaderCase(workload="imagenet", **SMALL), []
    bare = loader.BareDecode(case, CPU, made(tmp_path, "photograph", images=6)["folder"])
    decode = simplejpeg.decode_jpeg
    shapes = lambda file, **words: decoded.append(decode(file, **words).shape)  # noqa: E731
    monkeypatch.setattr(loader.simplejpeg, "decode_jpeg", shapes)
    assert bare.turn(0)["cpu_ms"] > 0
    assert decoded == [(375, 500, 3)] * 12


@pytest.mark.parametrize("source", dali.SOURCES)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_dali_delivers_what_we_do(tmp_path, workload, source):
    """Or its speed would mean nothing. Its order and its crops are its own."""
    if missing := dali.missing():
        pytest.skip(missing)
    images = made(tmp_path, WORKLOADS[workload].look)
    case = LoaderCase(workload=workload, source=source, **SMALL)
    pipeline = dali.Pipeline(case, images[source])
    for _ in range(3):  # passes do not run into one another
        found = []
        pipeline.batches(lambda *batch, found=found: found.append([part.copy() for part in batch]))
        assert len(found) == 3
    theirs_NSSC, labels_N = (np.concatenate(parts) for parts in zip(*found, strict=True))
    dataset, every = open_dataset(images["folder"]), np.arange(12)
    (batch,) = data_loader.Loader(dataset, case.transform(), lambda step: (every, every)).steps(0, 1)
    ours_NSSC = batch.images.numpy()
    assert theirs_NSSC.dtype == np.uint8 and theirs_NSSC.shape == ours_NSSC.shape
    if workload == "imagenet":
        assert sorted(labels_N.tolist()) == dataset.labels().tolist()
        for statistic in (np.mean, np.std):
            assert abs(statistic(theirs_NSSC) - statistic(ours_NSSC)) < 15
        return
    # Mean differences, mirrored or not: of two images that have nothing in common some 60, of one whose cut begins a
    # pixel further 10. Of 341 columns DALI leaves 59 at the left; torchvision's rounding, which is ours, leaves 58.
    differences_NN = np.array([[differs(a, b) for b in ours_NSSC] for a in theirs_NSSC.astype(float)])
    same_N = differences_NN.argmin(1)
    assert sorted(same_N.tolist()) == [*range(12)]  # each once an epoch
    assert differences_NN.min(1).max() < (15 if case.work.evaluates else 3)
    assert labels_N.tolist() == batch.labels[same_N].tolist()


def differs(image_SSC, like_SSC):
    return min(np.abs(either - like_SSC).mean() for either in (image_SSC, image_SSC[:, ::-1]))


# -- the command --------------------------------------------------------------------------------------

TINY = ["--images", "12", "--batch-size", "4", "--batches", "3", "--rounds", "2", "--threads", "1",
        "--device", "cpu"]  # fmt: skip


def bench(*words):
    return main(["bench", "loader", *TINY, *map(str, words)])


@pytest.mark.process
def test_rows_and_tables_with_a_peer_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dali, "missing", lambda: "not here")
    monkeypatch.setattr(loader.tempfile, "tempdir", str(tmp_path))
    path = tmp_path / "rows.jsonl"
    words = ["--workload", "faces", "--source", "records", "--output", path]
    assert bench(*words) == 0
    bare, ours, other = read_rows(path)
    assert [(row.implementation, row.status) for row in (bare, ours, other)] == [
        ("simplejpeg", "ok"), ("megaclass", "ok"), ("dali", "skipped"),
    ], (bare.reason, ours.reason)  # fmt: skip
    assert other.reason == "not here" and bare.group == ours.group
    assert ours.case["source"] == "records" and ours.case["data"] == "made"
    assert ours.case["distinct_images"] == 12 and ours.case["image_pixels"] == 112 * 112
    assert len(ours.cpu_ms) == len(ours.samples_ms) == 2
    assert {f"cpu_us_{stage}" for stage in loader.STAGES} < ours.work.keys()
    assert [*tmp_path.iterdir()] == [path]  # the images are gone
    said = " ".join(capsys.readouterr().out.split())
    assert "how many times as fast row 2 (megaclass) is" in said
    assert bench(*words) == 0 and len(read_rows(path)) == 3  # the same command has nothing left to do


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--workload", "faces,imagenets"], "did you mean 'imagenet'"),
        (["--source", "record"], "records"),
        (["--peer", "dally"], "dali"),
        (["--rounds", "0"], "--rounds"),
        (["--data", "nowhere"], "nowhere"),
        (["--data", "png"], "0.jpg is no JPEG"),
        (["--data", "narrow"], "0.jpg has 90 x 112 pixels"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_touched(refused, words, part):
    pixels = np.zeros((112, 90, 3), np.uint8)
    encoded = {"png": cv2.imencode(".png", pixels)[1].tobytes(), "narrow": simplejpeg.encode_jpeg(pixels)}
    for name, data in encoded.items():
        Path(name, "a").mkdir(parents=True)
        Path(name, "a", "0.jpg").write_bytes(data)
    assert not refused(["bench", "loader", *TINY, "--workload", "faces", *words], part)
