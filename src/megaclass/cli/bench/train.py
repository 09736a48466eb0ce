"""``megaclass bench train``: whole training steps."""

from pathlib import Path
from typing import Any

from megaclass.cli.bench.sweep import options_of_sweep, show
from megaclass.cli.parsing import Given, make_parser, parse_with_settings


def train(words: list[str]) -> None:
    parser = make_parser(
        "megaclass bench train [-n 1,4,8] [-b 128,256] [--dtype float16,tf32] [-o FILE] [--section.key VALUE] [...]",
        "Measure whole training steps, data included. LIST is one value or several with commas between; every "
        "combination is measured, each in processes of its own. The flags of NVIDIA's ResNet-50 script (-n -b --dtype "
        "-i -e -w --num-examples --data-root --mode -o) mean what they mean there. Other settings are given as for "
        "`megaclass train`.",
    )
    options_of_train(parser)
    options, given = parse_with_settings(parser, words)
    options.settings = settings_of(given)

    from megaclass.bench.old_train.plan import planned
    from megaclass.report.nvidia import check_report, write_report
    from megaclass.report.suite import comparisons, suite_tables

    plan, asked = planned(options), Path(options.output)
    if (
        asked.suffix == ".json"
    ):  # in the shape of NVIDIA's script; the rows that it is made from lie beside it
        options.output = str(asked.with_suffix(".jsonl"))
        check_report(asked, [one.case for one in plan])
    rows = show(plan, options, comparisons, suite_tables)
    if asked.suffix == ".json":
        write_report(asked, rows, options.mode)
        print(f"report in {asked}")


def settings_of(given: Given) -> dict[str, Any]:
    """As a case has them: ``section.key`` and value."""
    return {f"{section}.{key}": value for section, values in given.items() for key, value in values.items()}


def options_of_train(parser: Any) -> None:
    """The options of ``bench train``."""
    lists = {
        "recipe": ("resnet50_imagenet", "recipes, or .toml files"),
        "backbone": ("", "instead of the recipe's"),
        "num-classes": (
            "0",
            "of the whole job, with K, M or B; 0: the recipe's or the data's, else 1000 (margin head: 100K)",
        ),
        "sample-rate": ("0", "Partial FC: fraction of the classes scored in a step; 0: the recipe's"),
        "parallelism": (
            "",
            "of a margin head: model (classes sharded) or data (all on each); default: the recipe's",
        ),
        "storage": ("", "of a margin head's centres and momentum; default: the recipe's"),
        "global-batch-size": ("", "images of a step over all devices; default: the recipe's"),
        "simulate-ranks": ("1", "one process does the share of one rank of N: 1/N of batch and classes"),
        "peer": ("", "loops of others that take turns with ours, epoch by epoch: arcface_torch, pytorch"),
    }
    for name, (default, text) in lists.items():
        parser.add_argument(f"--{name}", type=str, default=default, metavar="LIST", help=text)
    nvidia = {
        ("-n", "--ngpus"): ("1", "devices, a process each; on a CPU processes that share its cores"),
        ("-b", "--batch-size"): ("", "images of a step on each device, instead of --global-batch-size"),
        ("--dtype", "--precision"): ("bfloat16", "float32 (no tf32), tf32, float16 or bfloat16"),
    }
    for flags, (default, text) in nvidia.items():
        parser.add_argument(*flags, type=str, default=default, metavar="LIST", help=text)
    numbers = {
        ("-i", "--iterations"): (0, "steps of an epoch; 0: 100 on CUDA, 10 on a CPU"),
        ("-e", "--epochs"): (2, "epochs, those of the warm-up included"),
        ("-w", "--warmup"): (1, "epochs at the beginning that are left out"),
        ("--num-examples",): (
            0,
            "synthetic images of an epoch of the learning rate's schedule; 0: the recipe's",
        ),
        ("--image-size",): (0, "pixels; 0: the recipe's"),
        ("--threads",): (0, "of each process on a CPU; 0: its share of the cores"),
        ("--seed",): (0, "of weights, images and labels"),
    }
    for names, (number, text) in numbers.items():
        parser.add_argument(*names, type=int, default=number, help=text)
    texts = {
        "data-root": (
            "",
            "record set, folder of class folders, or a directory with train/ and val/; default: synthetic",
        ),
        "mode": ("train", "train, val (inference, as `bench infer` measures it) or train_val"),
        "device": ("auto", "auto, cpu or cuda"),
        "peer-path": ("", "directory with arcface_torch's code, which is not changed"),
    }
    for name, (text, explained) in texts.items():
        parser.add_argument(f"--{name}", type=str, default=text, help=explained)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="section.key=LIST",
        help="values of a setting that take turns, epoch by epoch; given again, in every combination",
    )
    parser.add_argument(
        "--one-at-a-time",
        action="store_true",
        help="with --set: the case as it is, and each value changed alone",
    )
    output = "JSON lines file to which a row is appended for each measurement; a name in .json gets a report in the "
    output += "shape of NVIDIA's script, and rows beside it"
    options_of_sweep(parser, output)
