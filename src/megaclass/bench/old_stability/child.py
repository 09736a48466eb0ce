"""Runs a module as ``python -m`` does, until its standard input ends: then its parent is gone or wants it to end.

A training that outlived the study that started it would go on in a directory in which nobody expects it.
"""

import os
import runpy
import signal
import sys
import threading


def main() -> None:
    threading.Thread(target=_end_with_input, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_with_input() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)  # torchrun ends its workers when it gets one


if __name__ == "__main__":
    main()
