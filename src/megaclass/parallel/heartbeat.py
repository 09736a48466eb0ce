"""Whether the other ranks are still there, for as long as nothing else would tell.

A rank that dies closes its connections, which gloo sees at once, and torchrun ends the ranks of its own node. Nobody
tells of a machine that has vanished or a process that is stopped, and nccl may not see a death on another node: the
ranks would wait for ``run.timeout_s``.

Each rank counts in the store, from a thread, so that slow work is no silence; and watches the rank after it, so
that the load is the same for each, whatever their number. Time is counted in beats: a process that was itself
stopped for a while has missed none.
"""

import contextlib
import datetime
import os
import socket
import threading
from collections.abc import Iterator

import torch.distributed as dist

from megaclass.errors import LOST_RANK_STATUS
from megaclass.parallel.rendezvous import Meeting

_BEATS = 6  # within the time after which a silent rank counts as lost
_LEAVE_S = 5.0  # a call of the store takes milliseconds, where there is a store


@contextlib.contextmanager
def heartbeat(meeting: Meeting, silence_s: float) -> Iterator[None]:
    """Inside, this process ends, with one line and a status of its own, after a rank was silent for ``silence_s``.

    0: it does not. Leave it together, after a barrier: a rank that has left is silent.
    """
    if silence_s == 0:
        yield
        return
    watch = _Watch(meeting, silence_s)
    threads = [threading.Thread(target=work, daemon=True) for work in (watch.beat, watch.look_at_store)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        watch.left.set()
        # One that came back from the store after the end of Python would abort the process.
        for thread in threads:
            thread.join(_LEAVE_S)


class _Watch:
    def __init__(self, meeting: Meeting, silence_s: float) -> None:
        self.left = threading.Event()
        self._meeting, self._silence_s = meeting, silence_s
        self._unanswered = 0  # beats since the store answered

    def beat(self) -> None:
        """Count, and watch the next rank. A store whose machine has vanished blocks this thread for good."""
        rank, after = self._meeting.rank, (self._meeting.rank + 1) % self._meeting.size
        store: dist.Store | None = None
        last, quiet = -1, 0
        while not self.left.wait(self._silence_s / _BEATS):
            try:
                if store is None:
                    store = self._meeting.another_store(datetime.timedelta(seconds=self._silence_s))
                    store.set(f"host/{rank}", socket.gethostname())
                store.add(f"beats/{rank}", 1)
                count = store.add(f"beats/{after}", 0)
                last, quiet = count, (quiet + 1 if count == last else 0)
                if quiet >= _BEATS:
                    store.set("lost", str(after))
                if store.check(["lost"]):
                    lost = store.get("lost").decode()
                    host = f" on {store.get(f'host/{lost}').decode()}" if store.check([f"host/{lost}"]) else ""
                    if rank == 0:
                        # The store may be in this process, and the others read it at their next beat.
                        self.left.wait(2 * self._silence_s / _BEATS)
                    self._end(
                        f"rank {lost}{host} was silent for {self._silence_s:g} s: its process was killed or stopped, "
                        "or its machine is gone"
                    )
                self._unanswered = 0
            except RuntimeError:  # PyTorch's errors of a store: connect anew, until it was silent too long
                store = None

    def look_at_store(self) -> None:
        """End the process where the store itself is silent."""
        while not self.left.wait(self._silence_s / _BEATS):
            self._unanswered += 1
            if self._unanswered > _BEATS:
                place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
                self._end(f"the store of the ranks at {place} has not answered for {self._silence_s:g} s")

    def _end(self, reason: str) -> None:
        if self.left.is_set():
            return
        # Not through sys.stderr: the thread that waits for the lost rank may hold its lock.
        line = f"megaclass: rank {self._meeting.rank} stops: {reason} (run.heartbeat_s)\n"
        os.write(2, line.encode())
        os._exit(LOST_RANK_STATUS)  # that thread waits inside a collective: it cannot be told
