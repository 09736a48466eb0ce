"""Whether a measurement had the processors to itself."""

import contextlib
import time
from pathlib import Path

_FILE = Path("/proc/pressure/cpu")


class Pressure:
    """For which part of the time since this was made some task of the machine waited for a processor.

    Linux counts it (Documentation/accounting/psi.rst); elsewhere the answer is None. A measurement that is alone
    has as many threads as there are cores, and hardly ever waits.
    """

    def __init__(self) -> None:
        self._begin, self._waited_s = time.monotonic(), _waited_s()

    def percent(self) -> float | None:
        waited_s, seconds = _waited_s(), time.monotonic() - self._begin
        if waited_s is None or self._waited_s is None or seconds <= 0:
            return None
        return round(min(100.0, 100 * (waited_s - self._waited_s) / seconds), 1)


def _waited_s() -> float | None:
    """The counter of the line ``some avg10=0.00 avg60=0.00 avg300=0.00 total=MICROSECONDS``."""
    with contextlib.suppress(OSError, ValueError):
        return int(_FILE.read_text().splitlines()[0].rpartition("total=")[2]) / 1e6
    return None
