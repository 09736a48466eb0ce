"""Record sets of a test: written of samples at hand, and read back."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megaclass.data.dataset import Dataset
from megaclass.data.decode import decode
from megaclass.data.records.reader import RecordDataset
from megaclass.data.records.writer import RecordWriter


def write_set(folder: Path, samples: Iterable[tuple[bytes, Any]], **options: Any) -> Path:
    """A record set of images and labels; ``options`` are those of its writer."""
    with RecordWriter(folder, **options) as writer:
        for encoded, label in samples:
            writer.write(encoded, label)
    return folder


def all_samples(dataset: Dataset) -> list[tuple[bytes, int]]:
    """What is read one by one, with the labels that the set tells at once."""
    samples = [tuple(dataset.read(i)) for i in range(len(dataset))]
    assert dataset.labels().tolist() == [label for _, label in samples]
    return samples


def rows(folder: Path) -> list[tuple[int, int]]:
    """(number, label) of each record, where an image has 20 times its number as its grey value."""
    samples = all_samples(RecordDataset(folder))
    return [(round(decode(encoded, "").mean() / 20), label) for encoded, label in samples]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
