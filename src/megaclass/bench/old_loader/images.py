"""The images of a case on disk, the same bytes as a folder and as records: every contender reads its own kind."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from megaclass.bench.old_loader.cases import Workload
from megaclass.bench.old_loader.photographs import encoded_photograph
from megaclass.data.dataset import Sample
from megaclass.data.decode import JPEG_START, check_header
from megaclass.data.open import open_dataset
from megaclass.data.records.writer import RecordWriter
from megaclass.errors import UserError

_CLASSES = 10  # of made images


class ImageSet(NamedTuple):
    """``folder`` holds a directory a class; ``records`` the same samples in the same order. ``name`` is
    that of the set they come from."""

    folder: Path
    records: Path
    name: str
    images: int
    mean_bytes: float
    mean_pixels: float

    def facts(self) -> dict[str, str | float]:
        """For a row."""
        return {
            "data": self.name,
            "distinct_images": self.images,
            "image_bytes": round(self.mean_bytes),
            "image_pixels": round(self.mean_pixels),
        }


def write_images(
    workload: Workload, directory: Path, *, data: str, images: int, seed: int, threads: int
) -> ImageSet:
    """Write ``images`` JPEG files (0: as many as the workload has) below ``directory``.

    They are samples of the set ``data`` at even distances, or photographs that are made. Raises UserError for a
    set that cannot be measured: one with an image that is no JPEG, or of another size where the workload only
    flips.
    """
    samples = _samples(workload, data, images or workload.images, seed, threads)
    pixels = [_checked(sample.encoded, where, workload) for where, sample in samples]
    # Grouped by class, as a folder has them: sample i is the same in both.
    found = sorted((sample for _, sample in samples), key=lambda sample: sample.label)
    folder = directory / "folder"
    # Keys from 0 and nothing but images, as DALI's reader wants it.
    with RecordWriter(directory / "records", index_record=False) as writer:
        for number, sample in enumerate(found):
            kind = folder / f"{sample.label:010d}"
            kind.mkdir(parents=True, exist_ok=True)
            (kind / f"{number:010d}.jpg").write_bytes(sample.encoded)
            writer.write(sample.encoded, sample.label)
    mean_bytes = sum(len(sample.encoded) for sample in found) / len(found)
    name = Path(data).name if data else "made"
    return ImageSet(folder, writer.path, name, len(found), mean_bytes, sum(pixels) / len(pixels))


def _samples(workload: Workload, data: str, count: int, seed: int, threads: int) -> list[tuple[str, Sample]]:
    """Where each sample is from, and its file."""
    if data:
        dataset = open_dataset(data)
        count = min(count, len(dataset))
        indices = [place * len(dataset) // count for place in range(count)]
        found = [(dataset.describe(index), dataset.read(index)) for index in indices]
        # A folder numbers the classes that it has.
        number = {label: n for n, label in enumerate(sorted({sample.label for _, sample in found}))}
        return [(where, sample._replace(label=number[sample.label])) for where, sample in found]
    with ThreadPoolExecutor(threads) as pool:
        made = pool.map(partial(encoded_photograph, workload.look, seed), range(count))
        return [(f"image {number}", Sample(jpeg, number % _CLASSES)) for number, jpeg in enumerate(made)]


def _checked(encoded: bytes, where: str, workload: Workload) -> int:
    """The number of pixels."""
    if not encoded.startswith(JPEG_START):
        raise UserError(f"--data: {where} is no JPEG, the one format that all loaders read; name another set")
    height, width = check_header(encoded, where)
    size = workload.image_size
    if workload.look.height == size and (height, width) != (size, size):
        raise UserError(
            f"--data: {where} has {width} x {height} pixels, and the workload only flips images of {size} x "
            f"{size}; name another set or --workload imagenet"
        )
    return height * width
