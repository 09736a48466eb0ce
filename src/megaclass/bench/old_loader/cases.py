"""The cases of ``bench loader``: what is made of which images, and the size of a pass over them."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeVar

from megaclass.bench.arguments import check_counts
from megaclass.bench.old_loader.photographs import Look
from megaclass.data.augment import EvalTransform, TrainTransform, Transform
from megaclass.data.dali import CropTransform
from megaclass.errors import lookup
from megaclass.parallel.seeding import derive_key

SOURCES = ("records", "folder", "synthetic")
LOADERS = ("threads", "dali")  # of ours, as data.loader names them
EVALUATION = "imagenet-eval"

T = TypeVar("T", bound=TrainTransform)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a loader has to do.

    image_size: of the square that it delivers. what: for a person. look: of the photographs that stand for the
    data set. images: how many of them. batches: of a pass, about a second of CPU time.
    """

    image_size: int
    what: str
    look: Look
    images: int
    batches: int

    def transform(self, name: str, seed: int) -> Transform:
        """This project's transform for the workload ``name``."""
        if name == EVALUATION:
            return EvalTransform(self.image_size, resize=256)
        return self.random_transform(TrainTransform, name, seed)

    def random_transform(self, kind: type[T], name: str, seed: int) -> T:
        """The same boxes and flips whatever the ``kind``; ``name`` is a workload that trains."""
        crop = 0.08 if name == "imagenet" else 1.0
        return kind(self.image_size, flip=True, crop_scale_min=crop, seed=derive_key("augment", seed))


_FACE = Look(height=112, width=112, leaves=60, texture=8.0, quality=95, subsampling="420")
# As most of ImageNet: quality 96, no chroma subsampling (counted in all its files, "Compression in the ImageNet
# Dataset", terryalanunlimited.com, 2021), about 110 KB, 500 x 375 more often than any other size.
_PHOTOGRAPH = Look(height=375, width=500, leaves=250, texture=15.0, quality=96, subsampling="444")

WORKLOADS = {
    "faces": Workload(image_size=112, what="flip", look=_FACE, images=2000, batches=100),
    "imagenet": Workload(
        image_size=224, what="random resized crop, flip", look=_PHOTOGRAPH, images=500, batches=10
    ),
    EVALUATION: Workload(
        image_size=224, what="resize 256, crop 224", look=_PHOTOGRAPH, images=500, batches=10
    ),
}


@dataclass(frozen=True, kw_only=True)
class LoaderCase:
    """One measurement of a loader: passes of ``batches`` batches by ``threads`` threads or processes.

    device: where the batches are delivered; peers that know no device have ``cpu`` here. prefetch: batches that are
    made ahead.
    """

    benchmark: ClassVar[str] = "loader"
    world_size: ClassVar[int] = 1

    workload: str = "faces"
    source: str = "records"
    batch_size: int = 128
    batches: int = 1
    threads: int = 1
    prefetch: int = 2
    device: str = "cpu"
    rounds: int = 10
    warmup: int = 1
    seed: int = 0

    @property
    def steps(self) -> int:
        """Timed turns of every contender."""
        return self.rounds

    @property
    def images(self) -> int:
        """Of a pass."""
        return self.batch_size * self.batches

    @property
    def text(self) -> str:
        """For a person, in a line."""
        kind = WORKLOADS[self.workload]
        return (
            f"{self.workload}, {kind.image_size} px ({kind.what}), {self.rounds} passes of {self.batches} batches "
            f"of {self.batch_size}, {self.threads} threads"
        )

    def parameters(self) -> dict[str, Any]:
        """For a row."""
        return asdict(self)

    def transform(self) -> Transform:
        return WORKLOADS[self.workload].transform(self.workload, self.seed)

    def crop_transform(self) -> CropTransform:
        """The plan of :meth:`transform`, for what decodes elsewhere than our loader."""
        return WORKLOADS[self.workload].random_transform(CropTransform, self.workload, self.seed)

    @property
    def image_size(self) -> int:
        return WORKLOADS[self.workload].image_size

    def check(self) -> None:
        """What no machine could run is the user's mistake."""
        lookup(WORKLOADS, self.workload, "workload")
        check_counts(self, ("warmup", "seed"))
