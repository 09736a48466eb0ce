"""NVIDIA DALI's CPU pipeline as a peer: its own readers, decoders and transforms."""

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

NAME = "dali"
SOURCES = ("records", "folder")


def missing() -> str:
    """Why it cannot be measured here, or an empty string."""
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"):
        return ""
    return "DALI is not installed: pip install nvidia-dali-cuda120"


def version() -> str:
    from nvidia import dali

    return str(dali.__version__)


class Pipeline:
    """uint8 batches in host memory, as ours: nothing is normalised, nothing copied to a device. ``case`` is one of
    ``bench loader``."""

    def __init__(self, case: Any, directory: str) -> None:
        from nvidia.dali import pipeline_def

        self._case = case
        make = pipeline_def(
            batch_size=case.batch_size,
            num_threads=case.threads,
            device_id=None,
            prefetch_queue_depth=case.prefetch,
            seed=case.seed + 1,  # 0 asks for a random one
        )(_graph)
        self._pipeline = make(case, directory)
        self._pipeline.build()
        self._fresh = True

    def batches(self, use: Callable[[np.ndarray, np.ndarray], object]) -> None:
        """Make the batches of a pass, not one more, and call ``use(images_BSSC, labels_B)`` with each of them.
        Both are views of memory that DALI will use again."""
        pipeline, case = self._pipeline, self._case
        ahead = min(case.prefetch, case.batches)
        # The first call of all fills the queue by itself.
        for _ in range(1 if self._fresh else ahead):
            pipeline.schedule_run()
        begun = case.prefetch if self._fresh else ahead
        self._fresh = False
        for done in range(max(case.batches, begun)):
            images, labels = (np.asarray(output.as_tensor()) for output in pipeline.share_outputs())
            if done < case.batches:
                use(images, labels.reshape(-1))
            pipeline.release_outputs()
            if done + begun < case.batches:
                pipeline.schedule_run()


def _graph(case: Any, directory: str) -> tuple[Any, Any]:
    """As in DALI's own example for ResNet-50: only the part of an image that a crop needs is decoded, and it is
    resized with a triangular filter. Flips are drawn for half of the images."""
    from nvidia.dali import fn, types

    size, order = case.work.image_size, {"random_shuffle": not case.work.evaluates}
    if case.source == "records":
        path = f"{directory}/train"
        encoded, labels = fn.readers.mxnet(path=[f"{path}.rec"], index_path=[f"{path}.idx"], **order)
    else:
        encoded, labels = fn.readers.file(file_root=directory, **order)
    if case.workload == "imagenet":
        images = fn.decoders.image_random_crop(
            encoded,
            output_type=types.RGB,
            random_area=[0.08, 1.0],
            random_aspect_ratio=[3 / 4, 4 / 3],
            num_attempts=10,
        )
        images = fn.resize(images, resize_x=size, resize_y=size, interp_type=types.INTERP_TRIANGULAR)
    else:
        images = fn.decoders.image(encoded, output_type=types.RGB)
    if case.work.evaluates:
        images = fn.resize(images, resize_shorter=256, interp_type=types.INTERP_TRIANGULAR)
        return fn.crop(images, crop=(size, size)), labels
    return fn.flip(images, horizontal=fn.random.coin_flip()), labels
