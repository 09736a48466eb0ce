"""A record file that is cut while it is being trained on: an error that names it, or a stand-in."""

import pytest

import tiny
from in_memory import in_order
from megaclass.data.augment import EvalTransform
from megaclass.data.dataset import DamagedSampleError
from megaclass.data.loader import Loader
from megaclass.data.records.reader import RecordDataset

BATCH = 4


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_record_file_that_is_cut(tmp_path, on_error):
    """Mapped into memory, it would end the process without a word."""
    rec = tiny.write_records(tmp_path / "records") / "train.rec"
    dataset = RecordDataset(rec.parent)
    steps = Loader(dataset, EvalTransform(tiny.SIZE), in_order(BATCH), prefetch=1, on_error=on_error).steps(
        0, 6
    )
    next(steps)
    size = rec.stat().st_size
    with rec.open("r+b") as file:
        file.truncate(size // 2)
    if on_error == "fail":
        with pytest.raises(DamagedSampleError, match=r"train\.rec record \d+ .* is damaged"):
            list(steps)
    else:
        assert all(len(batch.labels) == BATCH for batch in steps)  # those from the half that is left stand in
