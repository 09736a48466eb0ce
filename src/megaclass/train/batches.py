"""From a configuration to the training set, and to what loads its batches: their order, and their random changes."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megaclass.config import Config, Steps, steps_of
from megaclass.data import glyphs
from megaclass.data.augment import Change, Composed, TrainTransform, Transform
from megaclass.data.dali import DaliLoader
from megaclass.data.dataset import Dataset, class_names
from megaclass.data.loader import IMAGENET_MEAN, BatchSource, Loader
from megaclass.data.open import kind_of, open_dataset, split_paths
from megaclass.data.photometric import Photometric
from megaclass.data.policy import Erasing, Policy
from megaclass.data.sampler import EpochSampler, rank_part
from megaclass.data.synthetic import SyntheticLoader
from megaclass.data.views import OrientedClasses
from megaclass.errors import UserError
from megaclass.files import cache_directory, locked
from megaclass.parallel.groups import World
from megaclass.parallel.seeding import derive_key
from megaclass.train import schedule


@dataclass(kw_only=True)
class TrainingData:
    """What a rank trains on. ``glyph_set``: where the glyphs lie, if these are; their ``test`` is no part of it."""

    loader: BatchSource  # this rank's part of each step
    epoch_samples: int
    num_classes: int
    class_names: list[str] | None = None  # where the data names its classes
    steps: Steps
    glyph_set: Path | None = None
    dataset: Dataset | None = None  # None: noise
    samples_of_step: Callable[[int], np.ndarray] | None = None  # their numbers in the set, over all ranks


def training_data(config: Config, world: World, say: Callable[[str], None]) -> TrainingData:
    """What a rank trains on. ``say`` receives a line before work that takes a while."""
    data = config.data
    if data.source == "synthetic":
        steps = steps_of(config, data.num_samples)
        noise = synthetic_loader(config, world, steps.total)
        return TrainingData(loader=noise, epoch_samples=data.num_samples, num_classes=data.num_classes, steps=steps)
    glyph_set = _glyph_set(config, say) if data.source == "glyphs" else None
    dataset = training_set(config, glyph_set / "train" if glyph_set else Path(data.path))
    steps = steps_of(config, len(dataset))
    order, size = _order(config, dataset), data.global_batch_size
    return TrainingData(
        loader=training_loader(config, world, dataset, steps.total),
        epoch_samples=len(dataset),
        num_classes=dataset.num_classes,
        class_names=class_names(dataset),
        steps=steps,
        glyph_set=glyph_set,
        dataset=dataset,
        samples_of_step=lambda step: order.indices(rank_part(step, size, 0, 1)),
    )


def _glyph_set(config: Config, say: Callable[[str], None]) -> Path:
    """Render the glyphs where they are missing: the first rank of a machine does, its others wait for it."""
    size, held_out, directory = config.data.image_size, config.data.held_out, glyph_directory(config)
    if directory.exists():
        return glyphs.ensure(directory, image_size=size, held_out=held_out)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with locked(directory.with_name(f".{directory.name}.lock")):
            if not directory.exists():
                say(f"Rendering the glyph data set into {directory} (once, about half a minute)")
            return glyphs.ensure(directory, image_size=size, held_out=held_out)
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"data.path: {directory} cannot be made: {why}; name another") from None


def glyph_directory(config: Config) -> Path:
    """Where the glyphs of this size lie, or will once they are rendered."""
    name = f"glyphs-{config.data.image_size}px-{config.data.held_out}"
    return Path(config.data.path or cache_directory() / name)


def training_set(config: Config, path: Path) -> Dataset:
    """What lies under ``path``, as the configuration wants it. UserError names the setting that is wrong."""
    try:
        dataset = open_dataset(path)
    except UserError as error:
        raise UserError(f"data.path: {error}") from None
    kinds = {"folder" if kind_of(part) == "image folder" else "records" for part in split_paths(path)}
    source = config.data.source
    if source in ("records", "folder") and source not in kinds:
        (other,) = kinds
        raise UserError(f"data.source: {source!r}, but {path} is of the kind {other!r}; set --data.source {other}")
    wanted = config.data.num_classes
    if wanted and wanted != dataset.num_classes:
        raise UserError(
            f"data.num_classes: {wanted}, but {path} has {dataset.num_classes} classes; leave it 0 to take the data's"
        )
    if config.data.orientations > 1:
        return OrientedClasses(dataset, config.data.orientations)
    return dataset


def training_loader(config: Config, world: World, dataset: Dataset, total_steps: int) -> Loader | DaliLoader:
    """This rank's part of the training set in its order, under its random changes."""
    data = config.data
    sampler = _order(config, dataset)

    def indices_of_step(step: int) -> tuple[np.ndarray, np.ndarray]:
        numbers_B = rank_part(step, data.global_batch_size, world.rank, world.size, data.accumulation)
        return sampler.indices(numbers_B), numbers_B

    options: dict[str, Any] = {"workers": data.workers or torch.get_num_threads(), "on_error": data.on_error}
    if data.loader == "dali":  # what it lacks is not asked for: the check of the configuration sees to it
        crop = _geometry(config, data.image_size)
        return DaliLoader(dataset, crop, indices_of_step, device=world.device, **options)
    transform = functools.cache(functools.partial(train_transform, config))
    return Loader(
        dataset,
        transform(data.image_size),
        indices_of_step,
        pin_memory=world.device.type == "cuda",
        transform_of_step=lambda step: transform(schedule.image_size(data, step, total_steps)),
        **options,
    )


def _order(config: Config, dataset: Dataset) -> EpochSampler:
    return EpochSampler(len(dataset), config.run.seed, repeats=config.augment.repeats)


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
        size_of_step=lambda step: schedule.image_size(data, step, total_steps),
    )


def train_transform(config: Config, image_size: int = 0) -> Transform:
    """What happens to training images; ``image_size`` 0: the configuration's."""
    size, augment = image_size or config.data.image_size, config.augment
    mean = IMAGENET_MEAN if config.data.normalise == "imagenet" else (0.5, 0.5, 0.5)
    middle, seed = [round(255 * value) for value in mean], config.run.seed
    erased, light = augment.erase_probability, Photometric(augment, derive_key("photometric", seed))
    changes: list[Change] = [light] if light.changes else []
    if augment.policy != "none":
        changes.insert(0, Policy(augment, size, middle, derive_key("policy", seed)))
    if erased:
        changes.append(Erasing(erased, size, middle, derive_key("erase", seed)))
    return Composed(_geometry(config, size), changes) if changes else _geometry(config, size)


def _geometry(config: Config, image_size: int) -> TrainTransform:
    """Given the settings of ``[augment]`` that it knows, by their names."""
    known = inspect.signature(TrainTransform).parameters
    settings = {key: value for key, value in vars(config.augment).items() if key in known}
    return TrainTransform(image_size, **settings, seed=derive_key("augment", config.run.seed))
