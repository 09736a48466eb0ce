"""The command line: one short function a verb, with heavy imports inside, so that each starts fast."""

import importlib
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence

from megaclass import __version__
from megaclass.errors import LOST_RANK_STATUS, LostRankError, UserError, lookup

# Where each verb is: imported when it is asked for.
VERBS = {
    "train": "models",
    "recipes": "models",
    "show": "models",
    "evaluate": "models",
    "predict": "predict",
    "data": "data",
    "export": "export",
    "bench": "bench",
    "report": "report",
    "compare": "compare",
}

USAGE = """\
megaclass: train image recognition models with very many classes, and measure it

  megaclass train RECIPE [--resume] [--section.key value ...]
        train a model; several processes: torchrun --nproc-per-node N -m megaclass train ...
  megaclass recipes                     list the recipes and the backbones
  megaclass show RECIPE [--all]         print a recipe, or with --all the complete commented configuration
  megaclass evaluate verification IMAGES [--pairs FILE] [--run-dir DIR] [...]
        score a model on pairs of images it was not trained on
  megaclass evaluate classification IMAGES --run-dir DIR
        top-1 and top-5 accuracy
  megaclass predict IMAGE|DIR ... --run-dir DIR [--names FILE] [--output FILE.json|.jsonl|.csv] [--sheet FILE.png]
        what a trained model says of images: the most probable classes, or the nearest identities
  megaclass export arcface_torch SOURCE OUTPUT [--ranks N]
        write a run, or checkpoints of arcface_torch, as checkpoints of arcface_torch for N processes
  megaclass data pack SOURCE OUTPUT     pack a folder, a table, a tar or an .npz of images into record files
  megaclass data info|check SET         what a set of images holds, and what is wrong with it
  megaclass data shuffle|split|merge|stage|pairs ...
        write sets anew, bring them to a local disk, make sets for verification
  megaclass bench suite [NAME] [--fit] [--output DIR]
        all cases of a published report, as published or scaled to this machine, and a page of them
  megaclass bench train [-n 1,8] [-b 256] [--dtype float16,tf32] [--recipe NAME] [--output FILE.jsonl]
        measure whole training steps, data included, by devices, batch, precision and recipe
  megaclass bench head [--num-classes 100K,1M] [--peer arcface_torch --peer-path DIR] [--output FILE.jsonl]
        measure a step of the head: time, memory, and how near the limits of the machine it comes
  megaclass bench infer [-b 1,8,64] [--dtype float32,bfloat16] [--engine eager,compiled,onnx] [--output FILE.jsonl]
        measure latency and throughput of inference, data included, by batch size, precision and engine
  megaclass bench loader [--workload faces,imagenet] [--data SET] [--output FILE.jsonl]
        measure what feeds the device: images a second and a CPU second, by stage, beside bare decode
  megaclass bench stability RECIPE [--seeds 5] [--output DIR] [--section.key value ...]
        train a recipe with several seeds: mean and spread of its metric, time to train, curves
  megaclass report DIR|FILES [--against NAME|FILE|DIR ...] [--output DIR]
        tables, curves and a page to publish from measured rows, beside published or earlier numbers
  megaclass compare A B [--fail-if-slower 5%] [--fail-if-more-memory 10%] [--fail-if-unclear]
        what became slower from the earlier rows A to the later rows B; for continuous integration

`megaclass VERB --help` says more. Wrong input ends with one line and exit status 2.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: that of the verb, where it returns one."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return _main(words)
    # Under torchrun, whose report then shows the traceback of what is not told in one line.
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(_main)(words) or 0


def _main(words: list[str]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # a file name need not be UTF-8, as on standard error
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if words else 2
    if words[0] in ("--version", "version"):
        print(f"megaclass {__version__}")
        return 0
    try:
        module = lookup(VERBS, words[0], "command")
        verb: Callable[[list[str]], int | None] = getattr(
            importlib.import_module(f"megaclass.cli.{module}"), words[0]
        )
        return verb(words[1:]) or 0
    except UserError as error:
        if os.environ.get("RANK", "0") == "0" or not error.agreed:
            print(f"megaclass: error: {error}{_in_vain()}", file=sys.stderr)
        return 2
    except LostRankError as error:
        print(f"megaclass: {error}", file=sys.stderr)
        return LOST_RANK_STATUS
    except KeyboardInterrupt as interrupt:
        resume = "--resume continues from the last checkpoint" if words[0] == "train" else ""
        hint = str(interrupt) or resume
        print(f"megaclass: interrupted{hint and f'; {hint}'}", file=sys.stderr)
        return 130


def _in_vain() -> str:
    """What torchrun will do about bad input: it starts the ranks again whatever they ended with."""
    limit, used = (int(os.environ.get(f"TORCHELASTIC_{n}", "0")) for n in ("MAX_RESTARTS", "RESTART_COUNT"))
    return f" (torchrun restarts up to {limit - used} times more, in vain: stop it)" if limit > used else ""
