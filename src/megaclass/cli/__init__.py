"""The command line: one short function a verb, with heavy imports inside, so that each starts fast."""

import contextlib
import importlib
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from megaclass import __version__
from megaclass.errors import (
    LOST_RANK_STATUS,
    Interrupted,
    LostRankError,
    UserError,
    first_line,
    lookup,
    out_of_memory,
    printable,
)

# Where each verb is: imported when it is asked for.
VERBS = {
    "train": "models",
    "recipes": "models",
    "show": "models",
    "evaluate": "models",
    "predict": "predict",
    "embed": "embed",
    "gallery": "gallery",
    "serve": "serve",
    "data": "data",
    "bundle": "share",
    "push": "share",
    "checkpoint": "checkpoint",
    "export": "export",
    "plan": "plan",
    "doctor": "doctor",
    "bench": "bench",
    "report": "report",
    "compare": "compare",
    "job": "job",
}

USAGE = """\
megaclass: train image recognition models with very many classes, and measure it

  megaclass train RECIPE [--resume] [--section.key value ...]
        train a model; several processes: torchrun --nproc-per-node N -m megaclass train ...
  megaclass recipes                     list the recipes and the backbones
  megaclass show RECIPE [--all]         print a recipe, or with --all the complete commented configuration
  megaclass plan RECIPE [--devices N --device KIND]
        memory of a device by part, bytes on the wire, time, and what fits; no GPU needed
  megaclass doctor [RECIPE|RUN]         what is wrong with this machine, a recipe's needs, or a run directory
  megaclass evaluate KIND IMAGES        verification, classification, IJB, identification, retrieval
  megaclass predict IMAGE|DIR ...       what a trained model says of images: classes, or the nearest identities
  megaclass embed IMAGES -o FILE        embeddings of images as .npz, .parquet or .safetensors
  megaclass gallery build|add|remove|search|info
        known identities in an index, and who is on an image
  megaclass serve RUN                   a trained model behind HTTP, with a page for people
  megaclass bundle RUN OUTPUT           a model as one directory to share, with its model card
  megaclass push BUNDLE OWNER/NAME      publish it on the Hugging Face hub
  megaclass checkpoint info|verify PATH
        what checkpoints hold, and whether they are whole
  megaclass export FORMAT SOURCE OUTPUT
        a network for other programs (onnx, openvino, pt2), INT8 too; safetensors, backbone, centres, arcface_torch
  megaclass data pack SOURCE OUTPUT     pack a folder, a table, a tar or an .npz of images into record files
  megaclass data align RAW OUTPUT       faces of photographs, found and aligned as face models see them
  megaclass data info|check SET         what a set of images holds, and what is wrong with it
  megaclass data split|stage|pairs ...
        part a set, bring it to a local disk, make a set for verification
  megaclass bench suite [NAME]          all cases of a published report, and a page of them
  megaclass bench train|infer           whole training steps, and inference, data included
  megaclass bench head|loader           a step of the head; what feeds the device
  megaclass bench stability RECIPE      mean and spread over several seeds
  megaclass report DIR|FILES            tables, curves and a page to publish from measured rows
  megaclass job RECIPE|suite NAME       the script that runs it on a cluster: SLURM, PBS or Grid Engine
  megaclass compare A B                 what became slower from the rows A to the rows B

`megaclass VERB --help` says more. Wrong input ends with one line and exit status 2.
"""


_MOST_TOLD = 4000  # letters of an error
_SMALLER = (
    "of a training, lower data.global_batch_size, data.image_size, model.width or the number of classes, raise "
    "data.accumulation, or take a smaller head.storage"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: that of the verb, where it returns one."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # PyTorch's threads spin for milliseconds where they wait for one another, on a processor that others want: on a
    # busy machine the head took three times as long as with this limit, on an idle one as long. Read with torch.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return _main(words)
    # Under torchrun, whose report then shows the traceback of what is not told in one line.
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(_main)(words) or 0


class _OneLine(logging.Formatter):
    """What is told names files and classes, which may be called anything."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - of logging
        return printable(super().formatMessage(record))


def _tell(text: str) -> None:
    """One line of what went wrong, and of a name without end not all."""
    line = printable(text)
    with contextlib.suppress(OSError):  # it may lie on the disk that is full; the status tells all the same
        print(line if len(line) <= _MOST_TOLD else f"{line[:1000]} .. {line[-1000:]}", file=sys.stderr)


def let_go(stream: Any) -> None:
    """What a stream cannot write goes nowhere: kept, it would change the exit status as Python ends."""
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if words else 2
    if words[0] in ("--version", "version"):
        print(f"megaclass {__version__}")
        return 0
    module = importlib.import_module(f"megaclass.cli.{lookup(VERBS, words[0], 'command')}")
    verb: Callable[[list[str]], int | None] = getattr(module, words[0])
    return verb(words[1:]) or 0


def _main(words: list[str]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name need not be UTF-8
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    try:
        status = _run(words)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # who reads has left, as `head` does
        return 128 + signal.SIGPIPE
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0" or not error.agreed:
            _tell(f"megaclass: error: {error}")
        return 2
    except LostRankError as error:
        _tell(f"megaclass: {error}")
        return LOST_RANK_STATUS
    except Interrupted as interrupted:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            _tell(f"megaclass: {interrupted}")
        return interrupted.status
    except (MemoryError, RuntimeError) as error:
        if "device-side assert" in str(error):  # of a kernel, which has written what it is
            _tell("megaclass: error: a check on the GPU failed: the line with 'Assertion' above says which")
            return 2
        if not out_of_memory(error):
            raise
        _tell(f"megaclass: error: out of memory ({first_line(error)}); {_SMALLER}")
        return 2
    except KeyboardInterrupt as interrupt:
        hint = str(interrupt)
        _tell(f"megaclass: interrupted{hint and f'; {hint}'}")
        return 130
    finally:
        let_go(sys.stdout)
        let_go(sys.stderr)
