"""How much of the training time went into waiting for data, and for what."""

from collections.abc import Callable

from megaclass.data.loader import Batch

CAUSES = ("disk", "decode", "copy")


class StallMeter:
    """Adds up the waits of steps until they are read.

    ``copy_wait_ms()`` tells for how long the device has waited for copies since it was last asked. The loop's own
    wait is put down to the disk where the loader's threads spent more time on reading than on all the rest, else to
    decoding.
    """

    def __init__(self, copy_wait_ms: Callable[[], float]) -> None:
        self._copy_wait_ms = copy_wait_ms
        self._wait_ms = self._read_ms = self._decode_ms = 0.0

    def add(self, batch: Batch) -> None:
        self._wait_ms += batch.wait_ms
        self._read_ms += batch.read_ms
        self._decode_ms += batch.decode_ms

    def read(self, elapsed_s: float) -> tuple[float, str | None]:
        """Percent of ``elapsed_s`` spent waiting, and the cause of most of it (None: there was none); starts anew."""
        copy_ms = self._copy_wait_ms()
        total_ms = self._wait_ms + copy_ms
        cause = "disk" if self._read_ms > self._decode_ms else "decode"
        if copy_ms > self._wait_ms:
            cause = "copy"
        self._wait_ms = self._read_ms = self._decode_ms = 0.0
        return min(100.0, total_ms / 10 / elapsed_s), cause if total_ms else None
