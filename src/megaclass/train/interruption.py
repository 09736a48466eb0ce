"""Signals that ask a run to end: it finishes its step, saves, and can be started again.

SIGTERM is what a scheduler sends before it takes a machine away, SIGUSR1 what it can be told to send earlier (Slurm's
``--signal``), SIGHUP a terminal that closes, SIGINT is Ctrl-C.
"""

import os
import signal
import socket
import threading
import time
from types import FrameType, TracebackType
from typing import Self

from megaclass.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
# Ctrl-C reaches torchrun and its ranks, and torchrun passes it on: the same wish twice.
_SAME_WISH_S = 1.0


class Interruption:
    """Inside, the first signal is noted in ``signal``; a second one ends the process at once, and so does the end of
    ``grace_s`` seconds. Before :meth:`wait_for_step` there is nothing to save: the first one raises Interrupted.

    A thread listens, for the main one may wait for another rank inside a collective. Signals that the process was
    started to ignore (nohup, a shell's background) stay ignored; outside the main thread there are none.
    """

    def __init__(self, grace_s: float) -> None:
        self.signal: signal.Signals | None = None
        self._grace_s = grace_s
        self._waits = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._heard, self._told = socket.socketpair()
        self._told.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._raise)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._before:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._wakeup_before)
        self._told.close()
        self._thread.join()
        self._heard.close()

    def wait_for_step(self) -> None:
        """From now on a signal waits for the loop to look at ``signal``."""
        self._waits = True

    def end_by(self, number: signal.Signals) -> None:
        """Another rank was told to end: this one ends within the same time."""
        if self.signal is None and self._before:
            self._told.send(bytes([number]))

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if not self._waits:
            raise Interrupted(signal.Signals(number))

    def _listen(self) -> None:
        noted_at = 0.0
        while True:
            left_s = max(1e-3, noted_at + self._grace_s - time.monotonic()) if self.signal else None
            self._heard.settimeout(left_s)
            try:
                heard = self._heard.recv(1)
            except TimeoutError:
                self._end(f"no checkpoint could be finished within {self._grace_s:g} s (run.grace_s)")
            if not heard:
                return
            if heard[0] not in self._before:
                continue
            if self.signal is None:
                self.signal, noted_at = signal.Signals(heard[0]), time.monotonic()
            elif time.monotonic() > noted_at + _SAME_WISH_S:
                self._end("it came twice")

    def _end(self, why: str) -> None:
        assert self.signal is not None
        # Not through sys.stderr, whose lock the main thread may hold.
        os.write(2, f"megaclass: {self.signal.name}, and {why}: ended without a new checkpoint\n".encode())
        os._exit(Interrupted(self.signal).status)
