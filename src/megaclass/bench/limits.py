"""What this machine can do at most, as measured: a large matrix product and a large copy; and how near to it a step
comes."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from megaclass.bench.timing import time_ms

if TYPE_CHECKING:
    import torch

    from megaclass.parallel.groups import World

REPEATS = 3  # the best one counts: a limit is what the machine can do undisturbed


def measure(case: Any, world: "World") -> dict[str, float]:
    """Operations a second of a product at the case's precision, and bytes a second read and written by a copy. All
    ranks measure at the same time, as they compute."""
    from megaclass.parallel import groups

    groups.barrier()
    return {
        "limit_flops_per_second": product_flops(case.precision, world.device),
        "limit_bytes_per_second": copy_bytes_per_second(world.device),
    }


def beside_limits(work: dict[str, float], step_ms: float, limits: list[dict[str, float]]) -> dict[str, float]:
    """The work of a step, what it makes a second, and the limits that all ranks know, of all of them together."""
    speeds = {f"{name}_per_second": 1000 * amount / step_ms for name, amount in work.items()}
    known = set.intersection(*(set(limit) for limit in limits))
    return work | speeds | {name: sum(limit[name] for limit in limits) for name in sorted(known)}


def copy_bytes_per_second(device: "torch.device") -> float:
    """Bytes read and written by a large copy."""
    import torch

    copied = 2**30 if device.type == "cuda" else 2**28
    source, target = (torch.ones(copied, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * copied / _best_ms(lambda: target.copy_(source), device) * 1000


def product_flops(precision: str, device: "torch.device", side: int = 0) -> float:
    """Operations a second of a square product (:func:`product_ms`); ``side`` 0: one that is large on this device."""
    side = side or (8192 if device.type == "cuda" else 2048)
    return 2 * side**3 / product_ms(precision, side, device) * 1000


def product_ms(precision: str, side: int, device: "torch.device") -> float:
    """A square product with operands of ``precision``, in its fastest form on this device."""
    import torch

    forms = [(torch.float32, precision)]
    if precision in ("bf16", "fp16"):
        half = torch.bfloat16 if precision == "bf16" else torch.float16
        # A product of 16-bit operands needs no flag. On a CPU the head's are of fp32 ones that oneDNN may round.
        forms = [(half, "fp32"), *(forms if device.type == "cpu" and precision == "bf16" else [])]
    return min(_product_ms(dtype, flag, side, device) for dtype, flag in forms)


def _product_ms(dtype: "torch.dtype", precision: str, side: int, device: "torch.device") -> float:
    import torch

    from megaclass.heads.softmax import Products

    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    with Products(precision, device).active():
        return _best_ms(lambda: torch.mm(a, b, out=out), device)


def _best_ms(work: Callable[[], object], device: "torch.device") -> float:
    work()
    return min(time_ms(device, work)[0] for _ in range(REPEATS))
