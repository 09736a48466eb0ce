"""What a user writes for a list of counts, numbers or names, and how the cores of the machine are shared."""

import os

from megaclass.errors import UserError
from megaclass.results.machine import usable_cores

_SUFFIXES = {"K": 10**3, "M": 10**6, "B": 10**9}


def counts(flag: str, text: str) -> list[int]:
    """``100K,1.5M,7`` as numbers; K, M and B are thousands, millions and (American) billions."""
    return list(dict.fromkeys(_count(flag, word.strip()) for word in text.split(",")))


def _count(flag: str, word: str) -> int:
    factor = _SUFFIXES.get(word[-1:].upper(), 1)
    digits = word[:-1] if factor > 1 else word
    try:
        # Digits without a point stay exact whatever their number.
        value = int(digits) * factor if digits.lstrip("-").isdecimal() else float(digits) * factor
    except ValueError:
        value = 0.5
    if isinstance(value, float) and not value.is_integer():
        raise UserError(f"{flag}: {word!r} is not a whole number such as 128, 100K or 10M")
    return int(value)


def numbers(flag: str, text: str) -> list[float]:
    try:
        return list(dict.fromkeys(float(word) for word in text.split(",")))
    except ValueError:
        raise UserError(f"{flag}: {text!r} is not a number, nor a list of them such as 1,0.1") from None


def names(flag: str, text: str) -> list[str]:
    """What stands between the commas, each once; an empty text is one empty name."""
    found = list(dict.fromkeys(word.strip() for word in text.split(",")))
    if (len(found) > 1 and "" in found) or text.strip() == ",":
        raise UserError(f"{flag}: {text!r}: a name is missing beside a comma")
    return found


def crowded(device: str, processes: int, gpus: int) -> str:
    """Why so many processes are not started here, or an empty string."""
    cores = usable_cores()
    if device == "cuda" and processes > gpus:
        return f"{processes} processes need as many GPUs, and there are {gpus}"
    if device == "cpu" and processes > max(8, 4 * cores):
        return f"{processes} processes are too many for {cores} cores"
    return ""


def share_of_cores(processes: int) -> int:
    """Of one process; alone it follows ``OMP_NUM_THREADS``, as training does."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if processes == 1 and asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return max(1, usable_cores() // processes)


def device_type(name: str) -> str:
    """``cpu`` or ``cuda`` for what ``--device`` says. UserError: not on this machine."""
    from megaclass.parallel import groups

    if name.startswith("cuda:"):
        number = name.removeprefix("cuda:")
        raise UserError(
            f"--device: {name!r} names one GPU, and a benchmark takes them from the first on; set CUDA_VISIBLE_DEVICES="
            f"{number} and say cuda"
        )
    try:
        return groups.pick_device(name).type
    except UserError as error:
        raise UserError(str(error).replace("run.device", "--device")) from None
