"""Files that disappear, or are cut, while they are being trained on: an error that names them, or a stand-in."""

import pytest

import tiny
from in_memory import in_order
from megaclass.data.augment import EvalTransform
from megaclass.data.dataset import DamagedSampleError
from megaclass.data.folder import FolderDataset
from megaclass.data.loader import Loader
from megaclass.data.records.reader import RecordDataset

BATCH = 4


def loader(dataset, on_error):
    return Loader(dataset, EvalTransform(tiny.SIZE), in_order(BATCH), prefetch=1, on_error=on_error)


def test_an_image_that_disappears(tmp_path, caplog):
    records = RecordDataset(tiny.write_records(tmp_path / "records"))
    for number in range(len(records)):
        sample = records.read(number)
        (tmp_path / f"images/{sample.label}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"images/{sample.label}/{number:03}.jpg").write_bytes(sample.encoded)
    dataset = FolderDataset(tmp_path / "images")
    failing, skipping = (loader(dataset, on_error).steps(0, 4) for on_error in ("fail", "skip"))
    assert next(failing).labels.tolist() == next(skipping).labels.tolist()
    next(failing), next(skipping)  # and one step more is made already
    (gone,) = tmp_path.glob("images/*/013.jpg")
    gone.unlink()
    with pytest.raises(DamagedSampleError, match=r"013\.jpg cannot be read: No such file"):
        list(failing)
    assert [len(batch.labels) for batch in skipping] == [BATCH] * 2
    assert "013.jpg" in caplog.text and "stands in" in caplog.text


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_record_file_that_is_cut(tmp_path, on_error):
    """Mapped into memory, it would end the process without a word."""
    rec = tiny.write_records(tmp_path / "records") / "train.rec"
    dataset = RecordDataset(rec.parent)
    steps = loader(dataset, on_error).steps(0, 6)
    next(steps)
    size = rec.stat().st_size
    with rec.open("r+b") as file:
        file.truncate(size // 2)
    if on_error == "fail":
        with pytest.raises(DamagedSampleError, match=r"train\.rec record \d+ .* is damaged"):
            list(steps)
    else:
        assert all(len(batch.labels) == BATCH for batch in steps)  # those from the half that is left stand in
