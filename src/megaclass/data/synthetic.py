"""``synthetic``: labels and images made on the device, to measure speed without a data set.

Shapes: B = images of this rank in a step, G = images of all ranks, S = image size, C = 3.
"""

from collections.abc import Callable, Iterator

import torch

from megaclass.data.loader import Batch
from megaclass.parallel.groups import shard_range
from megaclass.parallel.seeding import derive_key

_BATCHES = 2  # of images, taken in turns


class SyntheticLoader:
    """Batches of noise with uniform labels below ``num_classes``, by the loader's interface.

    Labels depend on (seed, step) and the position in the global batch, so all ranks together have the same
    ones at any world size. Images are drawn once: a step costs one draw of labels. ``size_of_step``: pixels of a
    step's images, ``image_size`` at most. A CPU and a GPU draw different numbers.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        global_batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        seed: int = 0,
        size_of_step: Callable[[int], int] | None = None,
    ) -> None:
        self.num_classes = num_classes
        self._global_batch_size = global_batch_size
        self._slice = slice(*shard_range(global_batch_size, rank, world_size))
        self._seed = seed
        self._size_of_step = size_of_step or (lambda step: image_size)
        self._generator = torch.Generator(device)
        self._generator.manual_seed(derive_key(seed, "images", rank))
        shape = (_BATCHES, self._slice.stop - self._slice.start, image_size, image_size, 3)
        self._images = torch.randint(256, shape, dtype=torch.uint8, device=device, generator=self._generator)

    @property
    def damaged(self) -> frozenset[int]:
        """Noise is never damaged."""
        return frozenset()

    def steps(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of the steps ``start`` to ``stop - 1``; nothing to wait for."""
        for step in range(start, stop):
            self._generator.manual_seed(derive_key(self._seed, "labels", step))
            labels_G = torch.randint(
                self.num_classes,
                (self._global_batch_size,),
                device=self._generator.device,
                generator=self._generator,
            )
            size = self._size_of_step(step)
            yield Batch(self._images[step % len(self._images), :, :size, :size], labels_G[self._slice], 0.0)
