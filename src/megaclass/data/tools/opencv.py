"""OpenCV among threads of ours."""

import contextlib
from collections.abc import Iterator

import cv2
from cv2.utils import logging as cv2_logging


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
