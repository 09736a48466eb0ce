"""From a configuration to what loads the batches of a run: their order, and their random changes."""

import functools
from typing import Any

import numpy as np
import torch

from megaclass.config import Config
from megaclass.data.augment import TrainTransform, Transform
from megaclass.data.dali import CropTransform, DaliLoader
from megaclass.data.dataset import Dataset
from megaclass.data.loader import Loader
from megaclass.data.photometric import Composed, Photometric
from megaclass.data.sampler import EpochSampler, rank_slice
from megaclass.data.synthetic import SyntheticLoader
from megaclass.parallel.groups import World
from megaclass.parallel.seeding import derive_key
from megaclass.train import schedule


def training_loader(config: Config, world: World, dataset: Dataset, total_steps: int) -> Loader | DaliLoader:
    """This rank's part of the training set in its order, under its random changes."""
    data = config.data
    sampler = EpochSampler(len(dataset), config.run.seed)

    def indices_of_step(step: int) -> tuple[np.ndarray, np.ndarray]:
        start, count = rank_slice(step, data.global_batch_size, world.rank, world.size)
        return sampler.indices(start, count), np.arange(start, start + count)

    options: dict[str, Any] = {"workers": data.workers or torch.get_num_threads(), "on_error": data.on_error}
    if data.loader == "dali":
        return DaliLoader(dataset, crop_transform(config), indices_of_step, device=world.device, **options)
    pin_memory = world.device.type == "cuda"
    transform = functools.cache(functools.partial(train_transform, config))
    size_of_step = functools.partial(image_size_of_step, config, total_steps=total_steps)
    return Loader(
        dataset,
        transform(data.image_size),
        indices_of_step,
        pin_memory=pin_memory,
        transform_of_step=lambda step: transform(size_of_step(step)),
        **options,
    )


def image_size_of_step(config: Config, step: int, total_steps: int) -> int:
    """``data.image_size``, or on the way there."""
    data = config.data
    if not data.start_size:
        return data.image_size
    return schedule.image_size(step, total_steps, data.start_size, data.image_size, data.full_size_at)


def train_transform(config: Config, image_size: int = 0) -> Transform:
    """What happens to training images; ``image_size`` 0: the configuration's."""
    augment = config.augment
    geometry = TrainTransform(
        image_size or config.data.image_size,
        flip=augment.flip,
        rotate_degrees=augment.rotate_degrees,
        scale=augment.scale,
        translate=augment.translate,
        shear_degrees=augment.shear_degrees,
        stretch=augment.stretch,
        crop_scale_min=augment.crop_scale_min,
        seed=derive_key("augment", config.run.seed),
    )
    photometric = Photometric(
        low_resolution_probability=augment.low_resolution_probability,
        low_resolution=augment.low_resolution,
        blur_probability=augment.blur_probability,
        blur_radius=augment.blur_radius,
        light_probability=augment.light_probability,
        brightness=augment.brightness,
        contrast=augment.contrast,
        colour_probability=augment.colour_probability,
        hue_degrees=augment.hue_degrees,
        saturation=augment.saturation,
        grey_probability=augment.grey_probability,
        seed=derive_key("photometric", config.run.seed),
    )
    return Composed(geometry, photometric) if photometric.changes else geometry


def crop_transform(config: Config) -> CropTransform:
    """What :func:`train_transform` gives, where nothing is asked for that DALI lacks (config.check sees to it)."""
    return CropTransform(
        config.data.image_size,
        flip=config.augment.flip,
        crop_scale_min=config.augment.crop_scale_min,
        seed=derive_key("augment", config.run.seed),
    )


def synthetic_loader(config: Config, world: World, total_steps: int) -> SyntheticLoader:
    """This rank's part of batches of noise."""
    data = config.data
    return SyntheticLoader(
        num_classes=data.num_classes,
        image_size=data.image_size,
        global_batch_size=data.global_batch_size,
        rank=world.rank,
        world_size=world.size,
        seed=config.run.seed,
        device=world.device,
        size_of_step=functools.partial(image_size_of_step, config, total_steps=total_steps),
    )
