"""``megaclass bench infer``: latency and throughput."""

from typing import Any

from megaclass.cli.bench.sweep import options_of_sweep, show
from megaclass.cli.parsing import make_parser, parse


def infer(words: list[str]) -> None:
    parser = make_parser(
        "megaclass bench infer [-b 1,8,64] [--dtype float32,bfloat16] [--engine eager,compiled,onnx] [--output FILE] "
        "[...]",
        "Measure inference from a batch of uint8 images in host memory to the result on the device, one batch at a "
        "time: images a second, and the mean and percentiles of the latency. LIST is one value or several with commas "
        "between; every combination is measured, each in a process of its own. The flags of NVIDIA's ResNet-50 script "
        "(-b --dtype -i -e -w --data-root) mean what they mean there.",
    )
    options_of_infer(parser)
    options = parse(parser, words)

    from megaclass.bench.old_infer.plan import planned
    from megaclass.report.infer import comparisons, infer_tables

    show(planned(options), options, comparisons, infer_tables)


def options_of_infer(parser: Any) -> None:
    """The options of ``bench infer``."""
    lists = {
        ("--recipe",): ("resnet50_imagenet", "recipes, or .toml files"),
        ("--backbone",): ("", "instead of the recipe's"),
        ("-b", "--batch-size"): ("1,2,4,8,16,32,64,128,192,256", "images of a step"),
        ("--dtype", "--precision"): ("float32", "float32 (no tf32), tf32, float16 or bfloat16"),
        ("--engine",): ("eager", "eager, compiled (torch.compile), cudagraph (that, replayed) or onnx"),
    }
    for flags, (default, text) in lists.items():
        parser.add_argument(*flags, type=str, default=default, metavar="LIST", help=text)
    numbers = {
        ("-i", "--iterations"): (0, "steps of an epoch; 0: 100 on CUDA, 10 on a CPU"),
        ("-e", "--epochs"): (2, "epochs, those of the warm-up included"),
        ("-w", "--warmup"): (1, "epochs at the beginning that are left out"),
        ("--image-size",): (0, "pixels; 0: the recipe's"),
        ("--num-classes",): (0, "of a linear head; 0: the recipe's, or 1000"),
        ("--threads",): (0, "on a CPU; 0: OMP_NUM_THREADS, or all its cores"),
        ("--seed",): (0, "of weights and images"),
    }
    for flags, (number, text) in numbers.items():
        parser.add_argument(*flags, type=int, default=number, help=text)
    texts = {
        "data-root": (
            "",
            "record set, folder of class folders, or a directory with val/; default: synthetic",
        ),
        "device": ("auto", "auto, cpu or cuda"),
    }
    for name, (text, explained) in texts.items():
        parser.add_argument(f"--{name}", type=str, default=text, help=explained)
    options_of_sweep(parser)
