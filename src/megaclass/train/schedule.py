"""Learning-rate schedules: pure functions from an optimizer step to a factor of the base learning rate.

``step`` counts optimizer steps (not micro-batches) from 0; the factor is the one that this step uses. Every
schedule is a linear warm-up times a decay that starts where the warm-up ends.

No step of a run has the factor 0: the warm-up starts at ``1 / warmup_steps`` and the decay reaches
``final_factor`` at ``total_steps``, one step after the last. arcface_torch's PolynomialLRWarmup decays alike,
step for step; its warm-up is one step later, after a very first step at the full base rate.
"""

import math
from collections.abc import Sequence
from typing import Any

KINDS = ("constant", "polynomial", "cosine", "multistep")


def warmup_factor(step: int, warmup_steps: int) -> float:
    """Rise from ``1 / warmup_steps`` at step 0 to 1 at step ``warmup_steps - 1``; 1 from then on."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0


def progress(step: int, total_steps: int, warmup_steps: int) -> float:
    """The share of the steps after the warm-up that is done: 0 during the warm-up, 1 after the end."""
    return min(1.0, max(0, step - warmup_steps) / max(1, total_steps - warmup_steps))


def polynomial(share: float, power: float = 1.0, final_factor: float = 0.0) -> float:
    """``(1 - share)^power``, scaled to end at ``final_factor``; arcface_torch trains with power 1."""
    return final_factor + (1.0 - final_factor) * (1.0 - share) ** power


def cosine(share: float, final_factor: float = 0.0) -> float:
    """Half a cosine wave from 1 to ``final_factor`` (SGDR, arXiv:1608.03983, section 3, one period)."""
    return final_factor + (1.0 - final_factor) * 0.5 * (1.0 + math.cos(math.pi * share))


def multistep(step: int, total_steps: int, milestones: Sequence[float], gamma: float = 0.1) -> float:
    """``gamma`` to the number of milestones reached: fractions of the whole run, warm-up included."""
    # Rounded, because 0.7 * 10 is a little more than 7.
    return gamma ** sum(step >= round(milestone * total_steps) for milestone in milestones)


def factor(
    kind: str,
    step: int,
    total_steps: int,
    warmup_steps: int = 0,
    *,
    power: float = 1.0,
    milestones: Sequence[float] = (),
    gamma: float = 0.1,
    final_factor: float = 0.0,
) -> float:
    """The factor of the base learning rate at an optimizer step.

    kind: one of :data:`KINDS`. ``power`` belongs to polynomial, ``milestones`` and ``gamma`` to multistep,
    ``final_factor`` to polynomial and cosine.
    """
    assert step >= 0 and 0 <= warmup_steps <= total_steps, "the configuration's limits see to it"
    share = progress(step, total_steps, warmup_steps)
    decays: dict[str, Any] = {
        "constant": lambda: 1.0,
        "polynomial": lambda: polynomial(share, power, final_factor),
        "cosine": lambda: cosine(share, final_factor),
        "multistep": lambda: multistep(step, total_steps, milestones, gamma),
    }
    return warmup_factor(step, warmup_steps) * decays[kind]()


_SIZE_STRIDE = 16  # few sizes: whatever is tuned or compiled for a size is so once for each


def image_size(step: int, total_steps: int, start: int, full: int, full_at: float) -> int:
    """Progressive resizing: from ``start`` pixels at step 0 in strides of 16 to ``full`` at ``full_at`` of the run.

    Howard 2018, "Training Imagenet in 3 hours for USD 25" (fast.ai); Touvron et al. 2019, arXiv:1906.06423, section 3,
    on why the last images are the largest.
    """
    share = step / (full_at * total_steps) if full_at else 1.0
    if share >= 1.0:
        return full
    return min(full, start + int((full - start) * share / _SIZE_STRIDE) * _SIZE_STRIDE)
