"""Work handed to threads piece by piece."""

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import cv2
from cv2.utils import logging as cv2_logging

from megaclass.results.machine import usable_cores

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Piece], Result], pieces: Iterable[Piece], workers: int = 0
) -> Generator[Result, None, None]:
    """``work(piece)`` of each piece, in the order of the pieces, by ``workers`` threads (0: one a core).

    At most twice as many pieces as threads are begun and not yet taken, so that memory stays bounded. An error
    of a piece is raised in its place; then, or when the iterator is closed, those not begun are dropped.
    """
    workers = workers or usable_cores()
    pool = ThreadPoolExecutor(workers)
    pending: deque[Future[Result]] = deque()
    try:
        for piece in pieces:
            pending.append(pool.submit(work, piece))
            if len(pending) == 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def one_silent_thread() -> Iterator[None]:
    """Within the block OpenCV starts no threads and prints nothing.

    The threads here are enough: its own would wait for one another on the same cores. What it says of damaged
    images would run across the progress bar, and is told anyway.
    """
    threads, level = cv2.getNumThreads(), cv2_logging.getLogLevel()
    cv2.setNumThreads(1)
    cv2_logging.setLogLevel(cv2_logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
        cv2_logging.setLogLevel(level)
