"""Learning-rate schedules: pure functions from an optimizer step to a factor of the base learning rate.

``step`` counts optimizer steps (not micro-batches) from 0; the factor is the one that this step uses. Every
schedule is a linear warm-up times a decay that starts where the warm-up ends; with ``decay_in_warmup`` it is then where
it would be had it started with the run.

No step of a run has the factor 0: the warm-up starts at ``1 / warmup_steps`` and the decay reaches
``final_factor`` at ``total_steps``, one step after the last. arcface_torch's PolynomialLRWarmup decays alike,
step for step; its warm-up is one step later, after a very first step at the full base rate.
"""

import math

from megaclass.config import Data, Schedule


def factor(plan: Schedule, step: int, total_steps: int, warmup_steps: int = 0) -> float:
    """The factor of the base learning rate at an optimizer step."""
    # The share of the decay that is done: 0 during the warm-up, 1 after the end.
    start = 0 if plan.decay_in_warmup else warmup_steps
    share = min(1.0, (step - start) / max(1, total_steps - start)) if step >= warmup_steps else 0.0
    if plan.kind == "polynomial":  # arcface_torch's, with power 1
        decay = plan.final_factor + (1.0 - plan.final_factor) * (1.0 - share) ** plan.power
    elif plan.kind == "cosine":  # half a wave (SGDR, arXiv:1608.03983, section 3, one period)
        decay = plan.final_factor + (1.0 - plan.final_factor) * 0.5 * (1.0 + math.cos(math.pi * share))
    elif plan.kind == "multistep":  # milestones are rounded, because 0.7 * 10 is a little more than 7
        decay = plan.gamma ** sum(step >= round(milestone * total_steps) for milestone in plan.milestones)
    else:
        decay = 1.0
    return warmup_factor(step, warmup_steps, plan.warmup_from) * decay


def warmup_factor(step: int, warmup_steps: int, start: float = 0.0) -> float:
    """Rise from one part in ``warmup_steps`` above ``start`` at step 0 to 1 at step ``warmup_steps - 1``; 1 from then
    on."""
    return start + (1 - start) * min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0


_SIZE_STRIDE = 16  # few sizes: whatever is tuned or compiled for a size is so once for each


def image_size(data: Data, step: int, total_steps: int) -> int:
    """Progressive resizing: from ``start_size`` pixels at ``grow_from`` to ``image_size`` at ``full_size_at``, in
    strides of 16.

    Howard 2018, "Training Imagenet in 3 hours for USD 25" (fast.ai); Touvron et al. 2019, arXiv:1906.06423, section 3,
    on why the last images are the largest.
    """
    begin, end = data.grow_from * total_steps, data.full_size_at * total_steps
    if not data.start_size or step >= end:
        return data.image_size
    grown = (data.image_size - data.start_size) * (max(0, step - begin) / max(1, end - begin))
    return data.start_size + int(grown / _SIZE_STRIDE) * _SIZE_STRIDE
