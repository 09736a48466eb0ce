"""What training says of memory: planned before it starts, refused where it cannot fit, explained where it ran out."""

import logging

import torch

from megaclass.config import Config
from megaclass.errors import UserError, first_line, in_bytes
from megaclass.parallel.groups import World
from megaclass.parallel.rendezvous import number
from megaclass.plan.choose import largest_parts, nearest, require_memory
from megaclass.plan.memory import Job, memory_of
from megaclass.results.machine import available_memory
from megaclass.train.arithmetic import pick_arithmetic


def planned_job(config: Config, world: World, classes: int = 0) -> Job:
    """For :mod:`megaclass.plan`. classes 0: those that the configuration says, if any."""
    compute = pick_arithmetic(config.precision.compute, config.precision.channels_last, world.device).compute
    classes, local_ranks = classes or config.data.num_classes, number("LOCAL_WORLD_SIZE", 1, least=1)
    return Job(config, compute, classes, world.size, local_ranks, world.device.type)


def memory_there(world: World) -> float:
    """Bytes that this rank may take: of its GPU, or its share of what is free on its machine."""
    if world.device.type == "cuda":
        return float(torch.cuda.get_device_properties(world.device).total_memory)
    return available_memory() / number("LOCAL_WORLD_SIZE", 1, least=1)


def require_room(config: Config, world: World, classes: int = 0) -> None:
    """UserError where the run cannot fit: before what takes most is made, for where a system lends more memory than it
    has, no allocator refuses, and the kernel ends the process without a word."""
    try:
        require_memory(planned_job(config, world, classes), memory_there(world))
    except UserError:
        raise
    except Exception as error:  # a backbone of one's own may do what tensors without memory cannot
        if classes:  # once
            logging.getLogger(__name__).warning("memory is not planned: %s", first_line(error))


def foresight(config: Config, world: World, classes: int) -> str:
    """The line before the first step; empty where memory cannot be planned, which :func:`require_room` has said."""
    try:
        memory = memory_of(planned_job(config, world, classes))
    except Exception:
        return ""
    return f"planned: {in_bytes(memory.total)} of memory a rank ({largest_parts(memory)}); `megaclass plan` says more"


def hindsight(config: Config, world: World, error: Exception) -> str:
    """The line after an allocator has refused."""
    told = f"out of memory ({first_line(error)})"
    try:
        memory = memory_of(job := planned_job(config, world))
    except Exception:
        return f"{told}: lower data.global_batch_size, or raise data.accumulation"
    # What was planned fitted, or the run would have been refused: others take memory too, or the plan is too low.
    return (
        f"{told}; planned were {in_bytes(memory.total)} a rank ({largest_parts(memory)}): "
        f"for a tenth less {nearest(job, 0.9 * min(memory.total, memory_there(world)))}"
    )
