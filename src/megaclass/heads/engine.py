"""Who computes the passes over the rows: plain PyTorch on any device, or Triton kernels on CUDA."""

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from megaclass.errors import UserError
from megaclass.heads import skipped as skipped_rows
from megaclass.heads import softmax
from megaclass.heads.engine_protocol import Engine
from megaclass.heads.margins import Margin
from megaclass.heads.products import Products
from megaclass.heads.sampling import TorchWalker, Walker
from megaclass.heads.softmax import MicroBatch, SGDStep
from megaclass.heads.storage import Rounding, Storage
from megaclass.heads.tiles import ActiveRows, Tiles, Workspace

KERNELS = ("auto", "triton", "torch")


class TorchEngine:
    """The passes of :mod:`megaclass.heads.softmax`, over tiles that fit ``tile_mb`` MB (0: the default)."""

    reads_owed = True

    def __init__(self, precision: str, device: torch.device, tile_mb: float = 0.0) -> None:
        self.products = Products(precision, device)
        self.walker: Walker = TorchWalker()
        self.workspace = Workspace(device)
        self._tile_bytes = (tile_mb or (16 if device.type == "cpu" else 256)) * 1e6

    def tiles(self, active: ActiveRows, batch_rows: int) -> Tiles:
        """Tiles whose intermediates fit the tile memory."""
        # Gathered rows are copies of centres and momentum, and of the centres once more, brought up to date.
        copies = 2 if active.rows_N is None else 3
        bytes_a_row = 4 * (2 * batch_rows + copies * active.centres.data.shape[1])
        return Tiles(active, max(64, int(self._tile_bytes / bytes_a_row)), self.workspace)

    def pass_one(
        self, unit_BD: Tensor, row_B: Tensor, active: ActiveRows, margin: Margin, shift: float
    ) -> tuple[Tensor, Tensor]:
        tiles = self.tiles(active, len(unit_BD))
        return softmax.pass_one(unit_BD, row_B, tiles, margin, self.products, shift)

    def pass_two(
        self,
        micro_batches: list[MicroBatch],
        active: ActiveRows,
        margin: Margin,
        sgd: SGDStep,
        rounding: Callable[[str], Rounding],
        skipped: Tensor,
        reduce_: Callable[[Tensor], object] | None = None,
    ) -> None:
        if bool(skipped):  # a host sync on CUDA
            return
        tiles = self.tiles(active, max(len(m.unit_BD) for m in micro_batches))
        softmax.pass_two(micro_batches, tiles, margin, self.products, sgd, rounding, reduce_)

    def catch_up(self, active: ActiveRows, product_N4: Tensor, rounding: Callable[[str], Rounding]) -> None:
        skipped_rows.catch_up(self.tiles(replace(active, owed_N4=product_N4), 0), rounding)


def make_engine(
    kernels: str,
    precision: str,
    device: torch.device,
    dim: int,
    tile_mb: float,
    storage: Storage,
) -> Engine:
    """The engine for ``kernels``: ``auto`` takes Triton on CUDA where it works, and warns once where not."""
    if kernels not in KERNELS:
        raise ValueError(f"kernels must be one of {KERNELS}, got {kernels!r}")
    plain = TorchEngine(precision, device, tile_mb)
    if kernels == "torch" or (kernels == "auto" and device.type != "cuda"):
        return plain
    try:
        from megaclass.heads.kernels import TritonEngine

        return TritonEngine(precision, device, dim, plain, storage)
    except Exception as error:  # no Triton, no compiler, a GPU too old, ...
        if kernels == "triton":
            raise UserError(f"kernels 'triton': {error}; use auto or torch") from error
        _warn_once(
            f"the head's Triton kernels do not work here ({error}); using plain PyTorch, which is slower"
        )
        return plain


_warned: set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=3)
